"""The batches of a window of waiting requests, planned as if they were one. Knows no threads."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..tokens import Stage
from .batching import BatchRule, iterate_batches
from .requests import Indices, Request, Ticket

NO_CAP = sys.maxsize


@dataclass(slots=True)
class Load:
    """How much waits, of one admission or of all."""

    requests: int = 0
    pairs: int = 0
    tokens: int = 0


class Waiting:
    """A request in the queue: what of it no batch took yet, and how often it was passed over.

    `indices` holds the pairs left, longest first, and `tokens` counts theirs. `skipped` counts
    batches since its own last one that served a younger request. `load` is its admission's,
    `max_batch_tokens` a bound of the batches that it is in.
    """

    __slots__ = ("indices", "load", "max_batch_tokens", "request", "skipped", "tokens")

    def __init__(self, request: Request, *, load: Load, max_batch_tokens: int) -> None:
        self.request = request
        self.load = load
        self.max_batch_tokens = max_batch_tokens
        self.indices: Indices = np.arange(len(request.encoded))
        self.tokens = request.encoded.tokens
        self.skipped = 0

    @property
    def key(self) -> tuple[Ticket, Stage | None]:
        """What it is found by: whose it is, and which part of the network it waits for."""
        return self.request.ticket, self.request.encoded.stage

    def grow(self, request: Request) -> None:
        """Take in more pairs of the same caller: all that is left is one request from now on."""
        self.request = self.request.joined(self.indices, request)
        self.indices = np.arange(len(self.request.encoded))
        self.tokens += request.encoded.tokens

    def longest(self, max_tokens: int) -> tuple[Indices, int]:
        """The longest pairs left, at least one, that hold *max_tokens*; and their tokens."""
        if self.tokens <= max_tokens:
            return self.indices, self.tokens
        sums = np.cumsum(self.request.lengths[self.indices[: max(1, max_tokens)]])
        count = max(1, int(np.searchsorted(sums, max_tokens, side="right")))
        return self.indices[:count], int(sums[count - 1])

    def take(self, indices: Indices, tokens: int) -> None:
        """Let a batch have the pairs at *indices*, a run of those left, and their *tokens*."""
        left, first = self.indices, indices[0]
        start = 0 if first == left[0] else int(left.searchsorted(first))
        # Never in place: a plan still reads the array that this one is made of.
        rest = left[start + len(indices) :]
        self.indices = np.concatenate((left[:start], rest)) if start else rest
        self.tokens -= tokens
        self.skipped = 0


class Piece(NamedTuple):
    """What a batch takes of one request."""

    waiting: Waiting
    indices: Indices
    tokens: int


class Plan:
    """The batches of a window of requests, which may be taken in any order; `left` counts them.

    Taking one batch out of the window leaves the others as full as they were.
    """

    def __init__(
        self, window: Sequence[Waiting], pieces: Sequence[Indices], *, rule: BatchRule, budget: int
    ) -> None:
        """Of each request in the *window*, oldest first, the pairs in *pieces* are planned.

        A batch holds at most *budget* padded tokens, and of *rule* its padding.
        """
        self.window = window
        self._pieces = pieces
        counts = map(len, pieces)
        self._starts = np.array([0, *itertools.accumulate(counts)])
        planned = zip(window, pieces, strict=True)
        self._lengths = np.concatenate([it.request.lengths[indices] for it, indices in planned])
        self._batches = [
            *iterate_batches(
                self._lengths,
                max_batch_tokens=budget,
                max_padding=rule.max_padding,
                free_padding=rule.free_padding,
            )
        ]
        self._batch_of = np.empty(len(self._lengths), np.int64)
        for number, rows in enumerate(self._batches):
            self._batch_of[rows] = number
        self._untaken = np.ones(len(self._batches), bool)
        self.left = len(self._batches)

    def turn(self, max_skipped: int, *, oldest: bool) -> int:
        """Whose turn it is, an index in the window: of those that have a batch left.

        The oldest; or else the first that was passed over *max_skipped* times; or else the one
        with the fewest tokens left.
        """
        has_batch = np.logical_or.reduceat(self._untaken[self._batch_of], self._starts[:-1])
        first, *others = has_batch.nonzero()[0].tolist()
        if oldest or not others:
            return int(first)
        window = self.window
        for index in others:
            if window[index].skipped >= max_skipped:
                return int(index)
        return int(min(others, key=lambda index: window[index].tokens))

    def take(self, anchor: int) -> tuple[list[Piece], int]:
        """Take the batch with the longest pair that *anchor*, an index in the window, has left.

        Returns what it takes of whom, oldest first, and the index of the youngest it serves.
        """
        own = self._batch_of[self._starts[anchor] : self._starts[anchor + 1]]
        number = own[self._untaken[own].argmax()]
        self._untaken[number] = False
        self.left -= 1
        rows = self._batches[number]
        rows.sort()
        # The window's rows lie request by request, longest first, and a batch is a run of lengths:
        # what it takes of one request is a run of its rows.
        bounds = rows.searchsorted(self._starts)
        served = (bounds[1:] > bounds[:-1]).nonzero()[0]
        begins = bounds[served]
        firsts = rows[begins] - self._starts[served]
        ends = firsts + bounds[served + 1] - begins
        tokens = np.add.reduceat(self._lengths[rows], begins)
        columns = (served.tolist(), firsts.tolist(), ends.tolist(), tokens.tolist())
        pieces = [
            Piece(self.window[index], self._pieces[index][first:end], taken)
            for index, first, end, taken in zip(*columns, strict=True)
        ]
        return pieces, columns[0][-1]
