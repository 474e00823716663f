"""Counters of a scheduler, read as one plain dict."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass, field

from ..values import Scores

Snapshot = dict[str, int | float | dict[int, int]]


@dataclass(slots=True)
class Stats:
    """What happened so far. Not thread-safe: its owner's lock guards it."""

    requests: int = 0
    pairs: int = 0
    batches: int = 0
    batch_tokens: int = 0
    padded_tokens: int = 0
    batch_sizes: Counter[int] = field(default_factory=Counter)
    wait_seconds: float = 0.0
    tokenise_seconds: float = 0.0
    forward_seconds: float = 0.0
    splits: int = 0
    retries: int = 0
    rejected: int = 0
    cancelled: int = 0
    timed_out: int = 0
    failed: int = 0
    done: int = 0

    def count_batch(self, pairs: int, tokens: int, padded: int, seconds: float) -> None:
        """One forward pass that returned scores."""
        self.batches += 1
        self.pairs += pairs
        self.batch_tokens += tokens
        self.padded_tokens += padded
        self.forward_seconds += seconds
        self.batch_sizes[1 << (pairs - 1).bit_length()] += 1

    def count_settled(self, future: Future[Scores]) -> None:
        """One request that came to its end, whichever it was."""
        if future.cancelled():
            self.cancelled += 1
        elif (error := future.exception()) is None:
            self.done += 1
        elif isinstance(error, TimeoutError):
            self.timed_out += 1
        else:
            self.failed += 1

    def snapshot(self) -> Snapshot:
        """Every counter.

        `batch_sizes` maps each power of two to the batches of up to that many pairs and more than
        half of it; `padding_waste` is the padding's share of padded tokens.
        """
        return {
            "requests": self.requests,
            "pairs": self.pairs,
            "batches": self.batches,
            "batch_tokens": self.batch_tokens,
            "batch_sizes": dict(sorted(self.batch_sizes.items())),
            "padding_waste": 1 - self.batch_tokens / self.padded_tokens if self.batches else 0.0,
            "wait_seconds": self.wait_seconds,
            "tokenise_seconds": self.tokenise_seconds,
            "forward_seconds": self.forward_seconds,
            "splits": self.splits,
            "retries": self.retries,
            "rejected": self.rejected,
            "cancelled": self.cancelled,
            "timed_out": self.timed_out,
            "failed": self.failed,
            "done": self.done,
        }

    def seconds_for(self, tokens: int) -> float:
        """About how long *tokens* take one worker, from the passes so far; 0 before the first."""
        return tokens * self.forward_seconds / self.batch_tokens if self.batch_tokens else 0.0
