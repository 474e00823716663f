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
from .pairs import Pairs, Views, together

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


class Answer:
    """One caller's rows, as far as forwards gave them; its pairs may come in several requests.

    `missing` counts rows that no forward gave yet, `arrived` is when the first pairs were queued,
    `started` whether a batch took any.
    """

    __slots__ = ("arrived", "missing", "on_progress", "pairs", "rows", "started", "ticket")

    def __init__(self, ticket: Ticket, pairs: int, *, on_progress: Progress | None = None) -> None:
        self.ticket = ticket
        self.pairs = pairs
        self.missing = pairs
        self.on_progress = on_progress
        self.rows: Rows | None = None
        self.arrived: float | None = None
        self.started = False

    def mark_started(self, now: float) -> float:
        """Note that a batch with its pairs begins; the seconds it waited, if that is the first."""
        waited = 0.0 if self.started or self.arrived is None else now - self.arrived
        self.started = True
        return waited

    def takes(self, rows: Rows) -> bool:
        """Whether *rows* of a forward are shaped as the rows before them, if there were any."""
        return self.rows is None or self.rows.shape[1:] == rows.shape[1:]


class Request:
    """Pairs of one caller that came together: their tokens, and which of its pairs they are.

    `numbers`, int64 of shape (pairs,), counts through all pairs of the caller. `order`, of the same
    shape, holds rows of `encoded`, longest pair first, and `lengths` their tokens in that order;
    both are made by `sort`.
    """

    __slots__ = ("answer", "encoded", "lengths", "numbers", "order")

    def __init__(
        self,
        answer: Answer,
        encoded: TokenBatch | Pairs,
        numbers: NDArray[np.int64] | None = None,
    ) -> None:
        """*numbers* None: all that the caller brings, in its order."""
        self.answer = answer
        self.encoded = encoded if isinstance(encoded, Pairs) else Pairs.of(encoded)
        self.numbers = np.arange(len(encoded)) if numbers is None else numbers
        self.order = self.lengths = _NONE
        if answer.arrived is None:
            answer.arrived = perf_counter()

    @property
    def ticket(self) -> Ticket:
        """The Future of the caller's rows."""
        return self.answer.ticket

    def joined(self, left: Indices, more: Request) -> Request:
        """One request of the pairs at *left* and of those that came now, of the same caller."""
        self.sort()
        rows = self.order[left]
        return Request(
            self.answer,
            self.encoded.joined(rows, more.encoded),
            np.concatenate((self.numbers[rows], more.numbers)),
        )

    def sort(self) -> None:
        """Make `order` and `lengths`, once."""
        if self.order is _NONE:
            order = np.argsort(-self.encoded.lengths, kind="stable")
            self.lengths = self.encoded.lengths[order]
            self.order = order

    def write(self, indices: Indices, rows: Rows) -> None:
        """Keep *rows* for the pairs at *indices*. For one thread at a time."""
        answer = self.answer
        if answer.rows is None:
            answer.rows = np.empty((answer.pairs, *rows.shape[1:]), np.float32)
        answer.rows[self.numbers[self.order[indices]]] = rows

    def views(self, indices: Indices) -> Views:
        """The tokens of the pairs at *indices*, not copied."""
        if len(indices) == len(self.encoded):
            self.order = indices  # all of it in one batch: the caller's order costs no copy
        return self.encoded.views(self.order[indices])


@dataclass(frozen=True, slots=True)
class Batch:
    """What one forward pass is given: some pairs of each of a few requests."""

    parts: list[tuple[Request, Indices]]

    def __len__(self) -> int:
        return sum(len(indices) for _, indices in self.parts)

    def tokens(self) -> TokenBatch:
        """The pairs of all parts, one part after the other."""
        return together([request.views(indices) for request, indices in self.parts])

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

    def first(self) -> tuple[int, int]:
        """Which of its caller's pairs the first one is, and its tokens."""
        request, indices = self.parts[0]
        row = request.order[indices[0]]
        return int(request.numbers[row]), int(request.encoded.lengths[row])

    def spans(self) -> Iterator[tuple[Request, Indices, slice]]:
        """Its parts, and where in the batch each of them lies."""
        start = 0
        for request, indices in self.parts:
            yield request, indices, slice(start, start + len(indices))
            start += len(indices)
