"""What LangChain's adapters have beside the model: what is scored, what comes back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from langchain_core.documents import Document
from langchain_core.load.serializable import (
    Serializable,
    SerializedConstructor,
    SerializedNotImplemented,
)
from langchain_core.runnables import ConfigurableFieldSpec
from pydantic.json_schema import SkipJsonSchema

from ..adapter_fields import (
    FIELDS_CONFIG,
    Carried,
    FallbackFields,
    RerankerFields,
    as_config_errors,
    plain_selection,
)
from ..calibration import Calibration
from ..config import LIVE, RerankerConfig
from ..early_exit import EarlyExit
from ..passages import Windows
from ..ranking import Fuse
from .settings import SPECS, Dedupe, Settings

__all__ = ["FIELDS_CONFIG", "Carried", "RankingFields", "RerankerFields"]


class RankingFields(FallbackFields, Serializable):
    """What is scored, and what comes back. All of it but the model can be overridden per call."""

    score_threshold: Carried[float | None] = None
    """The lowest score kept (inclusive), on the scale of `activation`, before the cut to `top_n`.
    None: no bound."""
    score_key: Carried[str | None] = "relevance_score"
    """Where in a document's metadata its score is written, as a Python float. What was there is
    overwritten in the copy that comes back. None: nowhere."""
    text_fn: SkipJsonSchema[Carried[Callable[[Document], str] | None]] = None
    """Builds the text that is scored, in place of `rank_fields` and the page content; what comes
    back keeps its content. Runs where the call is made: on the event loop, if that is awaited."""
    rank_fields: Carried[Sequence[str] | None] = None
    """Metadata that are scored with the content, each as a line "name: value" before it, in this
    order; a document that lacks one goes without that line. None: the content alone."""
    span_key: Carried[str | None] = None
    """Where in a document's metadata the bounds of its best passage are written, [start, end] in
    characters of its content, when documents are read in `windows`. None: nowhere."""
    return_passages: Carried[bool] = False
    """Give the best passage of each document in place of its content, with `windows`."""
    retrieval_score_key: Carried[str | None] = None
    """Where in a document's metadata the first stage's score is, higher is better, for `fuse` and
    `rest`. A (document, score) tuple, as vector stores give them, needs none. None: nowhere."""
    dedupe: Carried[Dedupe | None] = None
    """Score and return only the first of several documents of equal "id", or of equal "content".
    A document whose id is None is like no other. None: keep all."""

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Configurations are saved by `dumps`, without weights and token.

        `loads` has to be told that it may read them: `valid_namespaces=["rerank_adapters"]` and
        `allowed_objects=[CrossEncoderCompressor]`.
        """
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
        """What `dumps` writes. Around a ready reranker nothing that `loads` takes for a model.

        Values that mappings can be made into are written as these; what is alive is left out.
        """
        if self.reranker is not None:
            return self.to_json_not_implemented()
        saved = super().to_json()
        if saved["type"] == "constructor":
            kwargs = {name: it for name, it in saved["kwargs"].items() if name not in LIVE}
            for name in ("windows", "fuse", "early_exit", "calibration"):
                value = getattr(self, name)
                if isinstance(value, Windows | Fuse | EarlyExit | Calibration):
                    kwargs[name] = value.to_dict()
            saved["kwargs"] = kwargs
        return saved

    @property
    def config_specs(self) -> list[ConfigurableFieldSpec]:
        """What config["configurable"] obeys: the settings that a call may make."""
        return list(SPECS)

    def _settings(self) -> Settings:
        """What calls are made with unless they say otherwise. Raises InputError."""
        return Settings.of(self)

    def _judge(self) -> RerankerConfig:
        config = super()._judge()
        with as_config_errors():
            settings = self._settings()
        _, threshold = plain_selection(settings.top_n, settings.score_threshold)
        names = settings.rank_fields
        self.__dict__["score_threshold"] = threshold
        self.__dict__["rank_fields"] = None if names is None else tuple(names)
        return config
