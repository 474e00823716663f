"""LangChainCrossEncoder: scores where LangChain asks for a BaseCrossEncoder."""

from __future__ import annotations

from langchain_core.cross_encoders import BaseCrossEncoder

from .fields import RerankerFields


class LangChainCrossEncoder(RerankerFields, BaseCrossEncoder):
    """Scores (query, text) pairs; drops into langchain-classic's `CrossEncoderReranker`."""

    def score(self, text_pairs: list[tuple[str, str]]) -> list[float]:
        """One finite Python float per pair, in order; identical pairs are scored once."""
        if not text_pairs:
            return []
        scores: list[float] = self._ranker().score_pairs(text_pairs).tolist()
        return scores
