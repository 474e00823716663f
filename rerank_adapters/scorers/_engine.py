"""The threads under a Scheduler: one per forward, a few that tokenise, one that watches deadlines.

The engine does not know its Scheduler, so a Scheduler that is dropped without close() is collected
and tells the engine, which finishes what waits and ends its threads.
"""

from __future__ import annotations

import atexit
import contextvars
import ctypes
import math
import os
import threading
import traceback
import weakref
from bisect import insort
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from time import monotonic, perf_counter
from typing import NoReturn

from ..errors import ClosedError, OverloadedError
from ..values import Scores, TokenBatch
from ._queue import RequestQueue
from ._requests import Batch, Request, settle
from ._stats import Snapshot, Stats
from ._worker import Forward, Worker

Encode = Callable[[], TokenBatch]

MOST_RUNNING = 8
"""Budgets of tokens computed at once: pairs longer than one, and their memory, go few at a time."""

CLOSED = "the reranker is closed: load it again"
FORKED_REQUEST = "this request was made before the process forked: make it again in the child"
FORKED_ENGINE = (
    "this process was forked after the model was loaded, and the model's runtime does not survive "
    "a fork: load the model in the child process alone, or start children by 'spawn' instead"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What may wait in the queue, and whether a full queue blocks the caller or raises."""

    pairs: int | None
    tokens: int | None
    block: bool


@dataclass(frozen=True, slots=True)
class Call:
    """A request that is still to be tokenised, and the context of whoever asked."""

    future: Future[Scores]
    encode: Encode
    context: contextvars.Context


class Engine:
    """One queue, and the threads that serve it. Starts with the first request, survives a fork."""

    def __init__(
        self,
        forwards: Sequence[Forward],
        queue: RequestQueue,
        *,
        limits: Limits,
        max_batch_tokens: int,
        min_batch_tokens: int,
        tokenise_threads: int,
        is_out_of_memory: Callable[[BaseException], bool],
        fork_safe: bool,
        on_close: Callable[[], None] | None,
    ) -> None:
        self._workers = [Worker(f, max_batch_tokens, is_out_of_memory) for f in forwards]
        self._min_batch_tokens = min_batch_tokens
        self._most_running = max(MOST_RUNNING, len(forwards)) * max_batch_tokens
        self._queue = queue
        self._limits = limits
        self._tokenise_threads = tokenise_threads
        self._fork_safe = fork_safe
        self._on_close = on_close
        self._stats = Stats()
        self._why_closed = ""
        self._cause: BaseException | None = None
        self._abandoned = False
        self._start_over()
        _ENGINES.add(self)

    # -- requests: any thread -----------------------------------------------------------------

    def register(self, timeout: float | None, *, tokenise_seconds: float = 0.0) -> Future[Scores]:
        """A Future for one request, which fails by itself *timeout* seconds after its caller began.

        That is *tokenise_seconds* ago, which go into the statistics too.
        """
        deadline = math.inf if timeout is None else monotonic() + timeout - tokenise_seconds
        future: Future[Scores] = Future()
        with self._lock:
            self._check_open()
            self._start()
            if deadline < self._next_deadline:
                self._watch_from(deadline)
            self._stats.requests += 1
            self._stats.tokenise_seconds += tokenise_seconds
            self._live[future] = deadline, self._stats.requests
        future.add_done_callback(self._settled)
        return future

    def admit(self, future: Future[Scores], encoded: TokenBatch) -> None:
        """Queues a registered request, once there is room. Raises OverloadedError if told to."""
        request = Request(future, encoded)
        if not len(encoded):
            settle(future, request.scores)
            return
        with self._lock:
            reserved = self._release(future)
            # A worker that waited for room would wait for itself: its callbacks are refused.
            if self._limits.block and not self.serving():
                self._wait_for_room(request)
            elif not self._fits(0 if reserved else len(encoded), request.tokens):
                self._live.pop(future, None)
                self._reject(len(encoded))
            if not future.done():
                self._queue.add(request)
                self._work.notify()

    def call(self, encode: Encode, timeout: float | None, pairs: int) -> Future[Scores]:
        """Registers a request whose tokens *encode* will bring, off the calling thread."""
        with self._lock:
            if not self._limits.block and not self._fits(pairs, 0):
                self._reject(pairs)
            future = self.register(timeout)
            self._calls.append(Call(future, encode, contextvars.copy_context()))
            self._reserved[future] = pairs
            self._reserved_pairs += pairs
            self._open_calls += 1
            if self._tokenisers < min(self._open_calls, self._tokenise_threads):
                self._spawn("rerank-tokenise", self._tokenise_next)
                self._tokenisers += 1
            self._tokenise.notify()
        return future

    def serving(self) -> bool:
        """Whether the calling thread is a worker: it runs the callbacks of what it scored."""
        return threading.current_thread() in self._servers

    @property
    def closed(self) -> bool:
        """Whether it takes no more requests: closed, broken, or lost in a fork."""
        return bool(self._why_closed) or self._abandoned

    def snapshot(self) -> Snapshot:
        """The statistics and the queue's state at this moment."""
        with self._lock:
            return {
                "queue_requests": len(self._queue) + self._open_calls,
                "queue_pairs": self._queue.pairs + self._reserved_pairs,
                "queue_tokens": self._queue.tokens,
                "unfinished": len(self._live),
                "max_batch_tokens": int(min((w.budget for w in self._workers), default=0)),
                **self._stats.snapshot(),
            }

    def _check_open(self) -> None:
        if self.closed:
            raise ClosedError(self._why_closed or CLOSED) from self._cause

    def _fits(self, pairs: int, tokens: int) -> bool:
        limits, waiting = self._limits, self._queue.pairs
        if not limits.block:  # else who tokenises would wait for whoever is to be tokenised
            waiting += self._reserved_pairs
        if not waiting:
            return True  # a request larger than the limits must be served too
        return (limits.pairs is None or waiting + pairs <= limits.pairs) and (
            limits.tokens is None or self._queue.tokens + tokens <= limits.tokens
        )

    def _release(self, future: Future[Scores]) -> int:
        """Gives the place back that a call has had since before it was tokenised: its pairs."""
        pairs = self._reserved.pop(future, 0)
        self._reserved_pairs -= pairs
        return pairs

    def _wait_for_room(self, request: Request) -> None:
        """Blocks until it is this request's turn and it fits, or it was settled meanwhile.

        Turns go by when requests were made, not by when they were tokenised: few threads tokenise
        for all async callers, who would otherwise join the line one by one, behind sync ones.
        """
        future, pairs, tokens = request.future, request.left, request.tokens
        if future.done() or (not self._blocked and self._fits(pairs, tokens)):
            return
        _, place = self._live[future]
        insort(self._blocked, place)
        try:
            while not future.done() and not (
                self._blocked[0] == place and self._fits(pairs, tokens)
            ):
                self._room.wait()
        finally:
            self._blocked.remove(place)
            self._room.notify_all()

    def _reject(self, pairs: int) -> NoReturn:
        self._stats.rejected += 1
        queue, limits = self._queue, self._limits
        seconds = self._stats.seconds_for(queue.tokens) / max(1, len(self._workers))
        raise OverloadedError(
            f"the queue is full: it holds {queue.pairs} pairs of {queue.tokens} tokens, the "
            f"request brings {pairs} pairs, max_queue_pairs is {limits.pairs} and "
            f"max_queue_tokens {limits.tokens}: retry in about {seconds:.2f} s",
            retry_after=seconds,
        )

    def _settled(self, future: Future[Scores]) -> None:
        """Runs once for every request, in whichever thread gave it its end."""
        with self._lock:
            if self._live.pop(future, None) is None:
                return
            self._release(future)
            self._queue.drop(future)
            self._stats.count_settled(future)
            self._room.notify_all()
            if self._abandoned:
                self._wake_all()
        if future.cancelled():
            future.set_running_or_notify_cancel()  # wakes concurrent.futures.wait

    # -- threads --------------------------------------------------------------------------------

    def _start_over(self) -> None:
        """No request, no thread, and locks nobody holds."""
        self._lock = threading.RLock()  # re-entered when garbage collection runs a callback
        self._work = threading.Condition(self._lock)
        self._room = threading.Condition(self._lock)
        self._tokenise = threading.Condition(self._lock)
        self._deadlines = threading.Condition(self._lock)
        self._threads: list[threading.Thread] = []
        self._servers: list[threading.Thread] = []  # those of them that run forwards
        self._running = 0
        self._busy = 0  # workers that run a forward, and the tokens in them
        self._tokens_running = 0
        self._tokenisers = 0
        self._calls: deque[Call] = deque()
        self._open_calls = 0
        self._reserved: dict[Future[Scores], int] = {}
        self._reserved_pairs = 0
        self._blocked: list[int] = []  # whoever waits for room, the first to ask first
        # Every unfinished request, its deadline and its number in the order of asking.
        self._live: dict[Future[Scores], tuple[float, int]] = {}
        self._next_deadline = math.inf
        self._watched = False
        self._queue.clear()

    def _start(self) -> None:
        if self._threads:
            return
        # Registered late, so it runs before the exit handlers of the runtimes: a thread that is
        # inside one when the interpreter goes would abort the process.
        atexit.register(self.close)
        for number, worker in enumerate(self._workers):
            step = partial(self._serve_next, worker)
            self._servers.append(self._spawn(f"rerank-worker-{number}", step))

    def _spawn(self, name: str, step: Callable[[], bool]) -> threading.Thread:
        thread = threading.Thread(target=self._loop, args=(step,), name=name, daemon=True)
        thread.start()
        self._threads.append(thread)
        self._running += 1
        return thread

    def _loop(self, step: Callable[[], bool]) -> None:
        """A thread's life: *step* until it says no. Nothing of one step outlives it."""
        try:
            while step():
                pass
        except BaseException as error:  # noqa: BLE001 - nobody may wait for a thread that is gone
            # As words: the frames would keep the batch and its memory for as long as the engine.
            error.add_note("in the engine:\n" + traceback.format_exc())
            cause = error.with_traceback(None)
            self._close(f"the engine broke, {error!r}: load the model again", cause)
        with self._lock:
            self._running -= 1
            last = not self._running
        if self._why_closed:
            self._fail_all()
        if last:
            self._finish()
        with self._lock:
            self._threads.remove(threading.current_thread())

    def _ending(self, busy: object) -> bool:
        """Whether a thread with nothing to do should end: closed, or dropped and not *busy*."""
        return bool(self._why_closed) or (self._abandoned and not busy)

    def _wake_all(self) -> None:
        for condition in (self._work, self._room, self._tokenise, self._deadlines):
            condition.notify_all()

    # -- tokenising -----------------------------------------------------------------------------

    def _tokenise_next(self) -> bool:
        with self._lock:
            while not self._calls:
                if self._ending(busy=False):
                    return False
                self._tokenise.wait()
            call = self._calls.popleft()
        try:
            if not call.future.done():
                call.context.run(self._encode, call)
        except BaseException as error:  # noqa: BLE001 - whatever encode raises is its caller's
            settle(call.future, error)
        with self._lock:
            self._open_calls -= 1
            if self._abandoned:
                self._wake_all()
        return True

    def _encode(self, call: Call) -> None:
        started = perf_counter()
        encoded = call.encode()
        with self._lock:
            self._stats.tokenise_seconds += perf_counter() - started
        self.admit(call.future, encoded)

    # -- deadlines ------------------------------------------------------------------------------

    def _watch_from(self, deadline: float) -> None:
        if not self._watched:
            self._spawn("rerank-deadlines", self._expire)
            self._watched = True
        self._next_deadline = deadline
        self._deadlines.notify()

    def _expire(self) -> bool:
        with self._lock:
            now = monotonic()
            late = [future for future, (deadline, _) in self._live.items() if deadline <= now]
            if not late:
                if self._ending(busy=self._live):
                    return False
                self._next_deadline, _ = min(self._live.values(), default=(math.inf, 0))
                seconds = min(self._next_deadline - now, threading.TIMEOUT_MAX)
                self._deadlines.wait(None if seconds == threading.TIMEOUT_MAX else seconds)
        for future in late:
            settle(future, TimeoutError("no scores within the timeout: the request was dropped"))
        return True

    # -- forwards -------------------------------------------------------------------------------

    def _serve_next(self, worker: Worker) -> bool:
        batches, tokens = self._next_batch(worker)
        if not batches:
            return False
        try:
            while batches:
                batches.extend(worker.run(batches.pop(), self._stats, self._lock))
        finally:
            with self._lock:
                self._busy -= 1
                self._tokens_running -= tokens
                self._work.notify()
        return True

    def _next_batch(self, worker: Worker) -> tuple[list[Batch], int]:
        """What *worker* is to run, nothing when it is to end, and the tokens in it."""
        with self._lock:
            while not self._queue or self._why_closed or self._tokens_running >= self._most_running:
                if self._ending(busy=self._open_calls or self._queue):
                    return [], 0
                self._work.wait()
            waiting = self._queue.tokens
            batch = self._queue.take(self._budget(worker))
            tokens = waiting - self._queue.tokens
            self._busy += 1
            self._tokens_running += tokens
            now = perf_counter()
            for request, _ in batch.parts:
                if request.first_batch():
                    self._stats.wait_seconds += now - request.arrived
            self._room.notify_all()
            if self._queue:
                self._work.notify()
        return [batch], tokens

    def _budget(self, worker: Worker) -> int:
        """The tokens *worker* may take: its share of what waits, while others are idle too."""
        idle = len(self._workers) - self._busy
        if idle < 2:
            return int(worker.budget)
        share = math.ceil(self._queue.tokens / idle)
        return int(min(worker.budget, max(share, self._min_batch_tokens)))

    # -- the end --------------------------------------------------------------------------------

    def close(self) -> None:
        """Fails what is unfinished with ClosedError, ends the threads, calls `on_close` once."""
        threads = self._close(CLOSED, None)
        if not threads:
            self._finish()
        self._fail_all()
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join()

    def abandon(self) -> None:
        """Nobody submits any more: finish what waits, then end. Returns at once, for finalizers."""
        with self._lock:
            self._abandoned = True
            self._wake_all()
            idle = not self._threads
        if idle:
            self._finish()

    def _close(self, why: str, cause: BaseException | None) -> list[threading.Thread]:
        with self._lock:
            if not self._why_closed:
                self._why_closed, self._cause = why, cause
            self._wake_all()
            return list(self._threads)

    def _fail_all(self) -> None:
        with self._lock:
            unfinished = list(self._live)
        for future in unfinished:
            settle(future, _closed_error(self._why_closed, self._cause))

    def _finish(self) -> None:
        with self._lock:
            on_close, self._on_close = self._on_close, None
            self._workers.clear()
        atexit.unregister(self.close)
        if on_close is not None:
            on_close()

    def renew(self) -> None:
        """In a forked child: forget the parent's threads, locks and requests; start over."""
        inherited = list(self._live)
        self._start_over()
        # A runtime's pool threads did not come along, and freeing its session would wait for them
        # for ever (onnxruntime does, at the latest when the interpreter ends): it is never freed.
        self._on_close = None
        ctypes.pythonapi.Py_IncRef(ctypes.py_object([worker.forward for worker in self._workers]))
        if not self._fork_safe and not self._why_closed:
            self._why_closed = FORKED_ENGINE
        if inherited:
            # Not here: a callback may want a lock of a thread that did not come along.
            telling = partial(_fail_inherited, inherited)
            threading.Thread(target=telling, name="rerank-forked", daemon=True).start()


_ENGINES: weakref.WeakSet[Engine] = weakref.WeakSet()


def _renew_all() -> None:
    for engine in list(_ENGINES):
        engine.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)


def _fail_inherited(futures: list[Future[Scores]]) -> None:
    for future in futures:
        # A thread that did not come along may have held this lock; then nobody can be told.
        if future._condition.acquire(blocking=False):
            future._condition.release()
            settle(future, ClosedError(FORKED_REQUEST))


def _closed_error(why: str, cause: BaseException | None) -> ClosedError:
    error = ClosedError(why)
    error.__cause__ = cause
    return error
