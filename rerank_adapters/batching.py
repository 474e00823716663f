"""Which pairs share a forward pass: token budgets, bounded padding; pure functions of lengths."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray


def plan_batches(
    lengths: NDArray[np.int64],
    *,
    max_batch_tokens: int,
    max_padding: float = 0.10,
    free_padding: int = 0,
) -> list[NDArray[np.int64]]:
    """Cuts pairs into batches, longest first; every pair is in exactly one.

    *lengths* holds the tokens of each pair, shape (pairs,). Returns int64 arrays of row indices;
    within and across batches lengths never grow, and equal lengths keep the order given. A batch
    closes before it would hold more than *max_batch_tokens* padded tokens (longest × pairs) or
    before padding would exceed both the share *max_padding* of them and *free_padding* tokens (what
    a forward pass costs beside its tokens). A pair longer than the budget is a batch of its own.
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
    descending = lengths[order]
    start = 0
    while start < len(order):
        rest = descending[start:]
        stop = start + _batch_size(rest, max_batch_tokens, max_padding, free_padding)
        yield order[start:stop]
        start = stop


def _batch_size(
    descending: NDArray[np.int64], max_batch_tokens: int, max_padding: float, free_padding: int
) -> int:
    """How many of the first pairs fit one batch, at least 1; *descending* is longest first."""
    longest = max(1, int(descending[0]))
    candidates = descending[: max(1, max_batch_tokens // longest)]
    padded = longest * np.arange(1, len(candidates) + 1)
    # Lengths fall, so once padding is over both limits it stays over: the first breach is the cut.
    padding = padded - np.cumsum(candidates)
    within = padding <= np.maximum(max_padding * padded, free_padding)
    return max(1, int(np.count_nonzero(within)))
