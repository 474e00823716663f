"""A packed batch on the device, and the row of hidden states that stands for each pair."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .attention import Packing


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """One packed batch on the device; each token's sequence and each sequence's ends are known.

    last  where each sequence ends, or its last token that a decoder's head reads, shape (pairs,)
    """

    inputs: Mapping[str, Tensor]
    packing: Packing
    sequence: Tensor
    last: Tensor

    @property
    def first(self) -> Tensor:
        """Where each sequence starts, shape (pairs,)."""
        return self.packing.offsets[:-1]


Pooling = Callable[[Tensor, Packed], Tensor]
"""Hidden states of shape (tokens, width) → one row a pair, shape (pairs, width)."""


def first_row(hidden: Tensor, packed: Packed) -> Tensor:
    """Return the [CLS] row."""
    return hidden.index_select(0, packed.first)


def last_row(hidden: Tensor, packed: Packed) -> Tensor:
    """Return the row that a causal model predicts from."""
    return hidden.index_select(0, packed.last)


def mean_row(hidden: Tensor, packed: Packed) -> Tensor:
    """Return the mean over a pair's tokens, summed in float32."""
    sums = hidden.new_zeros(len(packed.first), hidden.shape[1], dtype=torch.float32)
    sums.index_add_(0, packed.sequence, hidden.float())
    return (sums / packed.packing.offsets.diff()[:, None]).to(hidden.dtype)


POOLINGS: tuple[Pooling, ...] = (first_row, last_row, mean_row)
