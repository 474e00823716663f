"""Requests and forwards for the scheduler's tests: tokens without a tokenizer, scores by hand."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence

import numpy as np

from rerank_adapters.values import Scores, TokenBatch

PATIENCE = 60.0
"""Seconds before a wait counts as a hang. Nothing here depends on how long anything takes."""


def request(lengths: Sequence[int], *, seed: int = 0) -> TokenBatch:
    """Pairs of these lengths, made of random tokens."""
    random = np.random.default_rng(seed)
    total = int(sum(lengths))
    return TokenBatch(
        random.integers(0, 30_000, total).astype(np.int32),
        random.integers(0, 2, total).astype(np.int32),
        np.asarray(lengths, dtype=np.int64),
    )


def requests(count: int, *, pairs: int = 20, longest: int = 60, seed: int = 0) -> list[TokenBatch]:
    """*count* requests of 1 to *pairs* pairs of 1 to *longest* tokens."""
    random = np.random.default_rng(seed)
    sizes = random.integers(1, pairs + 1, count)
    return [
        request(random.integers(1, longest + 1, size).tolist(), seed=seed + number)
        for number, size in enumerate(sizes.tolist())
    ]


def checksum(batch: TokenBatch) -> Scores:
    """Each pair's score from its own tokens, types and their order; exact in float32."""
    starts = batch.offsets[:-1]
    places = np.arange(len(batch.input_ids)) - np.repeat(starts, batch.lengths)
    terms = (batch.input_ids.astype(np.int64) * 2 + batch.type_ids) * (places + 1)
    return (np.add.reduceat(terms, starts) % 99_991).astype(np.float32)


class Held:
    """A forward whose first call waits for `release`; `entered` says that it began.

    Whatever is submitted in between queues up, so a test can say what shares a batch.
    """

    def __init__(self, forward: Callable[[TokenBatch], Scores] = checksum) -> None:
        self.forward = forward
        self.entered = threading.Event()
        self.release = threading.Event()
        self.batches: list[TokenBatch] = []

    def __call__(self, batch: TokenBatch) -> Scores:
        self.batches.append(batch)
        if len(self.batches) == 1:
            self.entered.set()
            assert self.release.wait(PATIENCE), "nobody released the held forward"
        return self.forward(batch)

    @property
    def sizes(self) -> list[int]:
        """Pairs per forward, in order."""
        return [len(batch) for batch in self.batches]


_OTHERS: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


def rerank_threads() -> list[str]:
    """The names of the scheduler's threads alive that were started in this test."""
    return [it.name for it in _all_threads() if it not in _OTHERS]


def discount_threads() -> None:
    """Threads alive now are not the test's: rerankers of fixtures live as long as the session."""
    _OTHERS.update(_all_threads())


def _all_threads() -> list[threading.Thread]:
    return [it for it in threading.enumerate() if it.name.startswith("rerank-")]
