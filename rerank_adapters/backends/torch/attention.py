"""Attention over packed tokens: sequences lie end to end, and none sees another.

Registered with transformers under a name of our own. A name that transformers has no mask for makes
its models build none, so what keeps sequences apart is the `Packing` handed down with each call.
Position ids alone would not do it: backbones take a whole row for one sequence.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

flash: Callable[..., Any] | None
try:
    from torch.nn.attention.varlen import varlen_attn

    flash = varlen_attn
except ImportError:  # torch < 2.10
    flash = None

NAME = "rerank_adapters_packed"
"""What `AttentionInterface` knows our function by."""

UNKNOWN = ("softcap", "s_aux", "position_bias", "cache")
"""Attention arguments that change scores and that our kernels lack."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a layer asks of its attention: scale, window (tokens to a side, or None), causality."""

    scale: float
    window: int | None
    causal: bool


@dataclass(frozen=True, slots=True, eq=False)
class Packing:
    """Where each sequence of one packed batch lies.

    `lengths` are on the host. `offsets`, int32 of shape (pairs + 1,), and `cells`, int64 of shape
    (tokens,), are on the device: the bounds of each sequence, and the index of each token in the
    padded rectangle. `masks` keeps what the layers of this one call share.
    """

    kernel: Kernel
    lengths: NDArray[np.int64]
    offsets: Tensor
    cells: Tensor
    masks: dict[object, Tensor] = field(default_factory=dict)

    @property
    def longest(self) -> int:
        """The length of the longest sequence."""
        return int(self.lengths.max())


Kernel = Callable[[Tensor, Tensor, Tensor, Packing, Shape], Tensor]
"""query, key, value of shape (1, heads, tokens, width) → (1, tokens, heads, width)."""


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packing: Packing | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    dropout: float = 0.0,
    **rest: object,  # transformers hands every layer's own arguments to every attention function
) -> tuple[Tensor, None]:
    """What transformers calls. Raises NotImplementedError for what packing cannot keep."""
    strange = [name for name in UNKNOWN if rest.get(name) is not None]
    if packing is None or attention_mask is not None or dropout or strange:
        raise NotImplementedError(f"packed attention was called with a mask or with {strange}")
    shape = Shape(
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=None if sliding_window is None else sliding_window - 1,  # theirs counts the token
        causal=getattr(module, "is_causal", True) if is_causal is None else is_causal,
    )
    return packing.kernel(query, key, value, packing, shape), None


AttentionInterface.register(NAME, packed_attention)


def per_sequence(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, shape: Shape
) -> Tensor:
    """One call of SDPA per sequence: nothing is padded. The CPU's kernel."""
    outputs, start = [], 0
    for length in packing.lengths.tolist():
        span = slice(start, start + length)
        start += length
        window = None if shape.window is None or shape.window >= length else shape.window
        mask = None if window is None else _band(packing, length, shape, query.device)
        output = scaled_dot_product_attention(
            query[:, :, span],
            key[:, :, span],
            value[:, :, span],
            attn_mask=mask,
            is_causal=shape.causal and mask is None,
            scale=shape.scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        outputs.append(output.transpose(1, 2))
    return torch.cat(outputs, dim=1)


def rectangle(query: Tensor, key: Tensor, value: Tensor, packing: Packing, shape: Shape) -> Tensor:
    """One call of SDPA on a padded rectangle: for devices without a kernel for ragged rows."""
    pairs, longest = len(packing.lengths), packing.longest

    def padded(states: Tensor) -> Tensor:
        rows = states[0].transpose(0, 1)
        cells = rows.new_zeros(pairs * longest, *rows.shape[1:])
        cells.index_copy_(0, packing.cells, rows)
        return cells.view(pairs, longest, *rows.shape[1:]).transpose(1, 2)

    output = scaled_dot_product_attention(
        padded(query),
        padded(key),
        padded(value),
        attn_mask=_rectangle_mask(packing, shape, query.device),
        scale=shape.scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output.transpose(1, 2).flatten(0, 1).index_select(0, packing.cells).unsqueeze(0)


def varlen(query: Tensor, key: Tensor, value: Tensor, packing: Packing, shape: Shape) -> Tensor:
    """FlashAttention of torch over ragged rows: CUDA in half precision, torch ≥ 2.10."""
    if flash is None:
        raise NotImplementedError("torch.nn.attention.varlen is not in this torch")
    options: dict[str, object] = {}  # what torch 2.10 may lack is passed only where it is needed
    if shape.scale != query.shape[-1] ** -0.5:
        options["scale"] = shape.scale
    if shape.window is not None or shape.causal:
        side = -1 if shape.window is None else shape.window
        options["window_size"] = (side, 0 if shape.causal else side)
    if query.shape[1] != key.shape[1] and "enable_gqa" in inspect.signature(flash).parameters:
        options["enable_gqa"] = True  # torch 2.10 and 2.11 group heads without being asked
    rows = [states[0].transpose(0, 1) for states in (query, key, value)]
    bounds = (packing.offsets, packing.offsets, packing.longest, packing.longest)
    output: Tensor = flash(*rows, *bounds, **options)
    return output.unsqueeze(0)


def _rectangle_mask(packing: Packing, shape: Shape, device: torch.device) -> Tensor:
    """True where a query may look: inside its own sequence, window and past; made once a call."""
    name = ("rectangle", shape.window, shape.causal)
    if name not in packing.masks:
        columns = torch.arange(packing.longest, device=device)
        lengths = packing.offsets.diff()[:, None]
        mask = (columns < lengths)[:, None, None, :]
        if shape.window is not None or shape.causal:
            mask = mask & _band(packing, packing.longest, shape, device)
        packing.masks[name] = mask
    return packing.masks[name]


def _band(packing: Packing, length: int, shape: Shape, device: torch.device) -> Tensor:
    """True within the window of a sequence of *length*, shape (length, length)."""
    name = (length, shape.window, shape.causal)
    if name not in packing.masks:
        columns = torch.arange(length, device=device)
        ahead = columns - columns[:, None]
        mask = ahead <= 0 if shape.causal else torch.ones_like(ahead, dtype=torch.bool)
        if shape.window is not None:
            mask = mask & (ahead.abs() <= shape.window)
        packing.masks[name] = mask
    return packing.masks[name]
