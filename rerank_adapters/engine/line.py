"""The line before the queue: which requests of one admission have room there."""

from __future__ import annotations

import threading
from bisect import bisect_left, insort
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter

from ..errors import OverloadedError
from .batching import check_count
from .plan import Load
from .requests import Request, Ticket
from .stats import Snapshot

_number = attrgetter("ticket.number")


@dataclass(frozen=True, slots=True)
class Limits:
    """What may wait of one admission: pairs and tokens, None for any number.

    A request over them is taken when nothing else of the admission waits. Where one has no room,
    `block` says whether it waits in line or is refused with OverloadedError.
    """

    pairs: int | None = None
    tokens: int | None = None
    block: bool = True

    def __post_init__(self) -> None:
        check_count("max_queue_pairs", self.pairs)
        check_count("max_queue_tokens", self.tokens)


class Line:
    """Requests that wait for room in the queue, the first to ask first.

    The engine's lock guards it. `load` is what the admission has in the queue, which counts it.
    A request that comes in parts has room for all of them from the first on.
    """

    def __init__(
        self, lock: threading.RLock, limits: Limits, enqueue: Callable[[Request, Load], None]
    ) -> None:
        """*enqueue* puts a request into the queue, to be counted in the `load` given with it."""
        self.load = Load()
        self._limits = limits
        self._enqueue = enqueue
        self._room = threading.Condition(lock)
        self._reserved_pairs = 0
        self._waiting: list[Request] = []  # by their tickets' numbers
        self._coming: dict[Ticket, tuple[int, int]] = {}  # pairs, and the most tokens of each

    @property
    def pairs(self) -> int:
        """What counts against the limit: pairs that wait and, if nobody blocks, reserved ones."""
        # Else requests that are ready would wait for those that are still to be prepared.
        reserved = 0 if self._limits.block else self._reserved_pairs
        return self.load.pairs + reserved + sum(pairs for pairs, _ in self._coming.values())

    @property
    def tokens(self) -> int:
        """What counts against the limit: tokens that wait, and the most that may still come."""
        return self.load.tokens + sum(pairs * most for pairs, most in self._coming.values())

    def fits(self, pairs: int, tokens: int) -> bool:
        """Whether so much more may wait."""
        limits = self._limits
        if limits.pairs is None and limits.tokens is None:
            return True
        waiting = self.pairs
        if not waiting:
            return True  # a request larger than the limits must be served too
        return (limits.pairs is None or waiting + pairs <= limits.pairs) and (
            limits.tokens is None or self.tokens + tokens <= limits.tokens
        )

    def overload(self, pairs: int, seconds: float) -> OverloadedError:
        """The error for a request of so many *pairs*, to be tried again in about *seconds*."""
        limits = self._limits
        return OverloadedError(
            f"the queue is full: it holds {self.pairs} pairs of {self.tokens} tokens, the "
            f"request brings {pairs} pairs, max_queue_pairs is {limits.pairs} and "
            f"max_queue_tokens {limits.tokens}: retry in about {seconds:.2f} s",
            retry_after=seconds,
        )

    def snapshot(self) -> Snapshot:
        """What waits in the queue, and in line for it."""
        return {
            "queue_requests": self.load.requests,
            "queue_pairs": self.load.pairs,
            "queue_tokens": self.load.tokens,
            "parked": len(self._waiting),
        }

    def reserve(self, ticket: Ticket) -> None:
        """Keep room for the pairs of *ticket*."""
        self._reserved_pairs += ticket.pairs

    def release(self, ticket: Ticket) -> None:
        """Keep it no longer."""
        self._reserved_pairs -= ticket.pairs
        ticket.pairs = 0

    def open(self, ticket: Ticket, pairs: int, most_tokens: int) -> bool:
        """Keep room for *pairs* that come in parts, if there is room now; whether there is.

        Each counts as *most_tokens* until it is here.
        """
        own = ticket.pairs
        self.release(ticket)
        if self._waiting or not self.fits(pairs, pairs * most_tokens):
            ticket.pairs = own
            self.reserve(ticket)
            return False
        self._coming[ticket] = (pairs, most_tokens)
        return True

    def add(self, request: Request) -> None:
        """Let one part of what was opened into the queue; it counts by its tokens from now on."""
        pairs, most = self._coming.pop(request.ticket)
        if pairs > len(request.encoded):
            self._coming[request.ticket] = (pairs - len(request.encoded), most)
        self._enqueue(request, self.load)
        self.advance()

    def try_enter(self, request: Request) -> bool:
        """Let *request* into the queue, past the line, if it fits; whether it does."""
        if not self._has_room(request):
            return False
        self._enqueue(request, self.load)
        return True

    def go_on(self, request: Request) -> None:
        """Let more of a caller that was let in into the queue: it is not held up again."""
        self._enqueue(request, self.load)

    def join(self, request: Request) -> None:
        """Let *request* into the queue at its turn, which may be now."""
        if not self._waiting and self.try_enter(request):
            return
        insort(self._waiting, request, key=_number)
        self.advance()

    def wait(self, ticket: Ticket) -> None:
        """Block until *ticket*'s request is in the queue, or has its end."""
        while self._holds(ticket):
            self._room.wait()

    def advance(self) -> None:
        """Let requests from the head of the line into the queue, as far as they fit.

        Turns go by when tickets were reserved, not by when they were submitted: few threads
        prepare all async calls, which would join the line one by one, behind sync ones.
        """
        before = len(self._waiting)
        while self._waiting:
            request = self._waiting[0]
            if not request.ticket.done():  # else `leave` is about to be called
                if not self._has_room(request):
                    break
                self._enqueue(request, self.load)
            del self._waiting[0]
        if len(self._waiting) < before:
            self._room.notify_all()

    def leave(self, ticket: Ticket) -> None:
        """Forget *ticket*, which has its end; its room is another's."""
        self.release(ticket)
        self._coming.pop(ticket, None)
        if not self._waiting:
            return
        if self._holds(ticket):
            del self._waiting[self._index(ticket)]
            self._room.notify_all()
        self.advance()

    def _has_room(self, request: Request) -> bool:
        return self.fits(len(request.encoded), request.encoded.tokens)

    def _index(self, ticket: Ticket) -> int:
        return bisect_left(self._waiting, ticket.number, key=_number)

    def _holds(self, ticket: Ticket) -> bool:
        index = self._index(ticket)
        return index < len(self._waiting) and self._waiting[index].ticket is ticket
