"""The queue's data: requests, the batches cut from them, and whose turn it is. Knows no threads."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from ..batching import iterate_batches
from ..values import Scores, TokenBatch

Rows = NDArray[np.int64]


class Request:
    """One caller's pairs: their tokens, the scores so far, and which rows still wait for a batch.

    `waiting`, int64 of shape (2, rows), holds rows, longest pair first, and under them their
    lengths; it and its sum of `tokens` shrink as batches are cut. `unscored` counts rows without a
    score, `passes` batches that served someone younger.
    """

    __slots__ = (
        "_offsets",
        "_waited",
        "arrived",
        "encoded",
        "future",
        "passes",
        "scores",
        "tokens",
        "unscored",
        "waiting",
    )

    def __init__(self, future: Future[Scores], encoded: TokenBatch) -> None:
        self.future = future
        self.encoded = encoded
        rows = np.argsort(-encoded.lengths, kind="stable")
        self.waiting: Rows = np.array((rows, encoded.lengths[rows]))
        self.tokens = int(encoded.lengths.sum())
        self.scores: Scores = np.empty(len(encoded), np.float32)
        self.unscored = len(encoded)
        self.passes = 0
        self._waited = False
        self._offsets: list[int] | None = None
        self.arrived = perf_counter()

    def first_batch(self) -> bool:
        """True the first time it is asked."""
        first, self._waited = not self._waited, True
        return first

    def spans(self, rows: Rows) -> list[tuple[TokenBatch, slice]]:
        """Where the tokens of *rows* lie, piece by piece."""
        if len(rows) == len(self.encoded):  # distinct and ascending, so all of them, in order
            return [(self.encoded, slice(None))]
        if self._offsets is None:
            self._offsets = self.encoded.offsets.tolist()
        ends = self._offsets
        return [(self.encoded, slice(ends[row], ends[row + 1])) for row in rows.tolist()]

    def longest_rows(self, max_tokens: int) -> tuple[int, int]:
        """How many rows, longest first and at least one, hold *max_tokens*; their tokens."""
        if self.tokens <= max_tokens:
            return self.waiting.shape[1], self.tokens
        sums = np.cumsum(self.waiting[1, : max(1, max_tokens)])
        count = max(1, int(np.searchsorted(sums, max_tokens, side="right")))
        return count, int(sums[count - 1])

    def remove(self, start: int, stop: int, tokens: int) -> Rows:
        """Takes waiting rows [start, stop), which hold *tokens*, away: the rows, ascending."""
        waiting = self.waiting
        rows = waiting[0, start:stop].copy()
        rows.sort()
        # Most runs come off an end, where a view will do.
        if start == 0:
            self.waiting = waiting[:, stop:]
        elif stop == waiting.shape[1]:
            self.waiting = waiting[:, :start]
        else:
            self.waiting = np.concatenate((waiting[:, :start], waiting[:, stop:]), axis=1)
        self.tokens -= tokens
        return rows


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
    """What one forward pass scores: for each request in it, the rows taken."""

    parts: list[tuple[Request, Rows]]

    def __len__(self) -> int:
        return sum(len(rows) for _, rows in self.parts)

    def tokens(self) -> TokenBatch:
        """The pairs of all parts, one part after the other."""
        spans = [span for request, rows in self.parts for span in request.spans(rows)]
        lengths = [request.encoded.lengths[rows] for request, rows in self.parts]
        return TokenBatch(
            input_ids=np.concatenate([encoded.input_ids[span] for encoded, span in spans]),
            type_ids=np.concatenate([encoded.type_ids[span] for encoded, span in spans]),
            lengths=np.concatenate(lengths),
            texts=tuple(
                request.encoded.texts[row]
                for request, rows in self.parts
                if request.encoded.texts
                for row in rows.tolist()
            ),
        )

    def open(self) -> Batch:
        """Without the requests that were settled (cancelled, failed) since the batch was cut."""
        return Batch([part for part in self.parts if not part[0].future.done()])

    def halves(self) -> list[Batch]:
        """Two batches of half the pairs each."""
        middle = len(self) // 2
        left, right = [], []
        for request, rows in self.parts:
            left.append((request, rows[:middle]))
            right.append((request, rows[middle:]))
            middle = max(0, middle - len(rows))
        return [Batch([part for part in half if len(part[1])]) for half in (left, right)]

    def only(self, positions: NDArray[np.int64]) -> list[Batch]:
        """One batch of a single pair for each of *positions* in this batch."""
        owners = [(request, row) for request, rows in self.parts for row in rows]
        return [Batch([(owners[at][0], np.array([owners[at][1]]))]) for at in positions]

    def split_scores(self, scores: Scores) -> Iterator[tuple[Request, Rows, Scores]]:
        """The batch's scores, shape (pairs,), dealt back to the requests they belong to."""
        start = 0
        for request, rows in self.parts:
            yield request, rows, scores[start : start + len(rows)]
            start += len(rows)


