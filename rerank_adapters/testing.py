"""Stand-ins for users' own tests: a ranker from a table or a function, no model and no network.

They are Rankers: give one to any adapter as `reranker=`, or use it where a Reranker would stand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future

import numpy as np

from .futures import done
from .protocols import Call, ModelInfo, Pair, Scored
from .reranker import Reranker


def ranker_from(score: Callable[[str, str], float]) -> Reranker:
    """A Reranker whose score of (query, document) is what *score* returns.

    >>> ranker = ranker_from(lambda query, document: document.count(query))
    >>> ranker.rerank("a", ["b", "banana"])[0].index
    1
    """
    return Reranker.over(FunctionScorer(score))


def ranker_of(table: Mapping[Pair, float], *, default: float = 0.0) -> Reranker:
    """A Reranker that looks each (query, document) up in *table*; absent pairs score *default*.

    >>> ranker = ranker_of({("q", "right"): 0.9})
    >>> ranker.rerank("q", ["wrong", "right"]).select(["wrong", "right"])
    ['right', 'wrong']
    """
    known = dict(table)
    return ranker_from(lambda query, document: known.get((query, document), default))


class FunctionScorer:
    """A Scorer from a function of a query and a document; `calls` lists the pairs of each call.

    >>> scorer = FunctionScorer(lambda query, document: len(document))
    >>> Reranker.over(scorer).rerank("q", ["ab", "abc"]).indices
    [1, 0]
    >>> scorer.calls
    [[('q', 'ab'), ('q', 'abc')]]
    """

    def __init__(self, score: Callable[[str, str], float]) -> None:
        self._score = score
        self.calls: list[list[Pair]] = []

    def submit_pairs(self, pairs: Sequence[Pair], call: Call) -> Future[Scored]:
        """Score *pairs* at once, in the calling thread."""
        del call  # no queue, no tokens: nothing to be late for
        self.calls.append(list(pairs))
        scores = np.array([self._score(*pair) for pair in pairs], np.float32)
        return done(Scored(scores, None, np.zeros(len(pairs), np.bool_)))

    def info(self) -> ModelInfo:
        """A name for traces."""
        return ModelInfo(model="rerank_adapters.testing", device="cpu")

    def close(self) -> None:
        """Holds nothing."""
