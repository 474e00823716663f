"""Who shares the next batch, and whose turn it is. Knows no threads."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray

from ..batching import is_too_padded, iterate_batches
from ..values import Scores
from ._requests import Batch, Request

Rows = NDArray[np.int64]


class Plan:
    """The batches of a window of requests, which may be taken in any order; `left` counts them.

    The window is planned as if it were one request: taking one batch out of it leaves the others
    as full as they were. It serves until `renew_at` batches are left, until someone arrives whom
    its window `has_room` for, or until batches hold more or less than `max_batch_tokens`.
    """

    def __init__(
        self,
        window: list[Request],
        counts: list[int],
        lengths: Rows,
        batches: list[Rows],
        *,
        max_batch_tokens: int,
        has_room: bool,
        renew_at: int,
    ) -> None:
        """*counts* rows of each request, longest first, have *lengths* and lie in *batches*."""
        self._window = window
        self._starts = np.array([0, *itertools.accumulate(counts)])
        self._lengths = lengths
        self._batches = batches
        self._batch_of = np.empty(len(lengths), np.int64)
        for number, rows in enumerate(batches):
            self._batch_of[rows] = number
        self._taken = np.zeros(len(batches), bool)
        self._passes = np.array([r.passes for r in window])
        self._tokens = np.array([r.tokens for r in window])
        self._rows = np.array(counts)
        self.left = len(batches)
        self.max_batch_tokens = max_batch_tokens
        self.has_room = has_room
        self.renew_at = renew_at

    def turn(self, max_passes: int, *, oldest: bool) -> int:
        """Whose turn it is: the oldest, or one passed over too often, or the smallest."""
        waits = self._rows.nonzero()[0]
        others = waits[1:]
        if oldest or not len(others):
            return int(waits[0])
        overdue = self._passes[others] >= max_passes
        return int(others[overdue.argmax() if overdue.any() else self._tokens[others].argmin()])

    def cut(self, anchor: int) -> tuple[Batch, int]:
        """Takes the batch with the longest row that *anchor* has left; returns its tokens too."""
        own = self._batch_of[self._starts[anchor] : self._starts[anchor + 1]]
        number = own[~self._taken[own]][0]
        self._taken[number] = True
        self.left -= 1
        rows = self._batches[number]
        rows.sort()
        # The window's rows lie request by request, longest first, and a batch is a run of lengths:
        # what it takes of one request is a run of its rows.
        bounds = rows.searchsorted(self._starts)
        served = (bounds[1:] > bounds[:-1]).nonzero()[0]
        begins = bounds[served]
        sizes = bounds[served + 1] - begins
        tokens = np.add.reduceat(self._lengths[rows], begins)
        self._rows[served] -= sizes
        self._tokens[served] -= tokens
        self._passes[: served[-1]] += 1  # whoever is older than the youngest served, and was not
        self._passes[served] = 0
        firsts = rows[begins] - self._starts[served]
        columns = (served.tolist(), firsts.tolist(), sizes.tolist(), tokens.tolist())
        parts = []
        for at, first, size, taken in zip(*columns, strict=True):
            request = self._window[at]
            request.left -= size
            request.tokens -= taken
            parts.append((request, request.waiting[0, first : first + size]))
        return Batch(parts), sum(columns[3])

    def end(self) -> None:
        """Tells the requests what this plan knows: what of them still waits, who was passed."""
        left = ~self._taken[self._batch_of]
        spans = zip(self._starts[:-1].tolist(), self._starts[1:].tolist(), strict=True)
        for request, passes, (start, stop) in zip(
            self._window, self._passes.tolist(), spans, strict=True
        ):
            request.passes = passes
            if request.left and request.left < request.waiting.shape[1]:
                waiting, count = request.waiting, stop - start
                request.waiting = np.concatenate(
                    (waiting[:, :count][:, left[start:stop]], waiting[:, count:]), axis=1
                )


class RequestQueue:
    """Requests in order of arrival; `take` cuts the next batch out of a bounded window of them.

    While several wait, half of the tokens are the oldest request's, so that a stream of small ones
    does not hold a large one up; the other half is for whoever was passed over *max_passes* times,
    else for the one with the fewest tokens left, so that no small one waits for a large one. A
    batch has one of them for its anchor: it is the one with the anchor's longest row in the
    window's plan. The plan is kept until it could be a better one: until someone the window has
    room for arrives, or half is taken.
    """

    def __init__(
        self, *, window_tokens: int, max_padding: float, free_padding: int, max_passes: int
    ) -> None:
        self._window_tokens = window_tokens
        self._max_padding = max_padding
        self._free_padding = free_padding
        self._max_passes = max_passes
        self._requests: dict[Future[Scores], Request] = {}
        self._ahead = 0  # tokens by which the oldest is ahead of its half
        self._plan: Plan | None = None
        self.pairs = 0
        self.tokens = 0

    def __len__(self) -> int:
        return len(self._requests)

    def add(self, request: Request) -> None:
        """Puts *request* last."""
        self._requests[request.future] = request
        self.pairs += request.left
        self.tokens += request.tokens
        if self._plan and self._plan.has_room:
            self._end_plan()

    def drop(self, future: Future[Scores]) -> None:
        """Removes what still waits of a request, if anything does."""
        if request := self._requests.pop(future, None):
            self.pairs -= request.left
            self.tokens -= request.tokens
            self._end_plan()

    def clear(self) -> None:
        """Forgets every request."""
        self._requests.clear()
        self._plan = None
        self.pairs = self.tokens = 0

    def take(self, max_batch_tokens: int) -> Batch:
        """Cuts the next batch of at most *max_batch_tokens* padded tokens; needs a request."""
        if len(self._requests) == 1:
            batch, tokens = self._cut_alone(max_batch_tokens)
        else:
            batch, tokens = self._cut_shared(max_batch_tokens)
        self.pairs -= len(batch)
        self.tokens -= tokens
        for request, _ in batch.parts:
            if not request.left:
                del self._requests[request.future]
        if not self._requests:
            self._end_plan()  # which would keep what it served
        return batch

    def _cut_alone(self, max_batch_tokens: int) -> tuple[Batch, int]:
        """A batch of the only request: its rows lie longest first, so it is a run of them."""
        self._end_plan()
        (request,) = self._requests.values()
        if self._fits_one_batch(request, max_batch_tokens):
            batch, tokens = Batch([(request, np.arange(request.left))]), request.tokens
            request.left = request.tokens = 0
            return batch, tokens
        request.sort()
        most = max(1, max_batch_tokens // max(1, int(request.waiting[1, 0])))
        lengths = request.waiting[1, :most]
        size = len(next(self._batches(lengths, max_batch_tokens)))
        places, tokens = request.waiting[0, :size], int(lengths[:size].sum())
        request.waiting = request.waiting[:, size:]
        request.left -= size
        request.tokens -= tokens
        request.passes = 0
        return Batch([(request, places)]), tokens

    def _fits_one_batch(self, request: Request, max_batch_tokens: int) -> bool:
        padded = request.longest * request.left
        whole = request.left == len(request.encoded) and padded <= max_batch_tokens
        return whole and not is_too_padded(
            padded,
            request.tokens,
            max_padding=self._max_padding,
            free_padding=self._free_padding,
        )

    def _cut_shared(self, max_batch_tokens: int) -> tuple[Batch, int]:
        plan = self._current_plan(max_batch_tokens)
        oldest = next(iter(self._requests.values()))
        before, its_turn = oldest.tokens, self._ahead <= 0
        batch, tokens = plan.cut(plan.turn(self._max_passes, oldest=its_turn))
        ahead = self._ahead + 2 * (before - oldest.tokens) - tokens
        # A forward costs something beside its tokens, which is what padding may be free for.
        ahead += self._free_padding if its_turn else -self._free_padding
        most = max_batch_tokens + self._free_padding  # what nobody asked for is not saved up
        self._ahead = max(-most, min(most, ahead))
        return batch, tokens

    def _current_plan(self, max_batch_tokens: int) -> Plan:
        plan = self._plan
        if plan and plan.left > plan.renew_at and plan.max_batch_tokens == max_batch_tokens:
            return plan
        self._end_plan()
        window, counts, room = self._window()
        pieces = [r.waiting[1, :count] for r, count in zip(window, counts, strict=True)]
        lengths = np.concatenate(pieces)
        batches = [*self._batches(lengths, max_batch_tokens)]
        self._plan = Plan(
            window,
            counts,
            lengths,
            batches,
            max_batch_tokens=max_batch_tokens,
            has_room=room > 0,
            # What lies beyond the window fills up its last batches, so those are not taken yet.
            renew_at=0 if sum(counts) == self.pairs else len(batches) // 2,
        )
        return self._plan

    def _batches(self, lengths: Rows, max_batch_tokens: int) -> Iterator[Rows]:
        return iterate_batches(
            lengths,
            max_batch_tokens=max_batch_tokens,
            max_padding=self._max_padding,
            free_padding=self._free_padding,
        )

    def _end_plan(self) -> None:
        if self._plan:
            self._plan.end()
        self._plan = None

    def _window(self) -> tuple[list[Request], list[int], int]:
        """The oldest requests, how many rows of each (longest first) may be taken, tokens to spare.

        One request fills a quarter of the window at most, so a newcomer is seen behind a huge one.
        """
        window, counts = [], []
        room = self._window_tokens
        for request in self._requests.values():
            request.sort()
            count, tokens = request.longest_rows(min(room, self._window_tokens // 4))
            window.append(request)
            counts.append(count)
            room -= tokens
            if room <= 0:
                break
        return window, counts, room
