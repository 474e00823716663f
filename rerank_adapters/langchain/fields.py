"""What LangChain's adapters have in common beside the model: what is scored, what comes back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from langchain_core.documents import Document
from langchain_core.load.serializable import (
    Serializable,
    SerializedConstructor,
    SerializedNotImplemented,
)
from pydantic import BeforeValidator, Field

from ..adapting import FIELDS_CONFIG, OnEmptyText, RerankerFields
from .settings import Dedupe, check_key

__all__ = ["FIELDS_CONFIG", "RankingFields", "RerankerFields"]


class RankingFields(RerankerFields, Serializable):
    """What is scored, and what comes back. All of it but the model can be overridden per call."""

    score_threshold: float | None = Field(default=None, allow_inf_nan=False)
    """The lowest score kept (inclusive), before the cut to `top_n`. None: no bound."""
    score_key: Annotated[str, BeforeValidator(check_key)] = "relevance_score"
    """Where in a document's metadata its score is written, as a Python float."""
    text_fn: Callable[[Document], str] | None = None
    """Builds the text that is scored. None: `rank_fields`, then the page content."""
    rank_fields: tuple[str, ...] | None = None
    """Metadata that are scored with the content, each as a line "name: value" before it."""
    on_empty_text: OnEmptyText = "keep_last"
    """Documents without text: after all others and unscored, left out, or an InputError."""
    dedupe: Dedupe | None = None
    """Keep only the first of several documents of equal id, or of equal content. None: keep all."""

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Configurations are saved by `dumps`, without weights and token."""
        return True

    @classmethod
    def get_lc_namespace(cls) -> list[str]:
        """Where `loads` finds the class."""
        return ["rerank_adapters", "langchain"]

    @property
    def lc_secrets(self) -> dict[str, str]:
        """The token is named in a dump, never shown."""
        return {"token": "HF_TOKEN"}

    def to_json(self) -> SerializedConstructor | SerializedNotImplemented:
        """What `dumps` writes. Around a ready reranker nothing that `loads` takes for a model."""
        return super().to_json() if self.reranker is None else self.to_json_not_implemented()
