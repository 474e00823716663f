"""Two single-threaded workers in step with one another: `torchrun --nproc-per-node 2 train.py …`.

On a busy machine that uses more of two cores than two threads of one process, which wait for each
other at every matrix product. Started plainly, everything here is the identity.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def start() -> None:
    """Join the other workers if torchrun started this one."""
    if dist.is_torchelastic_launched():
        dist.init_process_group("gloo")


def rank() -> int:
    """The number of this worker, 0 for the one that writes files."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many workers there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share(items: list[Any], sizes: list[int]) -> list[Any]:
    """The worker's part of the items: largest first, dealt there and back."""
    order = sorted(range(len(items)), key=lambda i: -sizes[i])
    turns = [*range(world()), *reversed(range(world()))]
    return [items[i] for at, i in enumerate(order) if turns[at % len(turns)] == rank()]


def average(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its mean over the workers."""
    if world() == 1:
        return
    parts = list(tensors)
    flat = torch.cat([p.flatten() for p in parts])
    dist.all_reduce(flat)
    for part, mean in zip(parts, (flat / world()).split([p.numel() for p in parts]), strict=True):
        part.copy_(mean.view_as(part))


def gather(value: Any) -> list[Any]:
    """Every worker's value, in order of rank, on every worker."""
    if world() == 1:
        return [value]
    values = [None] * world()
    dist.all_gather_object(values, value)
    return values
