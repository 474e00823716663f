"""What waits and what runs: requests, and the batches cut from them. Knows no threads."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from ..values import Scores, TokenBatch

Places = NDArray[np.int64]
"""Rows of a request by their place in its order, longest first; ascending."""
_NO_PLACES: Places = np.zeros(0, np.int64)
_UNSORTED: Places = np.zeros((2, 0), np.int64)


class Request:
    """One caller's pairs: their tokens, the scores so far, and what still waits for a batch.

    `order` holds its rows, longest pair first. `waiting`, int64 of shape (2, pairs), holds places
    in that order and under them their lengths; it may lag behind `left` and `tokens`, which count
    what no batch took yet. `unscored` counts rows without a score, `passes` batches that served
    someone younger.
    """

    __slots__ = (
        "_by_length",
        "_ends",
        "_waited",
        "arrived",
        "encoded",
        "future",
        "left",
        "longest",
        "order",
        "passes",
        "scores",
        "tokens",
        "unscored",
        "waiting",
    )

    def __init__(self, future: Future[Scores], encoded: TokenBatch) -> None:
        self.future = future
        self.encoded = encoded
        self.left = self.unscored = len(encoded)
        self.tokens = len(encoded.input_ids)
        self.longest = int(encoded.lengths.max(initial=1))
        self.order: Places = _NO_PLACES
        self.waiting = _UNSORTED
        self.scores: Scores = np.empty(self.left, np.float32)
        self.passes = 0
        self._waited = False
        self._by_length: TokenBatch | None = None
        self._ends: list[int] = []
        self.arrived = perf_counter()

    def first_batch(self) -> bool:
        """True the first time it is asked."""
        first, self._waited = not self._waited, True
        return first

    def sort(self) -> None:
        """Makes `order` and `waiting`, once."""
        if self.waiting is _UNSORTED:
            self.order = np.argsort(-self.encoded.lengths, kind="stable")
            self.waiting = np.array((np.arange(self.left), self.encoded.lengths[self.order]))

    def longest_rows(self, max_tokens: int) -> tuple[int, int]:
        """How many waiting rows, longest first and at least one, hold *max_tokens*; their tokens.

        Needs a `waiting` that is sorted and does not lag.
        """
        if self.tokens <= max_tokens:
            return self.left, self.tokens
        sums = np.cumsum(self.waiting[1, : max(1, max_tokens)])
        count = max(1, int(np.searchsorted(sums, max_tokens, side="right")))
        return count, int(sums[count - 1])

    def at(self, places: Places) -> TokenBatch:
        """The tokens of the pairs at *places*: a view where those lie together."""
        if self._by_length is None:
            if len(places) == len(self.encoded):
                self.order = places  # served whole: its own order costs no copy
                return self.encoded
            by_length = self.encoded.take(self.order)
            self._ends = by_length.offsets.tolist()
            self._by_length = by_length  # last: another worker may be here at the same time
        rows, first, last = self._by_length, int(places[0]), int(places[-1])
        if last - first >= len(places):
            return rows.take(places)
        span = slice(self._ends[first], self._ends[last + 1])
        return TokenBatch(
            input_ids=rows.input_ids[span],
            type_ids=rows.type_ids[span],
            lengths=rows.lengths[first : last + 1],
            texts=rows.texts[first : last + 1],
        )


def settle(future: Future[Scores], outcome: Scores | BaseException) -> None:
    """Gives *future* its end, unless it was cancelled or timed out a moment ago."""
    try:
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
    except InvalidStateError:
        pass


@dataclass(frozen=True, slots=True)
class Batch:
    """What one forward pass scores: for each request in it, the places taken."""

    parts: list[tuple[Request, Places]]

    def __len__(self) -> int:
        return sum(len(places) for _, places in self.parts)

    def tokens(self) -> TokenBatch:
        """The pairs of all parts, one part after the other."""
        pieces = [request.at(places) for request, places in self.parts]
        return pieces[0] if len(pieces) == 1 else TokenBatch.join(pieces)

    def padded_tokens(self) -> int:
        """Its pairs, each as long as the longest."""
        longest = (int(r.encoded.lengths[r.order[at]].max()) for r, at in self.parts)
        return len(self) * max(longest)

    def open(self) -> Batch:
        """Without the requests that were settled (cancelled, failed) since the batch was cut."""
        return Batch([part for part in self.parts if not part[0].future.done()])

    def halves(self) -> list[Batch]:
        """Two batches of half the pairs each."""
        middle = len(self) // 2
        left, right = [], []
        for request, places in self.parts:
            left.append((request, places[:middle]))
            right.append((request, places[middle:]))
            middle = max(0, middle - len(places))
        return [Batch([part for part in half if len(part[1])]) for half in (left, right)]

    def only(self, positions: NDArray[np.int64]) -> list[Batch]:
        """One batch of a single pair for each of *positions* in this batch."""
        owners = [(request, place) for request, places in self.parts for place in places]
        return [Batch([(owners[at][0], np.array([owners[at][1]]))]) for at in positions]

    def row(self) -> int:
        """Which row of its request the first pair is."""
        request, places = self.parts[0]
        return int(request.order[places[0]])

    def split_scores(self, scores: Scores) -> Iterator[tuple[Request, NDArray[np.int64], Scores]]:
        """The batch's scores, shape (pairs,), dealt back: each request, its rows, their scores."""
        start = 0
        for request, places in self.parts:
            yield request, request.order[places], scores[start : start + len(places)]
            start += len(places)
