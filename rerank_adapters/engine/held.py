"""Hidden states between parts of a network: who may keep them, and how many bytes in all."""

from __future__ import annotations

import heapq
import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

MOST_BYTES = 256 << 20
"""Hidden states that the queries of one engine keep at once; one query alone may need more."""


class HeldStates:
    """Room for the hidden states of queries that are between parts; safe for threads.

    A query enters with the most bytes that it may keep, the first to ask first, and one always may
    be in. `bytes` are those really kept now; batches that run have theirs beside them.
    """

    def __init__(self, most: int = MOST_BYTES) -> None:
        self.most = most
        self.bytes = 0
        self._reserved = 0
        self._lock = threading.RLock()  # re-entered when garbage collection runs a callback
        self._waiting: deque[tuple[int, Callable[[], None]]] = deque()

    def enter(self, size: int, later: Callable[[], None]) -> bool:
        """Reserve *size* bytes now; False: *later* is called once they are reserved."""
        with self._lock:
            if self._waiting or not self._fits(size):
                self._waiting.append((size, later))
                return False
            self._reserved += size
            return True

    def leave(self, size: int) -> None:
        """Give *size* bytes back, and let those in who fit now."""
        begin = []
        with self._lock:
            self._reserved -= size
            while self._waiting and self._fits(self._waiting[0][0]):
                more, later = self._waiting.popleft()
                self._reserved += more
                begin.append(later)
        for later in begin:
            later()

    def count(self, size: int) -> None:
        """So many bytes more are kept, or fewer."""
        with self._lock:
            self.bytes += size

    def _fits(self, size: int) -> bool:
        return not self._reserved or self._reserved + size <= self.most


class Contest:
    """One query's candidates, in rounds: the *keeps* of each with the highest exit logits go on.

    Ties go by row. Only their states are kept, and no more of them at any time than go on from the
    first round, however many there are. *on_complete* is called after each round, in a worker, when
    every candidate of it has run its part; it gathers nothing but what goes on.
    """

    def __init__(
        self,
        rows: Sequence[int],
        keeps: Sequence[int],
        *,
        room: HeldStates,
        size: int,
        on_complete: Callable[[Contest], None],
    ) -> None:
        """*size* is the most bytes that as many candidates take as go on from the first round."""
        self.entries = tuple(Entry(self, row) for row in rows)
        self.size = size
        self.lock = threading.RLock()
        self.room = room
        self._keeps = list(keeps)
        self._on_complete = on_complete
        self._missing = len(rows)
        self._going = self._keeps[-1]
        self._best: list[tuple[float, int, Entry]] = []
        self._inside = False
        self._closed = False

    def open(self) -> bool:
        """It has its room from now on; False, and the room given back, where it was closed."""
        with self.lock:
            self._inside = not self._closed
        if not self._inside:
            self.room.leave(self.size)
        return self._inside

    def offer(self, entry: Entry, logit: float, states: Any) -> None:
        """Take one candidate's part, once a round; the weakest of more than go on loses its own."""
        with self.lock:
            if self._closed or entry.seen or not math.isfinite(logit):
                return
            entry.seen = True
            entry.drop()
            entry.states = states
            self.room.count(states.nbytes)
            heapq.heappush(self._best, (logit, -entry.row, entry))
            if len(self._best) > self._keeps[0]:
                heapq.heappop(self._best)[2].drop()
            self._missing -= 1
            complete = not self._missing
        if complete:
            self._on_complete(self)

    def next_round(self) -> list[Entry]:
        """Those who go on, by row: the candidates of the next round, where there is one."""
        with self.lock:
            going = sorted((entry for _, _, entry in self._best), key=lambda it: it.row)
            self._best.clear()
            if len(self._keeps) > 1:
                del self._keeps[0]
                self._missing = len(going)
                for entry in going:
                    entry.seen = False
            return going

    def left(self, entry: Entry) -> None:
        """One of those who went on is through; the last one gives the room back."""
        with self.lock:
            if entry.states is None:
                return
            entry.drop()
            self._going -= 1
            through = not self._going
        if through:
            self.close()

    def close(self) -> None:
        """Free what it keeps, however far it came. Idempotent."""
        with self.lock:
            if self._closed:
                return
            self._closed = True
            inside, self._inside = self._inside, False
            for entry in self.entries:
                entry.drop()
            self._best.clear()
        if inside:
            self.room.leave(self.size)


class Entry:
    """One candidate of a Contest, and its states while they are kept; a `Held`."""

    __slots__ = ("contest", "row", "seen", "states")

    def __init__(self, contest: Contest, row: int) -> None:
        self.contest = contest
        self.row = row
        self.seen = False
        self.states: Any = None

    def offer(self, logit: float, states: Any) -> None:
        """Take what a part made of it."""
        self.contest.offer(self, logit, states)

    def leave(self) -> None:
        """The last part has run."""
        self.contest.left(self)

    def drop(self) -> None:
        """Free its states. The contest's lock is held."""
        if self.states is not None:
            self.contest.room.count(-self.states.nbytes)
            self.states = None
