"""Which pairs share a forward pass: token budgets, bounded padding; pure functions of lengths."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRule:
    """How full the batches of one device may be.

    max_tokens    padded tokens (longest × pairs) of a batch; a longer pair is a batch of its own
    max_padding   the share of them that may be padding …
    free_padding  … or so many tokens, where that is more: what one more forward costs
    """

    max_tokens: int
    max_padding: float = 0.10
    free_padding: int = 0

    def __post_init__(self) -> None:
        check_count("max_batch_tokens", self.max_tokens)


def check_count(name: str, number: int | None) -> None:
    """Raise ConfigError where option *name* is a *number* below 1; None means no limit."""
    if number is not None and number < 1:
        raise ConfigError(f"{name} must be at least 1: got {number}")


def plan_batches(
    lengths: NDArray[np.int64],
    *,
    max_batch_tokens: int,
    max_padding: float = 0.10,
    free_padding: int = 0,
) -> list[NDArray[np.int64]]:
    """Cut pairs into batches, longest first; every pair is in exactly one.

    *lengths* holds the tokens of each pair, shape (pairs,). Returns int64 arrays of row indices;
    within and across batches lengths never grow, and equal lengths keep the order given. A batch
    closes before it would hold more than *max_batch_tokens* padded tokens (longest × pairs) or
    before padding would exceed both the share *max_padding* of them and *free_padding* tokens (what
    a forward pass costs in addition to its tokens). A pair longer than the budget is a batch of its
    own.
    """
    return list(
        iterate_batches(
            lengths,
            max_batch_tokens=max_batch_tokens,
            max_padding=max_padding,
            free_padding=free_padding,
        )
    )


def iterate_batches(
    lengths: NDArray[np.int64],
    *,
    max_batch_tokens: int,
    max_padding: float = 0.10,
    free_padding: int = 0,
) -> Iterator[NDArray[np.int64]]:
    """`plan_batches`, one batch at a time, for callers that need only the first few."""
    order = np.argsort(-lengths, kind="stable")
    descending: list[int] = lengths[order].tolist()
    sums = [0, *itertools.accumulate(descending)]
    start = 0

    def too_padded(size: int) -> bool:
        tokens = sums[start + size] - sums[start]
        padded = max(1, descending[start]) * size
        return is_too_padded(padded, tokens, max_padding=max_padding, free_padding=free_padding)

    while start < len(order):
        size = max(1, min(max_batch_tokens // max(1, descending[start]), len(order) - start))
        # Lengths fall, so once padding is over both limits it stays over: halving finds the breach.
        if too_padded(size):
            size = max(1, bisect_left(range(size), True, key=too_padded) - 1)
        yield order[start : start + size]
        start += size


def is_too_padded(padded: int, tokens: int, *, max_padding: float, free_padding: int) -> bool:
    """Whether *padded* tokens, *tokens* of them real, are more padding than either limit allows."""
    return padded - tokens > max(max_padding * padded, free_padding)
