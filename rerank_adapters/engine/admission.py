"""One caller's door to an engine: its limits, its line, its unfinished requests."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ClosedError, OverloadedError
from ..futures import preparing, settle
from ..tokens import TokenBatch
from .batching import check_count
from .ending import CLOSED
from .engine import Engine
from .held import HeldStates
from .line import Limits, Line
from .requests import Answer, Progress, Request, Rows, Ticket
from .stats import RequestStats, Snapshot

__all__ = ["Admission", "Limits"]

UNLIMITED = Limits()


class Admission:
    """One caller's door to an engine that several may share.

    A request is a ticket first, which fails as the request would, at its deadline or by close; it
    is to be submitted or cancelled. Safe to use from any thread. Callbacks of tickets run in a
    worker, which they hold up: they may submit more, but not wait for it.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        limits: Limits = UNLIMITED,
        max_batch_tokens: int | None = None,
        ends_engine: bool = True,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        """Batches with pairs of this admission hold at most *max_batch_tokens* padded tokens.

        With *ends_engine* closing it closes the engine. *on_close* is called once, when it is
        closed and has no unfinished request.
        """
        check_count("max_batch_tokens", max_batch_tokens)
        self._engine = engine
        self._limits = limits
        self._max_batch_tokens = max_batch_tokens
        self._ends_engine = ends_engine
        self._on_close = on_close
        self._closed = False
        self._stats = RequestStats()
        self.renew()
        engine.owners.add(self)

    # -- requests: any thread -----------------------------------------------------------------

    def reserve(self, pairs: int, deadline: float | None) -> Future[Rows]:
        """A ticket for a request of so many *pairs* that is still to be tokenised.

        *deadline* is a `time.monotonic()` or None. Raises ClosedError; OverloadedError where the
        pairs do not fit and the limits say not to block.
        """
        until = math.inf if deadline is None else deadline
        with self._engine.lock:
            self._engine.ending.check()
            if self._closed:
                raise ClosedError(CLOSED)
            if not (self._limits.block or self._line.fits(pairs, 0)):
                raise self._overload(pairs)
            self._stats.requests += 1
            ticket = Ticket(self, number=self._stats.requests, pairs=pairs, deadline=until)
            self._line.reserve(ticket)
            self._engine.register(ticket)
        return ticket

    def used(self, ticket: Future[Any]) -> bool:
        """Whether *ticket* can be submitted no more: it was, has its end, or is not from here."""
        if not isinstance(ticket, Ticket) or ticket.owner is not self:
            return True
        return ticket.submitted or ticket.done()

    def submit(
        self,
        encoded: TokenBatch,
        *,
        ticket: Future[Rows],
        tokenise_seconds: float = 0.0,
        on_progress: Progress | None = None,
    ) -> Future[Rows]:
        """Queue the pairs that *ticket* was reserved for; it becomes the Future of their rows.

        Rows are float32 of shape (pairs,) or (pairs, labels), order kept; of no pairs (0,). A
        ticket that has its end already is returned as it is; a second use raises RuntimeError.
        Where the queue is full, this blocks or raises OverloadedError, as limits say; in a
        preparing thread, which serves everybody, the request waits and the thread goes on; in a
        worker, which would wait for itself, it raises. *on_progress* is called by workers with the
        number of rows just done; what it raises fails the request.
        """
        with self._engine.lock:
            own = self._use(ticket)
            self._stats.tokenise_seconds += tokenise_seconds
        if not len(encoded):
            settle(own, np.empty(0, np.float32))
            return own
        try:
            self._admit(Request(Answer(own, len(encoded), on_progress=on_progress), encoded))
        except BaseException:
            own.cancel()
            raise
        return own

    def open(
        self,
        ticket: Future[Rows],
        *,
        pairs: int,
        most_tokens: int,
        on_progress: Progress | None = None,
    ) -> Answer | None:
        """Admit so many *pairs*, of *most_tokens* each at the most, whose tokens `add` brings.

        *ticket* becomes the Future of their rows, as `submit` has it. None where they have no room
        at once, or the ticket its end: then *ticket* is as it was.
        """
        with self._engine.lock:
            if ticket.done() or self.used(ticket) or not isinstance(ticket, Ticket):
                return None
            if not self._line.open(ticket, pairs, most_tokens):
                return None
            return Answer(self._use(ticket), pairs, on_progress=on_progress)

    def add(
        self,
        answer: Answer,
        encoded: TokenBatch,
        numbers: NDArray[np.int64],
        *,
        tokenise_seconds: float = 0.0,
    ) -> None:
        """Queue the pairs *numbers* of what was opened; never blocks. Nothing after its end."""
        with self._engine.lock:
            self._stats.tokenise_seconds += tokenise_seconds
            if not answer.ticket.done():
                self._line.add(Request(answer, encoded, numbers))

    def begin(
        self,
        ticket: Future[Rows],
        rows: int,
        *,
        tokenise_seconds: float = 0.0,
        on_progress: Progress | None = None,
    ) -> Answer:
        """Let *ticket* become the Future of so many *rows*, of pairs that come in parts.

        The first part comes by `admit`, as `submit` would let it in; the others by `go_on`.
        """
        with self._engine.lock:
            self._stats.tokenise_seconds += tokenise_seconds
            return Answer(self._use(ticket), rows, on_progress=on_progress)

    def admit(self, answer: Answer, encoded: TokenBatch, numbers: NDArray[np.int64]) -> None:
        """Queue the rows *numbers* of what was begun; blocks and raises as `submit` does."""
        self._admit(Request(answer, encoded, numbers))

    def go_on(self, answer: Answer, encoded: TokenBatch, numbers: NDArray[np.int64]) -> None:
        """Queue more rows of what was begun and let in; never blocks. Nothing after its end."""
        with self._engine.lock:
            if not answer.ticket.done():
                self._line.go_on(Request(answer, encoded, numbers))

    def _use(self, ticket: Future[Rows]) -> Ticket:
        """*ticket* itself, for the first time."""
        if not isinstance(ticket, Ticket) or not (ticket.owner is self or ticket.done()):
            raise RuntimeError(f"a ticket of this admission is needed: got {ticket!r}")
        if ticket.submitted:
            raise RuntimeError("a ticket is good for one request, and this one had its own")
        ticket.submitted = True
        return ticket

    def _admit(self, request: Request) -> None:
        ticket = request.ticket
        with self._engine.lock:
            if ticket.done():
                return
            self._line.release(ticket)  # and take the room at once, that nobody else may
            if self._limits.block and not self.serving():
                self._line.join(request)
                if not preparing():
                    self._line.wait(ticket)
                return
            if self._line.try_enter(request):
                return
            rejected = self._overload(len(request.encoded))
            self._engine.forget(ticket)
        settle(ticket, rejected)  # for those who know the ticket alone
        raise rejected

    def _overload(self, pairs: int) -> OverloadedError:
        """The error for a request of so many *pairs*; counts it. The lock is held."""
        self._stats.rejected += 1
        return self._line.overload(pairs, self._engine.dispatch.seconds_until_served())

    @property
    def held(self) -> HeldStates:
        """The room that all admissions of the engine have for hidden states."""
        return self._engine.held

    def serving(self) -> bool:
        """Whether the calling thread is a worker: it runs the callbacks of what it scored."""
        return self._engine.dispatch.serving()

    def stats(self) -> Snapshot:
        """A snapshot: what waits now, and sums since the start (seconds, pairs, tokens, batches).

        `queue_…` is what waits for a batch; `parked` are requests that wait for room there,
        `preparing` those not submitted yet, `unfinished` all that have no end. What forwards did is
        counted for the whole engine: `batch_sizes` maps 1, 2, 4, … to batches of at most so many
        pairs, `max_batch_tokens` is what memory allows now, `splits` counts batches halved for
        memory, `retries` batches halved for an error and pairs tried again alone; `held_bytes` are
        the hidden states that an early exit keeps now, of `max_held_bytes`.
        """
        with self._engine.lock:
            own = self._unfinished()
            forwards = self._engine.dispatch.snapshot()
            most = forwards["max_batch_tokens"]
            return {
                **self._line.snapshot(),
                "preparing": sum(not ticket.submitted for ticket in own),
                "unfinished": len(own),
                **forwards,
                "max_batch_tokens": min(most, self._max_batch_tokens or most),
                "held_bytes": self._engine.held.bytes,
                "max_held_bytes": self._engine.held.most,
                **self._stats.snapshot(),
            }

    # -- events of the engine: its lock is held -------------------------------------------------

    def renew(self) -> None:
        """Forget every request: at first, and in a forked child, whose locks are new."""
        enqueue = partial(self._engine.enqueue, max_batch_tokens=self._max_batch_tokens)
        self._line = Line(self._engine.lock, self._limits, enqueue)

    def taken(self, request: Request, now: float) -> None:
        """A batch took pairs of *request*: there may be room for others."""
        self._stats.wait_seconds += request.answer.mark_started(now)
        self._line.advance()

    def settled(self, ticket: Ticket) -> None:
        """*ticket* has its end."""
        self._stats.count_settled(ticket)
        self._line.leave(ticket)

    def _unfinished(self) -> list[Ticket]:
        return [ticket for ticket in self._engine.unfinished if ticket.owner is self]

    # -- the end ------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether it takes no more requests: closed, or its engine is, broke or was forked."""
        return self._closed or self._engine.closed

    def close(self, *, wait: bool = True) -> None:
        """Fail what is unfinished with ClosedError; take no more. Closing again does nothing.

        wait=False lets what is unfinished finish, and returns at once: for finalizers, which run
        in any thread at any time.
        """
        with self._engine.lock:
            self._closed = True
            unfinished = self._unfinished()
        if self._ends_engine:
            (self._engine.close if wait else self._engine.abandon)()
        elif wait:
            for ticket in unfinished:
                settle(ticket, ClosedError(CLOSED))
        self.finish_if_idle()

    def finish_if_idle(self) -> None:
        """Call `on_close`, once, if it is closed and nothing is unfinished."""
        if not self._closed:
            return
        with self._engine.lock:
            if self._unfinished():
                return
            on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close()
