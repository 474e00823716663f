"""Equal pairs are scored once."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray

from ..futures import then
from ..protocols import Call, Pair, Scored, Scorer
from . import Wrapper


class Distinct(Wrapper):
    """Hands the first of equal pairs on, and its answer to all of them.

    Pairs are equal where query, document and prompt are: a key changes no score. A query whose
    pairs all stood before has an empty group in what is handed on. With *by_query* pairs of two
    groups are never equal, for a scorer whose answers depend on a group's other pairs.
    """

    def __init__(self, inner: Scorer, *, by_query: bool = False) -> None:
        super().__init__(inner)
        self._by_query = by_query

    def submit_pairs(self, pairs: Sequence[Pair], call: Call) -> Future[Scored]:
        """Score each distinct pair once; answers in the order of *pairs*."""
        queries = _queries(call, len(pairs)) if self._by_query else None
        firsts, rows = _distinct(pairs, call, queries)
        if len(firsts) == len(pairs):
            return self.inner.submit_pairs(pairs, call)
        kept = np.array(firsts, dtype=np.int64)
        inner = self.inner.submit_pairs([pairs[row] for row in firsts], call.take(kept))
        repeats = len(pairs) - len(firsts)

        def spread(scored: Scored) -> Scored:
            if call.on_progress is not None:
                call.on_progress(repeats)
            return scored.take(rows)

        return then(inner, spread)


def _queries(call: Call, pairs: int) -> list[int] | None:
    """Which group each pair is in, None where there are none."""
    if call.groups is None:
        return None
    queries: list[int] = np.searchsorted(call.groups, np.arange(pairs), side="right").tolist()
    return queries


def _distinct(
    pairs: Sequence[Pair], call: Call, queries: list[int] | None
) -> tuple[list[int], NDArray[np.int64]]:
    """Where each distinct pair stands first, and for every pair which of those it is."""
    if call.prompts is None and len(set(pairs)) == len(pairs):
        return list(range(len(pairs))), np.arange(len(pairs))
    seen: dict[object, int] = {}
    firsts: list[int] = []
    rows = np.empty(len(pairs), np.int64)
    prompts = call.prompts
    for row, pair in enumerate(pairs):
        key: object = pair
        if prompts is not None:
            key = (pair, prompts[row])
        if queries is not None:
            key = (key, queries[row])
        number = seen.setdefault(key, len(firsts))
        if number == len(firsts):
            firsts.append(row)
        rows[row] = number
    return firsts, rows
