"""Requests, forwards and a caller for the engine's tests: no tokenizer, scores by hand."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self

import numpy as np

from rerank_adapters import futures
from rerank_adapters.engine.admission import Admission, Limits
from rerank_adapters.engine.batching import BatchRule
from rerank_adapters.engine.engine import Engine
from rerank_adapters.engine.worker import Forward, looks_out_of_memory
from rerank_adapters.tokens import Scores, TokenBatch

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
    offsets = np.arange(len(batch.input_ids)) - np.repeat(starts, batch.lengths)
    terms = (batch.input_ids.astype(np.int64) * 2 + batch.type_ids) * (offsets + 1)
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


def deadline_in(timeout: float | None) -> float | None:
    """The `time.monotonic()` that is *timeout* seconds away."""
    return None if timeout is None else time.monotonic() + timeout


class Scheduler:
    """An engine with one admission, driven as scorers and rerankers drive them."""

    def __init__(
        self,
        forwards: Sequence[Forward],
        *,
        max_batch_tokens: int = 16_384,
        window_tokens: int | None = None,
        max_padding: float = 0.10,
        free_padding: int = 0,
        max_skipped: int = 8,
        max_queue_pairs: int | None = None,
        max_queue_tokens: int | None = None,
        block: bool = True,
        is_out_of_memory: Callable[[BaseException], bool] = looks_out_of_memory,
        survives_fork: bool = True,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        rule = BatchRule(
            max_tokens=max_batch_tokens, max_padding=max_padding, free_padding=free_padding
        )
        engine = Engine(
            [(forward, rule) for forward in forwards],
            window_tokens=window_tokens,
            max_skipped=max_skipped,
            is_out_of_memory=is_out_of_memory,
            survives_fork=survives_fork,
            on_close=on_close,
        )
        limits = Limits(pairs=max_queue_pairs, tokens=max_queue_tokens, block=block)
        self.admission = Admission(engine, limits=limits)
        weakref.finalize(self, self.admission.close, wait=False).atexit = False

    def submit(
        self,
        encoded: TokenBatch,
        *,
        timeout: float | None = None,
        tokenise_seconds: float = 0.0,
        on_progress: Callable[[int], None] | None = None,
    ) -> Future[Scores]:
        """As a sync caller does; *tokenise_seconds* of the *timeout* have passed already."""
        left = None if timeout is None else timeout - tokenise_seconds
        ticket = self.admission.reserve(len(encoded), deadline_in(left))
        return self.admission.submit(
            encoded, ticket=ticket, tokenise_seconds=tokenise_seconds, on_progress=on_progress
        )

    def submit_call(
        self, encode: Callable[[], TokenBatch], *, timeout: float | None = None, pairs: int = 0
    ) -> Future[Scores]:
        """As an async caller does: *encode*, which brings *pairs*, runs in a preparing thread."""
        admission = self.admission
        ticket = admission.reserve(pairs, deadline_in(timeout))

        def work() -> Future[Scores]:
            started = time.perf_counter()
            encoded = encode()
            seconds = time.perf_counter() - started
            return admission.submit(encoded, ticket=ticket, tokenise_seconds=seconds)

        return futures.prepare(work, ticket=ticket)

    def score(self, encode: Callable[[], TokenBatch], *, timeout: float | None = None) -> Scores:
        """As a sync caller does, who waits."""
        return futures.wait(self.submit(encode(), timeout=timeout), deadline_in(timeout))

    def stats(self) -> dict[str, Any]:
        return self.admission.stats()

    def close(self, *, wait: bool = True) -> None:
        self.admission.close(wait=wait)

    @property
    def closed(self) -> bool:
        return self.admission.closed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def until(true: Callable[[], bool]) -> None:
    """Wait for a state that is bound to come, however long it takes."""
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "the awaited state never came"
        time.sleep(0.002)


_OTHERS: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


def rerank_threads() -> list[str]:
    """The names of the library's threads alive that were started in this test."""
    return [it.name for it in _all_threads() if it not in _OTHERS]


def discount_threads() -> None:
    """Threads alive now are not the test's: rerankers of fixtures live as long as the session."""
    _OTHERS.update(_all_threads())


def _all_threads() -> list[threading.Thread]:
    return [it for it in threading.enumerate() if it.name.startswith("rerank-")]