class RequestQueue:
    """Requests in order of arrival; `take` cuts the next batch out of a bounded window of them.

    A batch has an anchor: a request passed over *max_passes* times, else in turn the oldest and the
    one with the fewest tokens left, so neither a large request nor a small one waits for the other.
    The window is planned as if it were one request, and the batch with the anchor's longest row is
    cut: taking one batch out of a plan leaves the others as full as they were.
    """

    def __init__(
        self, *, window_tokens: int, max_padding: float, free_padding: int, max_passes: int
    ) -> None:
        self._window_tokens = window_tokens
        self._max_padding = max_padding
        self._free_padding = free_padding
        self._max_passes = max_passes
        self._requests: dict[Future[Scores], Request] = {}
        self._oldest_next = True
        self.pairs = 0
        self.tokens = 0

    def __len__(self) -> int:
        return len(self._requests)

    def add(self, request: Request) -> None:
        """Puts *request* last."""
        self._requests[request.future] = request
        self.pairs += request.waiting.shape[1]
        self.tokens += request.tokens

    def drop(self, future: Future[Scores]) -> None:
        """Removes what still waits of a request, if anything does."""
        if request := self._requests.pop(future, None):
            self.pairs -= request.waiting.shape[1]
            self.tokens -= request.tokens

    def clear(self) -> None:
        """Forgets every request."""
        self._requests.clear()
        self.pairs = self.tokens = 0

    def take(self, max_batch_tokens: int) -> Batch:
        """Cuts the next batch of at most *max_batch_tokens* padded tokens; needs a request."""
        window, counts = self._window()
        anchor = self._anchor(window)
        # The anchor goes first: among rows of one length its own must be the first taken.
        window.insert(0, window.pop(anchor))
        counts.insert(0, counts.pop(anchor))
        lengths = np.concatenate([r.waiting[1, :n] for r, n in zip(window, counts, strict=True)])
        plan = iterate_batches(
            lengths,
            max_batch_tokens=max_batch_tokens,
            max_padding=self._max_padding,
            free_padding=self._free_padding,
        )
        chosen = np.sort(next(rows for rows in plan if 0 in rows))
        batch = self._cut(window, np.cumsum([0, *counts]), chosen, lengths[chosen])
        _count_passes(window, batch)
        return batch

    def _window(self) -> tuple[list[Request], list[int]]:
        """The oldest requests, and how many rows of each (longest first) may be taken now.

        One request fills a quarter of the window at most, so a newcomer is seen behind a huge one.
        """
        window, counts = [], []
        tokens_left = self._window_tokens
        for request in self._requests.values():
            count, tokens = request.longest_rows(min(tokens_left, self._window_tokens // 4))
            window.append(request)
            counts.append(count)
            tokens_left -= tokens
            if tokens_left <= 0:
                break
        return window, counts

    def _anchor(self, window: list[Request]) -> int:
        passed_over = [at for at, r in enumerate(window) if r.passes >= self._max_passes]
        if passed_over or len(window) == 1:
            return passed_over[0] if passed_over else 0
        oldest, self._oldest_next = self._oldest_next, not self._oldest_next
        tokens = [request.tokens for request in window]
        return 0 if oldest else tokens.index(min(tokens))

    def _cut(self, window: list[Request], starts: Rows, chosen: Rows, lengths: Rows) -> Batch:
        """Takes the rows at positions *chosen* (ascending) of the window out of the queue.

        Request i's rows lie at [starts[i], starts[i + 1]). A batch is a run of the window's order
        by length, so what it takes of one request is a run of its rows as well.
        """
        bounds = np.searchsorted(chosen, starts)
        served = np.flatnonzero(np.diff(bounds))
        begins = bounds[served]
        tokens = np.add.reduceat(lengths, begins).tolist()
        offsets = (chosen[begins] - starts[served]).tolist()
        sizes = np.diff(bounds)[served].tolist()
        parts = []
        for at, begin, size, taken in zip(served.tolist(), offsets, sizes, tokens, strict=True):
            request = window[at]
            parts.append((request, request.remove(begin, begin + size, taken)))
            if not request.tokens:
                del self._requests[request.future]
        self.pairs -= len(chosen)
        self.tokens -= int(lengths.sum())
        return Batch(parts)


def _count_passes(window: list[Request], batch: Batch) -> None:
    """Whoever is older than the youngest request served, and was not served, was passed over."""
    youngest = max(request.arrived for request, _ in batch.parts)
    for request in window:
        if request.arrived < youngest:
            request.passes += 1
    for request, _ in batch.parts:
        request.passes = 0
