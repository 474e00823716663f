"""LangChainCrossEncoder: scores where LangChain asks for a BaseCrossEncoder."""

from __future__ import annotations

from langchain_core.cross_encoders import BaseCrossEncoder

from ..adapter_fields import pair_scores
from ..checks import checked_pairs
from ..config import RerankerConfig
from ..errors import ConfigError
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
        rule: OnEmptyText = "error" if self.on_empty_text == "error" else "score"
        return pair_scores(self._ranker(), pairs, rule)

    def _judge(self) -> RerankerConfig:
        if self.on_empty_text == "drop":
            raise ConfigError('on_empty_text must leave each text its score: got "drop"')
        for name in ("rerank_count", "fuse", "early_exit"):
            if (value := getattr(self, name)) is not None:
                raise ConfigError(f"{name} is for rankings, these are scores: got {value!r:.80}")
        return super()._judge()
