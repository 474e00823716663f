"""One queue for all callers of a model, whichever thread or event loop they call from.

    caller ──submit(tokens)──────────────┐
    caller ──submit_call(encode)─ pool ──┤ queue ── a worker per forward: cut, run, deal out
    caller ──score(encode)───────────────┘

Work-conserving: a worker takes whatever waits, at once; batches grow because requests arrive while
a batch runs. The pattern follows Hugging Face text-embeddings-inference (queue.rs), with one Future
per request and failures kept to the request that caused them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from numbers import Real
from time import perf_counter
from types import TracebackType
from typing import Literal, Self

from ..errors import ConfigError, InputError, RerankError
from ..values import Scores, TokenBatch
from ._engine import Encode, Engine, Limits
from ._queue import RequestQueue
from ._stats import Snapshot
from ._worker import Forward

OUT_OF_MEMORY = (
    "out of memory",
    "not enough memory",
    "bad_alloc",
    "bad allocation",
    "failed to allocate memory",
    "can't allocate memory",
    "alloc_failed",
)

MIN_BATCH = 4
"""What a forward costs beside its tokens, so many times, is the least that is shared out."""

WINDOW_BATCHES = 16
"""A wider window pads less and lets every request end later: 64 requests of 20 pairs at once keep
97 % of one large call's throughput and end after 70 % of its time on average; with four times the
window it is 99 % and 90 %."""


def looks_out_of_memory(error: BaseException) -> bool:
    """Whether *error* says memory ran out: MemoryError, torch's and ONNX Runtime's words for it."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    message = str(error).lower()
    return any(words in message for words in OUT_OF_MEMORY)


