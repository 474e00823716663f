"""LangChainCrossEncoder: scores where LangChain asks for a BaseCrossEncoder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from langchain_core.cross_encoders import BaseCrossEncoder

from ..adapter_fields import checked_rankings
from ..checks import checked_pairs
from ..config import RerankerConfig
from ..errors import BackendError, ConfigError
from ..protocols import Pair, Ranked, RerankRequest
from ..ranking import OnEmptyText
from .fields import RerankerFields


class LangChainCrossEncoder(RerankerFields, BaseCrossEncoder):
    """Scores (query, text) pairs; drops into langchain-classic's `CrossEncoderReranker`.

    A blank text has the model's own number, or is an InputError where on_empty_text is "error".

    >>> encoder = LangChainCrossEncoder()
    >>> tall, red = encoder.score([("how tall is it?", "70 m"), ("how tall is it?", "Red.")])
    >>> tall > red
    True
    """

    def score(self, text_pairs: list[tuple[str, str]]) -> list[float]:
        """One finite Python float per pair, in order; identical pairs are scored once.

        Raises InputError (a pair), BackendError where the ranker leaves a text out, and what
        loading the model raises.
        """
        pairs = checked_pairs(text_pairs)
        if not pairs:
            return []
        rows = _rows_by_query(pairs)
        rule: OnEmptyText = "error" if self.on_empty_text == "error" else "score"
        requests = [
            RerankRequest(query, [pairs[row][1] for row in own], on_empty_text=rule)
            for query, own in rows.items()
        ]
        found = self._ranker().rerank_many(requests, top_n=None)
        return _in_rows(checked_rankings(found, requests), rows.values(), len(pairs))

    def _judge(self) -> RerankerConfig:
        if self.on_empty_text == "drop":
            raise ConfigError('on_empty_text must leave each text its score: got "drop"')
        for name in ("rerank_count", "fuse"):
            if (value := getattr(self, name)) is not None:
                raise ConfigError(f"{name} is for rankings, these are scores: got {value!r:.80}")
        return super()._judge()


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
