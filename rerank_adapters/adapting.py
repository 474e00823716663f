"""What both framework adapters share, free of either framework."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self
from weakref import WeakValueDictionary

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    StrictBool,
    StrictInt,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema

from .config import (
    DEFAULT_MODEL,
    Activation,
    BackendName,
    DType,
    RerankerConfig,
    Truncation,
    WhenFull,
)
from .errors import ClosedError, ConfigError, InputError
from .reranker import Reranker

OnEmptyText = Literal["keep_last", "drop", "error"]

CONFIG_FIELDS = tuple(field.name for field in dataclasses.fields(RerankerConfig))
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(RerankerConfig)}


class LazyReranker:
    """Loads the shared reranker of a configuration on first use, and again when that changes.

    A copy or a pickle of it is empty: weights never travel with an adapter's configuration.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loaded: tuple[RerankerConfig, Reranker] | None = None

    def get(self, source: Reranker | RerankerConfig) -> Reranker:
        """*source* itself, or the reranker of that configuration, loaded once."""
        if not isinstance(source, RerankerConfig):
            return source
        return self._current(source) or self._keep(source, Reranker.shared(source))

    async def aget(self, source: Reranker | RerankerConfig) -> Reranker:
        """`get`, with loading off the event loop."""
        if not isinstance(source, RerankerConfig):
            return source
        return self._current(source) or self._keep(source, await Reranker.ashared(source))

    def close(self) -> None:
        """Lets go of the loaded reranker; the next use loads it again."""
        with self._lock:
            loaded, self._loaded = self._loaded, None
        if loaded is not None:
            loaded[1].close()

    def _current(self, config: RerankerConfig) -> Reranker | None:
        loaded = self._loaded
        if loaded is None or loaded[0] != config or loaded[1].closed:
            return None  # what broke, or was lost in a fork, is loaded again
        return loaded[1]

    def _keep(self, config: RerankerConfig, handle: Reranker) -> Reranker:
        with self._lock:
            kept = self._current(config)
            if kept is None:
                # A handle of another configuration is dropped, not closed: a call may be using it.
                self._loaded = (config, handle)
        if kept is not None:
            handle.close()  # another thread was first; both are shares of one model
        return kept or handle

    def __copy__(self) -> LazyReranker:
        return LazyReranker()

    def __deepcopy__(self, memo: dict[int, Any]) -> LazyReranker:
        return LazyReranker()

    def __reduce__(self) -> tuple[type[LazyReranker], tuple[()]]:
        return LazyReranker, ()


def config_from(fields: object, **changes: Any) -> RerankerConfig:
    """The configuration in an adapter's attributes, with *changes*. Raises ConfigError."""
    values = {name: getattr(fields, name) for name in CONFIG_FIELDS if hasattr(fields, name)}
    return RerankerConfig(**(values | changes))


def check_reranker(reranker: Reranker | None, fields_set: AbstractSet[str]) -> None:
    """Raise ConfigError where both a ready reranker and configuration fields were given."""
    given = sorted(set(CONFIG_FIELDS) & fields_set)
    if reranker is not None and given:
        raise ConfigError(
            f"reranker is ready as it is, so {', '.join(given)} would change nothing: "
            "give either reranker= or the configuration"
        )


def split_empty(
    texts: Sequence[str], on_empty_text: OnEmptyText, *, name: str
) -> tuple[list[int], list[int]]:
    """Indices of *texts* to score, and of blank ones to put last unscored.

    A score of nothing would be made up: blank texts are kept last ("keep_last"), left out ("drop"),
    or an InputError naming the index ("error").
    """
    scored = [index for index, text in enumerate(texts) if text.strip()]
    blank = [index for index, text in enumerate(texts) if not text.strip()]
    if blank and on_empty_text == "error":
        raise InputError(
            f"{name}[{blank[0]}] must have text to score: got {texts[blank[0]]!r}; "
            'on_empty_text="keep_last" or "drop" lets it pass'
        )
    return scored, blank if on_empty_text == "keep_last" else []


if TYPE_CHECKING:  # what may be given, of which the validators below make one thing
    PathText = str | Path
    Devices = str | Sequence[str] | None
    Token = SecretStr | str | None
else:
    PathText = Annotated[
        str, BeforeValidator(lambda given: str(given) if isinstance(given, Path) else given)
    ]
    Devices = Annotated[
        str | tuple[str, ...] | None,
        BeforeValidator(lambda given: "auto" if given is None else given),
    ]
    Token = SecretStr | None

FIELDS_CONFIG = ConfigDict(
    extra="forbid",
    validate_assignment=True,
    arbitrary_types_allowed=True,
    protected_namespaces=(),  # `model` is our field
    hide_input_in_errors=True,  # a token may be among it
)


class RerankerFields(BaseModel):
    """The fields of `RerankerConfig`, explained there, or a ready `reranker`.

    The model is loaded on first use, once for all adapters of equal configuration, and freed with
    the last of them. It never travels: a pickle or a dump holds the configuration, less the token.
    """

    model_config = FIELDS_CONFIG

    model: PathText = DEFAULT_MODEL
    backend: BackendName = "auto"
    device: Devices = "auto"
    num_workers: StrictInt | None = None
    num_threads: StrictInt | None = None
    dtype: DType = "auto"
    revision: str | None = None
    cache_folder: PathText | None = None
    local_files_only: StrictBool = False
    token: Token = Field(default=None, exclude=True, repr=False)
    trust_remote_code: StrictBool = False
    max_length: StrictInt | None = None
    truncation: Truncation = "longest_first"
    query_max_tokens: StrictInt | None = None
    prompt: str | None = None
    max_batch_tokens: StrictInt | None = None
    activation: Activation = "default"
    file_name: str | None = None
    max_queue_pairs: StrictInt | None = None
    max_queue_tokens: StrictInt | None = None
    when_full: WhenFull = "block"
    reranker: SkipJsonSchema[Reranker | None] = Field(default=None, exclude=True, repr=False)
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
        # By value: frameworks make copies by naming every field.
        changed = {name for name in CONFIG_FIELDS if getattr(self, name) != _DEFAULTS[name]}
        check_reranker(self.reranker, changed)
        token = self.token
        if isinstance(token, SecretStr):
            token = token.get_secret_value()
        self._config = config_from(self, token=token or None)
        self._lazy = _lazy_for(self._config)

    def __setattr__(self, name: str, value: Any) -> None:
        # pydantic checks fields against each other after it has set them: undo what does not fit.
        before = dict(self.__dict__)
        closed = name in type(self).model_fields and self._lazy is None
        try:
            super().__setattr__(name, value)
        except ValueError:
            self.__dict__.update(before)
            raise
        if closed:  # LlamaIndex's engines assign a callback manager: that reopens nothing
            self.close()

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
        # pydantic's own: LlamaIndex's would drop what cannot be pickled, and only warn.
        state = BaseModel.__getstate__(self)
        fields = {**self.__dict__, "token": None}
        return {**state, "__dict__": fields, "__pydantic_private__": None}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        BaseModel.__setstate__(self, {**state, "__pydantic_private__": {"_lazy": None}})
        self._prepare()


_KNOWN: WeakValueDictionary[RerankerConfig, LazyReranker] = WeakValueDictionary()
_KNOWN_LOCK = threading.Lock()


def _lazy_for(config: RerankerConfig) -> LazyReranker:
    """One for all living adapters of *config*: a short-lived copy must not free the model."""
    with _KNOWN_LOCK:
        return _KNOWN.setdefault(config, LazyReranker())
