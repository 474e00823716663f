"""LangChainCrossEncoder: scores where LangChain asks for a BaseCrossEncoder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from langchain_core.cross_encoders import BaseCrossEncoder

from ..adapter_fields import checked_rankings
from ..checks import checked_pairs
from ..errors import BackendError
from ..protocols import Pair, Ranked, RerankRequest
from .fields import RerankerFields


class LangChainCrossEncoder(RerankerFields, BaseCrossEncoder):
    """Scores (query, text) pairs; drops into langchain-classic's `CrossEncoderReranker`."""

    def score(self, text_pairs: list[tuple[str, str]]) -> list[float]:
        """One finite Python float per pair, in order; identical pairs are scored once.

        Raises InputError (a pair), BackendError where the ranker leaves a text out, and what
        loading the model raises.
        """
        pairs = checked_pairs(text_pairs)
        if not pairs:
            return []
        rows = _rows_by_query(pairs)
        requests = [
            RerankRequest(query, [pairs[row][1] for row in own]) for query, own in rows.items()
        ]
        found = self._ranker().rerank_many(requests, top_n=None)
        return _in_rows(checked_rankings(found, requests), rows.values(), len(pairs))


def _rows_by_query(pairs: Sequence[Pair]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for row, (query, _) in enumerate(pairs):
        rows.setdefault(query, []).append(row)
    return rows


def _in_rows(rankings: Sequence[Ranked], rows: Iterable[Sequence[int]], count: int) -> list[float]:
    """The scores of *rankings* where their pairs stand, of which there are *count*."""
    scores = [0.0] * count
    for ranking, own in zip(rankings, rows, strict=True):
        if isinstance(ranking, Exception):
            raise ranking
        if len(ranking) != len(own):
            raise BackendError(
                f"the ranker must rank all {len(own)} documents where top_n is None: got "
                f"{len(ranking)} of them"
            )
        for document in ranking:
            scores[own[document.index]] = float(document.score)
    return scores
