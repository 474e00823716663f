"""Tokens of pairs that came at once or in parts: they are copied once, into a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..tokens import Held, PairText, Stage, TokenBatch

Rows = NDArray[np.int64]


class Views(NamedTuple):
    """Tokens of some pairs, none of them copied: `ids` and `types` hold one run of each or more."""

    ids: list[NDArray[np.int32]]
    types: list[NDArray[np.int32]]
    lengths: NDArray[np.int64]
    texts: tuple[PairText, ...]
    stage: Stage | None
    held: tuple[Held, ...]


class Pairs:
    """Pairs of several token batches of one stage, found by row. Never changes.

    lengths, sources, starts  int64 of shape (pairs,): a pair's tokens, which batch they are in,
                              and where in it they begin
    """

    __slots__ = ("_batches", "_held", "_sources", "_starts", "_texts", "lengths", "stage")

    def __init__(
        self,
        batches: Sequence[TokenBatch],
        sources: Rows,
        starts: Rows,
        lengths: NDArray[np.int64],
        texts: tuple[PairText, ...],
        stage: Stage | None,
        held: tuple[Held, ...],
    ) -> None:
        self._batches = batches
        self._sources = sources
        self._starts = starts
        self._texts = texts
        self._held = held
        self.lengths = lengths
        self.stage = stage

    @classmethod
    def of(cls, batch: TokenBatch) -> Pairs:
        """The pairs of one batch."""
        starts = np.cumsum(batch.lengths) - batch.lengths
        return cls(
            [batch],
            np.zeros_like(starts),
            starts,
            batch.lengths,
            batch.texts,
            batch.stage,
            batch.held,
        )

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        """How many tokens they have together."""
        return int(self.lengths.sum())

    def joined(self, rows: Rows, more: Pairs) -> Pairs:
        """Those at *rows*, and *more*. Batches with nothing left in it are let go of."""
        used, sources = np.unique(self._sources[rows], return_inverse=True)
        batches = [self._batches[source] for source in used.tolist()]
        texts, held = self._beside(rows)
        return Pairs(
            [*batches, *more._batches],
            np.concatenate((sources, more._sources + len(batches))),
            np.concatenate((self._starts[rows], more._starts)),
            np.concatenate((self.lengths[rows], more.lengths)),
            texts + more._texts,
            more.stage,
            held + more._held,
        )

    def views(self, rows: Rows) -> Views:
        """Those at *rows*, in that order; neighbours in one batch are one run."""
        lengths, starts, sources = self.lengths[rows], self._starts[rows], self._sources[rows]
        ends = starts + lengths
        beside = self._beside(rows)
        if (starts[1:] == ends[:-1]).all() and (sources == sources[0]).all():
            batch, span = self._batches[int(sources[0])], slice(int(starts[0]), int(ends[-1]))
            runs = [batch.input_ids[span]], [batch.type_ids[span]]
            return Views(*runs, lengths, beside[0], self.stage, beside[1])
        ids = [batch.input_ids for batch in self._batches]
        types = [batch.type_ids for batch in self._batches]
        where = list(zip(sources.tolist(), starts.tolist(), ends.tolist(), strict=True))
        return Views(
            [ids[source][start:end] for source, start, end in where],
            [types[source][start:end] for source, start, end in where],
            lengths,
            beside[0],
            self.stage,
            beside[1],
        )

    def _beside(self, rows: Rows) -> tuple[tuple[PairText, ...], tuple[Held, ...]]:
        """What a batch carries beside tokens, of the pairs at *rows*."""
        texts = tuple(self._texts[row] for row in rows) if self._texts else ()
        return texts, tuple(self._held[row] for row in rows) if self._held else ()


def together(views: Sequence[Views]) -> TokenBatch:
    """One batch of all *views*, one after the other: copied, unless they are a single run."""
    return TokenBatch(
        input_ids=_joined([run for view in views for run in view.ids]),
        type_ids=_joined([run for view in views for run in view.types]),
        lengths=np.concatenate([view.lengths for view in views]),
        texts=tuple(pair for view in views for pair in view.texts),
        stage=views[0].stage,
        held=tuple(held for view in views for held in view.held),
    )


def _joined(runs: list[NDArray[np.int32]]) -> NDArray[np.int32]:
    return runs[0] if len(runs) == 1 else np.concatenate(runs)
