"""What is asked and what runs: tickets, requests, and the batches cut of them. Knows no threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..tokens import TokenBatch

Rows = NDArray[np.float32]
"""What a forward gives for pairs: shape (pairs,) or (pairs, labels)."""
Indices = NDArray[np.int64]
"""Pairs of a request by their index in `Request.order`, longest first; ascending."""
Progress = Callable[[int], None]

_NONE: Indices = np.zeros(0, np.int64)


class Owner(Protocol):
    """Whose tickets an engine serves: an Admission."""

    def renew(self) -> None:
        """Forget every request: this is a forked child."""
        ...

    def taken(self, request: Request, now: float) -> None:
        """A batch took pairs of *request* and begins. The engine's lock is held."""
        ...

    def settled(self, ticket: Ticket) -> None:
        """*ticket* has its end. The engine's lock is held."""
        ...

    def finish_if_idle(self) -> None:
        """After that, without the lock."""
        ...


class Ticket(Future[Rows]):
    """The Future of a request's rows, from before it is tokenised.

    `number` says when it was asked for, `deadline` is a `time.monotonic()`, `pairs` counts those
    that are reserved and not yet submitted. Once settled it has no owner, which would be kept by
    callers who keep results.
    """

    def __init__(self, owner: Owner, *, number: int, pairs: int, deadline: float) -> None:
        super().__init__()
        self.owner: Owner | None = owner
        self.number = number
        self.pairs = pairs
        self.deadline = deadline
        self.submitted = False


class Request:
    """One caller's pairs: their tokens, and the rows that forwards gave for them so far.

    `order`, int64 of shape (pairs,), holds their rows, longest pair first, and `lengths` their
    tokens in that order; both are made by `sort`. `missing` counts rows that no forward gave yet.
    """

    __slots__ = (
        "_by_length",
        "_ends",
        "_started",
        "arrived",
        "encoded",
        "lengths",
        "missing",
        "on_progress",
        "order",
        "rows",
        "ticket",
    )

    def __init__(
        self, ticket: Ticket, encoded: TokenBatch, *, on_progress: Progress | None = None
    ) -> None:
        self.ticket = ticket
        self.encoded = encoded
        self.on_progress = on_progress
        self.missing = len(encoded)
        self.order = self.lengths = _NONE
        self.rows: Rows | None = None
        self.arrived = perf_counter()
        self._started = False
        self._by_length: TokenBatch | None = None
        self._ends: list[int] = []

    def mark_started(self, now: float) -> float:
        """Note that a batch with its pairs begins; the seconds it waited, if that is the first."""
        waited = 0.0 if self._started else now - self.arrived
        self._started = True
        return waited

    def sort(self) -> None:
        """Make `order` and `lengths`, once."""
        if self.order is _NONE:
            self.order = np.argsort(-self.encoded.lengths, kind="stable")
            self.lengths = self.encoded.lengths[self.order]

    def takes(self, rows: Rows) -> bool:
        """Whether *rows* of a forward are shaped as the rows before them, if there were any."""
        return self.rows is None or self.rows.shape[1:] == rows.shape[1:]

    def write(self, indices: Indices, rows: Rows) -> None:
        """Keep *rows* for the pairs at *indices*. For one thread at a time."""
        if self.rows is None:
            self.rows = np.empty((len(self.encoded), *rows.shape[1:]), np.float32)
        self.rows[self.order[indices]] = rows

    def tokens(self, indices: Indices) -> TokenBatch:
        """The tokens of the pairs at *indices*: a view where those are neighbours."""
        if self._by_length is None:
            if len(indices) == len(self.encoded):
                self.order = indices  # all of it in one batch: the caller's order costs no copy
                return self.encoded
            by_length = self.encoded.take(self.order)
            self._ends = by_length.offsets.tolist()
            self._by_length = by_length  # last: another worker may be here at the same time
        pairs, first, last = self._by_length, int(indices[0]), int(indices[-1])
        if last - first >= len(indices):
            return pairs.take(indices)
        span = slice(self._ends[first], self._ends[last + 1])
        return TokenBatch(
            input_ids=pairs.input_ids[span],
            type_ids=pairs.type_ids[span],
            lengths=pairs.lengths[first : last + 1],
            texts=pairs.texts[first : last + 1],
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """What one forward pass is given: some pairs of each of a few requests."""

    parts: list[tuple[Request, Indices]]

    def __len__(self) -> int:
        return sum(len(indices) for _, indices in self.parts)

    def tokens(self) -> TokenBatch:
        """The pairs of all parts, one part after the other."""
        pieces = [request.tokens(indices) for request, indices in self.parts]
        return pieces[0] if len(pieces) == 1 else TokenBatch.join(pieces)

    def padded_tokens(self) -> int:
        """Its pairs, each as long as the longest."""
        longest = (int(r.encoded.lengths[r.order[indices]].max()) for r, indices in self.parts)
        return len(self) * max(longest)

    def open(self) -> Batch:
        """Without the requests that were settled (cancelled, failed) since the batch was cut."""
        return Batch([part for part in self.parts if not part[0].ticket.done()])

    def halves(self) -> list[Batch]:
        """Two batches of half the pairs each."""
        middle = len(self) // 2
        left, right = [], []
        for request, indices in self.parts:
            left.append((request, indices[:middle]))
            right.append((request, indices[middle:]))
            middle = max(0, middle - len(indices))
        return [Batch([part for part in half if len(part[1])]) for half in (left, right)]

    def only(self, pairs: NDArray[np.int64]) -> list[Batch]:
        """One batch of a single pair for each of *pairs*, counted through this batch."""
        owners = [(request, index) for request, indices in self.parts for index in indices]
        return [Batch([(owners[at][0], np.array([owners[at][1]]))]) for at in pairs]

    def row(self) -> int:
        """The row that the first pair has in its request."""
        request, indices = self.parts[0]
        return int(request.order[indices[0]])

    def spans(self) -> Iterator[tuple[Request, Indices, slice]]:
        """Its parts, and where in the batch each of them lies."""
        start = 0
        for request, indices in self.parts:
            yield request, indices, slice(start, start + len(indices))
            start += len(indices)
