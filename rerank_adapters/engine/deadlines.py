"""The end of requests whose time is up."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Collection
from time import monotonic

from ..futures import settle
from .crew import Crew
from .requests import Ticket


class Deadlines:
    """Fails tickets with TimeoutError at their deadline. One thread, from the first deadline on."""

    def __init__(
        self,
        lock: threading.RLock,
        tickets: Collection[Ticket],
        crew: Crew,
        is_ending: Callable[[], bool],
    ) -> None:
        """Watch the unfinished *tickets*, in a thread of *crew* that leaves when *is_ending*."""
        self._lock = lock
        self._tickets = tickets
        self._crew = crew
        self._is_ending = is_ending
        self._sooner = threading.Condition(lock)
        self._next = math.inf
        self._watched = False

    def watch(self, deadline: float) -> None:
        """Have the thread wake at *deadline* at the latest. The lock is held."""
        if deadline >= self._next:
            return
        self._next = deadline
        if not self._watched:
            self._crew.spawn("rerank-deadlines", self._expire)
            self._watched = True
        self._sooner.notify()

    def wake(self) -> None:
        """Look again whether all is ending. The lock is held."""
        self._sooner.notify_all()

    def _expire(self) -> bool:
        """Wait for the next deadline, or fail those whose deadline has passed."""
        with self._lock:
            now = monotonic()
            late = [ticket for ticket in self._tickets if ticket.deadline <= now]
            if not late:
                if self._is_ending():
                    return False
                self._next = min((it.deadline for it in self._tickets), default=math.inf)
                seconds = self._next - now
                # No timeout where it is beyond what a thread can wait for.
                self._sooner.wait(seconds if seconds < threading.TIMEOUT_MAX else None)
        for ticket in late:
            settle(ticket, TimeoutError("no scores within the timeout: the request was dropped"))
        return True