class Scheduler:
    """Serves scoring requests in order of arrival, many to a batch. Threads start with the first.

    Safe to use from any thread and any number of event loops (`asyncio.wrap_future`). A request
    comes back whole or fails alone: an exception in a shared batch is bisected to the pair at
    fault, out of memory halves the batch and the budget, a score that is not finite is tried again
    alone. A cancelled or late request is dropped from the queue at once.
    """

    def __init__(
        self,
        forwards: Sequence[Forward],
        *,
        max_batch_tokens: int = 16_384,
        window_tokens: int | None = None,
        max_padding: float = 0.10,
        free_padding: int = 0,
        max_passes: int = 8,
        max_queue_pairs: int | None = None,
        max_queue_tokens: int | None = None,
        when_full: Literal["block", "error"] = "block",
        tokenise_threads: int = 2,
        is_out_of_memory: Callable[[BaseException], bool] = looks_out_of_memory,
        fork_safe: bool = True,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        """One worker thread for each of *forwards*, which map tokens to float32 scores (pairs,).

        A batch holds at most *max_batch_tokens* padded tokens, of which padding may be the share
        *max_padding*, or *free_padding* tokens where that is more: what one more forward costs
        beside its tokens, little on a CPU and much on a GPU. It is cut from the *window_tokens*
        that arrived first (None: 16 batches); half of the tokens are the oldest request's, the rest
        go to whoever was passed over *max_passes* times, else to the smallest. Where several
        workers are idle, each takes its share of what waits, if that is 4 times *free_padding*.
        *max_queue_pairs* and *max_queue_tokens* bound what waits (None: unbounded; a request over
        them is taken when nothing waits); *when_full* says whether submitting then blocks or raises
        OverloadedError. After a fork, *fork_safe* forwards run on in the child, others refuse with
        ClosedError; what was inherited is never freed there. *on_close* is called once, after the
        last thread has ended.
        """
        numbers = {
            "max_batch_tokens": max_batch_tokens,
            "window_tokens": window_tokens,
            "max_passes": max_passes,
            "max_queue_pairs": max_queue_pairs,
            "max_queue_tokens": max_queue_tokens,
            "tokenise_threads": tokenise_threads,
        }
        for name, number in numbers.items():
            if number is not None and number < 1:
                raise ConfigError(f"{name} must be at least 1: got {number}")
        if when_full not in ("block", "error"):
            raise ConfigError(f'when_full must be "block" or "error": got {when_full!r}')
        self._engine = Engine(
            forwards,
            RequestQueue(
                window_tokens=window_tokens or WINDOW_BATCHES * max_batch_tokens,
                max_padding=max_padding,
                free_padding=free_padding,
                max_passes=max_passes,
            ),
            limits=Limits(
                pairs=max_queue_pairs, tokens=max_queue_tokens, block=when_full == "block"
            ),
            max_batch_tokens=max_batch_tokens,
            min_batch_tokens=MIN_BATCH * free_padding,
            tokenise_threads=tokenise_threads,
            is_out_of_memory=is_out_of_memory,
            fork_safe=fork_safe,
            on_close=on_close,
        )
        weakref.finalize(self, self._engine.abandon).atexit = False  # the engine sees to that

    def submit(
        self, encoded: TokenBatch, *, timeout: float | None = None, tokenise_seconds: float = 0.0
    ) -> Future[Scores]:
        """Queues tokenised pairs: a Future of their float32 scores, shape (pairs,), order kept.

        After *timeout* seconds the Future fails with TimeoutError and the pairs are dropped; its
        `cancel()` drops them too. Blocks or raises OverloadedError when the queue is full; raises
        ClosedError after close. *tokenise_seconds*, spent before, count against the timeout and go
        into the statistics. Callbacks of the Future run in a worker, which they hold up: they may
        submit more, but not wait for it, and raise OverloadedError where they would have to.
        """
        future = self._engine.register(check_timeout(timeout), tokenise_seconds=tokenise_seconds)
        try:
            self._engine.admit(future, encoded)
        except BaseException:
            future.cancel()
            raise
        return future

    def submit_call(
        self, encode: Encode, *, timeout: float | None = None, pairs: int = 0
    ) -> Future[Scores]:
        """Like `submit`, never blocking: *encode* runs in the scheduler's threads, in this context.

        A full queue is waited for, or raises OverloadedError, out of sight of the caller; with
        *pairs*, how many *encode* will bring, the latter comes before any tokenising.
        """
        return self._engine.call(encode, check_timeout(timeout), pairs)

    def score(self, encode: Encode, *, timeout: float | None = None) -> Scores:
        """Tokenises here, waits here; whatever ends the wait, Ctrl-C too, drops the request.

        Raises RerankError in a worker, that is in a callback of a Future of this scheduler.
        """
        if self._engine.serving():
            raise RerankError(
                "score and rerank wait, and must not be called in a callback of a Future of the "
                "same reranker: its thread would wait for itself. Use submit there"
            )
        started = perf_counter()
        encoded = encode()
        seconds = perf_counter() - started
        future = self.submit(encoded, timeout=timeout, tokenise_seconds=seconds)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stats(self) -> Snapshot:
        """A snapshot: the queue now, and sums since the start (seconds, pairs, tokens, batches).

        `batch_sizes` maps 1, 2, 4, … to batches of at most so many pairs; `max_batch_tokens` is
        what memory allows now; `splits` counts batches halved for memory, `retries` batches halved
        for an error and pairs tried again alone.
        """
        return self._engine.snapshot()

    def close(self, *, wait: bool = True) -> None:
        """Fails what is unfinished with ClosedError, waits for the batches that run. Twice is once.

        wait=False takes no more requests, returns at once and lets the workers finish what they
        have: for finalizers, which may run in any thread at any time, and which nobody asked for.
        """
        if wait:
            self._engine.close()
        else:
            self._engine.abandon()

    @property
    def closed(self) -> bool:
        """Whether it takes no more requests: closed, broken, or lost in a fork."""
        return self._engine.closed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def check_timeout(timeout: float | None) -> float | None:
    """*timeout* itself; raises InputError where it is no number of seconds above 0."""
    number = isinstance(timeout, Real) and not isinstance(timeout, bool)
    if timeout is not None and not (number and timeout > 0):
        raise InputError(f"timeout must be above 0 seconds, or None for no limit: got {timeout!r}")
    return timeout
