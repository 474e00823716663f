"""The fields that the adapters have in common, and the model behind them."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self
from weakref import WeakValueDictionary

from langchain_core.documents import Document
from langchain_core.load.serializable import (
    Serializable,
    SerializedConstructor,
    SerializedNotImplemented,
)
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    model_validator,
)

from ..adapting import CONFIG_FIELDS, LazyReranker, OnEmptyText, check_reranker, config_from
from ..config import (
    DEFAULT_MODEL,
    Activation,
    BackendName,
    DType,
    RerankerConfig,
    Truncation,
    WhenFull,
)
from ..errors import ClosedError, ConfigError
from ..reranker import Reranker
from .settings import Dedupe, check_key

PathText = Annotated[
    str, BeforeValidator(lambda given: str(given) if isinstance(given, Path) else given)
]

FIELDS_CONFIG = ConfigDict(
    extra="forbid",
    validate_assignment=True,
    arbitrary_types_allowed=True,
    protected_namespaces=(),  # `model` is our field
    hide_input_in_errors=True,  # a token may be among it
)

_DEFAULTS = {field.name: field.default for field in dataclasses.fields(RerankerConfig)}
_KNOWN: WeakValueDictionary[RerankerConfig, LazyReranker] = WeakValueDictionary()
_KNOWN_LOCK = threading.Lock()


class RerankerFields(BaseModel):
    """The fields of `RerankerConfig`, explained there, or a ready `reranker`.

    The model is loaded on first use, once for all adapters of equal configuration, and freed with
    the last of them. It never travels: a pickle or a dump holds the configuration, less the token.
    """

    model_config = FIELDS_CONFIG

    model: PathText = DEFAULT_MODEL
    backend: BackendName = "auto"
    device: str | tuple[str, ...] = "auto"
    num_workers: int = 1
    num_threads: int | None = None
    dtype: DType = "auto"
    revision: str | None = None
    cache_folder: PathText | None = None
    local_files_only: bool = False
    token: SecretStr | None = Field(default=None, exclude=True, repr=False)
    trust_remote_code: bool = False
    max_length: int | None = None
    truncation: Truncation = "longest_first"
    query_max_tokens: int | None = None
    prompt: str | None = None
    max_batch_tokens: int | None = None
    activation: Activation = "default"
    file_name: str | None = None
    max_queue_pairs: int | None = None
    max_queue_tokens: int | None = None
    when_full: WhenFull = "block"
    reranker: Reranker | None = Field(default=None, exclude=True, repr=False)
    """A ready one, in place of the configuration. It stays the caller's: `close` leaves it open."""

    _config: RerankerConfig = PrivateAttr()
    _lazy: LazyReranker | None = PrivateAttr(default=None)

    def close(self) -> None:
        """Let go of the model; the last adapter of this configuration to do so frees it."""
        self._lazy = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _ranker(self) -> Reranker:
        return self.reranker or self._open().get(self._config)

    async def _aranker(self) -> Reranker:
        return self.reranker or await self._open().aget(self._config)

    def _open(self) -> LazyReranker:
        if self._lazy is None:
            raise ClosedError(f"the {type(self).__name__} is closed: make a new one")
        return self._lazy

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._prepare()
        return self

    def _prepare(self) -> None:
        """Check the fields against each other, and set what is kept beside them."""
        # By value: `configurable_fields` makes copies by naming every field.
        changed = {name for name in CONFIG_FIELDS if getattr(self, name) != _DEFAULTS[name]}
        check_reranker(self.reranker, changed)
        token = self.token.get_secret_value() if self.token else None
        self._config = config_from(self, token=token)
        self._lazy = _lazy_for(self._config)

    def __setattr__(self, name: str, value: Any) -> None:
        # pydantic checks fields against each other after it has set them: undo what does not fit.
        before = dict(self.__dict__)
        try:
            super().__setattr__(name, value)
        except ValueError:
            self.__dict__.update(before)
            raise

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with the fields of *update*, unchecked by pydantic, whose model is theirs."""
        copied = super().model_copy(update=update, deep=deep)
        copied._prepare()
        return copied

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        memo = {} if memo is None else memo
        for kept in (self.reranker, self._lazy):  # shared, as between all equal adapters
            memo[id(kept)] = kept
        return super().__deepcopy__(memo)

    def __getstate__(self) -> dict[Any, Any]:
        if self.reranker is not None:
            raise ConfigError(
                f"a {type(self).__name__} made with reranker= cannot be pickled, for its model is "
                "in memory: make it from the configuration fields"
            )
        fields = {**self.__dict__, "token": None}
        return {**super().__getstate__(), "__dict__": fields, "__pydantic_private__": None}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        super().__setstate__({**state, "__pydantic_private__": {"_lazy": None}})
        self._prepare()


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


def _lazy_for(config: RerankerConfig) -> LazyReranker:
    """One for all living adapters of *config*: a short-lived copy must not free the model."""
    with _KNOWN_LOCK:
        return _KNOWN.setdefault(config, LazyReranker())
