"""Futures put together, waited for, and the few threads in which async calls are prepared.

Preparing is what comes before a queue: a look into a cache, tokenising, a next stage. Sync callers
do it in their own thread; for async ones it happens here, off the event loop, in their context.
"""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from time import monotonic
from typing import Any, TypeVar

Result = TypeVar("Result")
Other = TypeVar("Other")

PREPARING_THREADS = 2
"""More would compete with the forwards they feed, for tokenising uses every CPU by itself."""

GRACE_SECONDS = 0.25
"""A queue ends late requests itself and counts them; a wait ends only what a queue missed."""


def done(result: Result) -> Future[Result]:
    """A Future that has *result* already."""
    future: Future[Result] = Future()
    future.set_result(result)
    return future


def settle(future: Future[Any], outcome: object) -> None:
    """Give *future* its end, an exception or a result, unless it has one already."""
    try:
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
    except InvalidStateError:
        pass


def then(inner: Future[Other], finish: Callable[[Other], Result]) -> Future[Result]:
    """A Future of *finish* of *inner*'s result; cancelling it cancels *inner*.

    *finish* runs in whichever thread ends *inner*, mostly a worker: it gathers arrays, no more.
    """
    outer: Future[Result] = opened()
    _follow(outer, inner, finish)
    return outer


def prepare(work: Callable[[], Future[Result]], *, ticket: Future[Any] | None) -> Future[Result]:
    """Run *work* in the preparing threads, in this context: a Future of what its Future brings.

    Where *ticket* fails, because the queue closed or the deadline passed, so does the result, at
    once; where the result is cancelled, so is *ticket*, and what has not begun never runs.
    """
    outer: Future[Result] = opened()
    if ticket is not None:
        _bind(outer, ticket)
    context = contextvars.copy_context()

    def task() -> None:
        if outer.done():
            return
        try:
            inner = context.run(work)
        except BaseException as error:  # noqa: BLE001  # the waiter's to raise
            settle(outer, error)
        else:
            _follow(outer, inner, lambda result: result)

    _POOL.add(task)
    return outer


def preparing() -> bool:
    """Whether this is a preparing thread, which serves everybody and so must not block."""
    return getattr(_HERE, "preparing", False)


def wait(future: Future[Result], deadline: float | None) -> Result:
    """*future*'s result; whatever ends the wait, Ctrl-C too, cancels it.

    TimeoutError when *deadline*, a `time.monotonic()`, has passed.
    """
    try:
        return future.result(_seconds_left(deadline))
    except BaseException as error:
        if isinstance(error, TimeoutError) and not future.done():
            error = _late()
        future.cancel()
        raise error from error.__cause__


async def wait_async(future: Future[Result], deadline: float | None) -> Result:
    """`wait`, awaited."""
    try:
        async with asyncio.timeout(_seconds_left(deadline)):
            return await asyncio.wrap_future(future)
    except TimeoutError:
        if future.done() and not future.cancelled():
            raise
        raise _late() from None


def _seconds_left(deadline: float | None) -> float | None:
    if deadline is None:
        return None
    return min(max(0.0, deadline - monotonic()) + GRACE_SECONDS, threading.TIMEOUT_MAX)


def _late() -> TimeoutError:
    return TimeoutError("no scores within the timeout: the request was dropped")


def opened() -> Future[Any]:
    """A Future that wakes `concurrent.futures.wait` where it is cancelled."""
    future: Future[Any] = Future()
    future.add_done_callback(
        lambda ended: ended.set_running_or_notify_cancel() if ended.cancelled() else None
    )
    return future


def _follow(outer: Future[Result], inner: Future[Other], finish: Callable[[Other], Result]) -> None:
    """Give *outer* the end of *inner*, through *finish*; cancelling *outer* cancels *inner*."""

    def pass_on(ended: Future[Other]) -> None:
        if outer.done():
            return
        try:
            settle(outer, finish(ended.result()))
        except BaseException as error:  # noqa: BLE001  # the waiter's to raise
            settle(outer, error)

    outer.add_done_callback(lambda ended: inner.cancel() if ended.cancelled() else None)
    inner.add_done_callback(pass_on)


def _bind(outer: Future[Any], ticket: Future[Any]) -> None:
    def fail(ended: Future[Any]) -> None:
        if ended.cancelled():
            outer.cancel()
        elif (error := ended.exception()) is not None:
            settle(outer, error)

    outer.add_done_callback(lambda _: ticket.cancel())  # does nothing to one that has its end
    ticket.add_done_callback(fail)


class _Pool:
    """Threads that live as long as there is something to prepare, and no longer."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tasks: deque[Callable[[], None]] = deque()
        self._threads: set[threading.Thread] = set()
        self._ended = False

    def add(self, task: Callable[[], None]) -> None:
        with self._lock:
            if self._ended:
                raise RuntimeError("the interpreter is ending: nothing can be prepared any more")
            self._tasks.append(task)
            if len(self._threads) < PREPARING_THREADS:
                thread = threading.Thread(target=self._serve, name="rerank-prepare", daemon=True)
                self._threads.add(thread)
                thread.start()

    def _serve(self) -> None:
        _HERE.preparing = True
        while True:
            with self._lock:
                if not self._tasks:
                    self._threads.discard(threading.current_thread())
                    return
                task = self._tasks.popleft()
            task()
            del task  # it holds texts

    def end(self) -> None:
        """At exit: a thread that is inside a tokenizer then would abort the process."""
        with self._lock:
            self._ended = True
            self._tasks.clear()
            threads = list(self._threads)
        for thread in threads:
            thread.join()


_HERE = threading.local()
_POOL = _Pool()


def _renew() -> None:
    """In a forked child: its threads did not come along, its tasks are the parent's."""
    global _POOL
    _POOL = _Pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
atexit.register(lambda: _POOL.end())
