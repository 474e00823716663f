"""What happened so far, counted: forwards by an engine, requests by an admission."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from ..tokens import TokenBatch

Snapshot = dict[str, Any]
"""Numbers by name; `batch_sizes` alone is a dict of them."""


@dataclass(slots=True)
class ForwardStats:
    """Of the forwards of all workers. Not thread-safe: the engine's lock guards it."""

    pairs: int = 0
    batches: int = 0
    batch_tokens: int = 0
    padded_tokens: int = 0
    batch_sizes: Counter[int] = field(default_factory=Counter)
    forward_seconds: float = 0.0
    splits: int = 0
    retries: int = 0

    def count_batch(self, batch: TokenBatch, seconds: float) -> None:
        """One forward pass that returned rows."""
        pairs = len(batch)
        self.batches += 1
        self.pairs += pairs
        self.batch_tokens += len(batch.input_ids)
        self.padded_tokens += pairs * int(batch.lengths.max())
        self.forward_seconds += seconds
        self.batch_sizes[1 << (pairs - 1).bit_length()] += 1

    def snapshot(self) -> Snapshot:
        """Every counter.

        `batch_sizes` maps each power of two to the batches of up to that many pairs and more than
        half of it; `padding_waste` is the padding's share of padded tokens.
        """
        return {
            "pairs": self.pairs,
            "batches": self.batches,
            "batch_tokens": self.batch_tokens,
            "batch_sizes": dict(sorted(self.batch_sizes.items())),
            "padding_waste": 1 - self.batch_tokens / self.padded_tokens if self.batches else 0.0,
            "forward_seconds": self.forward_seconds,
            "splits": self.splits,
            "retries": self.retries,
        }

    def seconds_for(self, tokens: int) -> float:
        """About how long *tokens* take one worker, by the passes so far; 0 before the first."""
        return tokens * self.forward_seconds / self.batch_tokens if self.batch_tokens else 0.0


@dataclass(slots=True)
class RequestStats:
    """Of the requests of one admission. Not thread-safe: the engine's lock guards it."""

    requests: int = 0
    wait_seconds: float = 0.0
    tokenise_seconds: float = 0.0
    rejected: int = 0
    cancelled: int = 0
    timed_out: int = 0
    failed: int = 0
    done: int = 0

    def count_settled(self, future: Future[Any]) -> None:
        """One request that has its end, of any kind."""
        if future.cancelled():
            self.cancelled += 1
        elif (error := future.exception()) is None:
            self.done += 1
        elif isinstance(error, TimeoutError):
            self.timed_out += 1
        else:
            self.failed += 1

    def snapshot(self) -> Snapshot:
        """Every counter."""
        return {
            "requests": self.requests,
            "wait_seconds": self.wait_seconds,
            "tokenise_seconds": self.tokenise_seconds,
            "rejected": self.rejected,
            "cancelled": self.cancelled,
            "timed_out": self.timed_out,
            "failed": self.failed,
            "done": self.done,
        }
