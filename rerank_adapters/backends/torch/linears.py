"""oneDNN's matrix product on the CPU, with weights laid out for it once, at load.

The same product, summed in another order (differences near 1e-6 in float32). In float32 it stands
in for MKL, which holds back on AMD; in bfloat16 it spares laying the weights out at every call. The
operators are private to torch, so the caller tries the network afterwards and undoes it if anything
is amiss.
"""

from __future__ import annotations

import platform
from collections.abc import Callable

import torch
from torch import Tensor, nn

ROWS = 512
"""The number of tokens the layout is chosen for; any number works."""


class PackedLinear(nn.Module):
    """A linear layer whose weight only oneDNN can read."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight_layout = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS)
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, states: Tensor) -> Tensor:
        """Return the product states · weightᵀ + bias."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(
            states, self.weight_layout, self.bias, "none", [], ""
        )
        return product


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether there is something to gain: on an x86 CPU, in float32 or bfloat16."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    there = bool(torch.backends.mkldnn.enabled) and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return x86 and there and device.type == "cpu" and dtype in (torch.float32, torch.bfloat16)


def pack_linears(backbone: nn.Module) -> Callable[[], None]:
    """Replace the backbone's linear layers in place; return what puts them back.

    All or none: where oneDNN refuses one of them, its error comes before anything is replaced.
    """
    layers = [
        (parent, name, child)
        for parent in backbone.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear
    ]
    packed = [PackedLinear(child) for _, _, child in layers]
    for (parent, name, _), replacement in zip(layers, packed, strict=True):
        setattr(parent, name, replacement)

    def undo() -> None:
        for parent, name, child in layers:
            setattr(parent, name, child)

    return undo
