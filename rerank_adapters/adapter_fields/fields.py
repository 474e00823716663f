"""The fields of a model's configuration, written out for type checkers and judged by it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    PlainSerializer,
    PrivateAttr,
    SecretStr,
    SkipValidation,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue, SkipJsonSchema

from ..calibration import Calibration
from ..calls import RULES
from ..cascade import Warmable
from ..config import (
    DEFAULT_MODEL,
    LIVE,
    OPTIONS,
    Activation,
    BackendName,
    DType,
    RerankerConfig,
    SpecialTokens,
    TokenizerName,
    Truncation,
    WhenFull,
)
from ..document_tokens import DocumentTokens
from ..early_exit import EarlyExit
from ..errors import ConfigError, OptionError, RerankError
from ..passages import Windows
from ..protocols import Ranker
from ..ranking import Fuse, FuseMethod, OnEmptyText, Rest
from ..remote import RemoteConfig
from ..score_cache import ScoreCache
from .rules import own_errors, plain_signature
from .source import RankerSource, check_ranker

Value = TypeVar("Value")

Carried = Annotated[Value, SkipValidation()]
"""A field that pydantic shows in schemas and leaves to somebody else to judge."""

CONFIG_FIELDS = {field.name: field.default for field in dataclasses.fields(RerankerConfig)}

FRAMEWORKS = {
    "name": "What traces call it. None: its class's name.",
    "tags": "Words that traces of every call carry.",
    "metadata": "Values that traces of every call carry.",
    "callback_manager": "Whom calls report to.",
    "class_name": "The name under which configurations are saved.",
}
"""What fields are for that a framework's base class brings and does not explain in schemas."""

if TYPE_CHECKING:  # what may be given, of which `_judge` makes one thing
    PathText = str | Path
    Devices = str | Sequence[str] | None
    Answers = Sequence[str] | None
    Token = SecretStr | str | None
    WindowsValue = Windows | Mapping[str, Any] | None
    FuseValue = Fuse | FuseMethod | Mapping[str, Any] | None
    CalibrationValue = Calibration | str | Path | Mapping[str, Any] | None
    EarlyExitValue = EarlyExit | Mapping[str, Any] | None
    CacheValue = ScoreCache | Mapping[str, Any] | None
    DocumentTokensValue = DocumentTokens | str | Path | None
    RemoteValue = RemoteConfig | Mapping[str, Any] | None
else:
    PathText = str
    Devices = str | tuple[str, ...]
    Answers = tuple[str, ...] | None
    Token = SecretStr | None
    WindowsValue = Windows | None
    FuseValue = Fuse | None
    CalibrationValue = Calibration | None
    EarlyExitValue = EarlyExit | None
    CacheValue = dict[str, Any] | None
    DocumentTokensValue = str | None
    RemoteValue = Annotated[
        dict[str, Any] | None, PlainSerializer(lambda value: value and value.to_dict())
    ]

FIELDS_CONFIG = ConfigDict(
    extra="forbid",
    validate_assignment=True,
    arbitrary_types_allowed=True,
    protected_namespaces=(),  # `model` is our field
    hide_input_in_errors=True,  # a token may be among it
    use_attribute_docstrings=True,  # what a schema says of the other fields
)


class RerankerFields(BaseModel):
    """The fields of `RerankerConfig`, explained there, or a ready `reranker`.

    The model is loaded on first use, once for all adapters of equal weights. It never travels: a
    pickle or a dump holds the configuration, less the token.

    Raises ConfigError (a field), and on first use what loading the model raises.
    """

    model_config = FIELDS_CONFIG

    model: Carried[PathText] = DEFAULT_MODEL
    revision: Carried[str | None] = None
    file_name: Carried[str | None] = None
    cache_folder: Carried[PathText | None] = None
    local_files_only: Carried[bool] = False
    token: Carried[Token] = Field(default=None, exclude=True, repr=False)
    trust_remote_code: Carried[bool] = False
    prompt: Carried[str | None] = None
    template: Carried[str | None] = None
    answers: Carried[Answers] = None
    label: Carried[int | str | None] = None
    max_length: Carried[int | None] = None
    truncation: Carried[Truncation] = "longest_first"
    query_max_tokens: Carried[int | None] = None
    windows: Carried[WindowsValue] = None
    special_tokens: Carried[SpecialTokens | None] = None
    activation: Carried[Activation] = "default"
    calibration: Carried[CalibrationValue] = None
    on_empty_text: Carried[OnEmptyText] = "keep_last"
    rerank_count: Carried[int | None] = None
    rest: Carried[Rest] = "drop"
    fuse: Carried[FuseValue] = None
    early_exit: Carried[EarlyExitValue] = None
    backend: Carried[BackendName] = "auto"
    device: Carried[Devices] = "auto"
    dtype: Carried[DType] = "auto"
    num_workers: Carried[int | None] = None
    num_threads: Carried[int | None] = None
    max_batch_tokens: Carried[int | None] = None
    tokenizer: Carried[TokenizerName] = "auto"
    cache: Carried[CacheValue] = Field(default=None, exclude=True, repr=False)
    document_tokens: Carried[DocumentTokensValue] = Field(default=None, exclude=True, repr=False)
    remote: Carried[RemoteValue] = None
    max_queue_pairs: Carried[int | None] = None
    max_queue_tokens: Carried[int | None] = None
    when_full: Carried[WhenFull] = "block"
    reranker: SkipJsonSchema[Carried[Ranker | None]] = Field(default=None, exclude=True, repr=False)
    """A ready one, in place of the configuration: a `Reranker`, or anything with `rerank_many`,
    `arerank_many`, `info` and `close`. It stays the caller's: `close` leaves it open."""

    _source: RankerSource | None = PrivateAttr(default=None)

    if not TYPE_CHECKING:  # type checkers and editors see a keyword for each field

        def __init__(self, *values: Any, **fields: Any) -> None:
            if values:
                raise OptionError(
                    f"{type(self).__name__}() takes its options by name, model=... among them: got "
                    f"{values[0]!r:.80}"
                )
            with own_errors(type(self).model_fields):
                super().__init__(**fields)

        @classmethod
        def model_validate(cls, *arguments: Any, **options: Any) -> Self:
            """As pydantic's, whose options differ between versions; raises our own errors."""
            with own_errors(cls.model_fields):
                return super().model_validate(*arguments, **options)

        @classmethod
        def model_validate_json(cls, *arguments: Any, **options: Any) -> Self:
            """`model_validate` of a JSON text."""
            with own_errors(cls.model_fields):
                return super().model_validate_json(*arguments, **options)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: Any, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = super().__get_pydantic_json_schema__(core_schema, handler)
        for name, shown in handler.resolve_ref_schema(schema).get("properties", {}).items():
            if name in FRAMEWORKS:
                shown.setdefault("description", FRAMEWORKS[name])
        return schema

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        super().__pydantic_init_subclass__(**options)
        cls.__signature__ = plain_signature(cls)

    def warm(self) -> None:
        """Load the model now, not at the first call, and run one pair where the ranker can."""
        ranker = self._ranker()
        if isinstance(ranker, Warmable):
            ranker.warm()

    async def awarm(self) -> None:
        """`warm`, awaited; loading happens off the event loop."""
        ranker = await self._aranker()
        if isinstance(ranker, Warmable):
            await ranker.awarm()

    def close(self) -> None:
        """Let go of the model: later calls raise ClosedError. Idempotent.

        Where no other adapter holds it, it is kept for a minute, for the next one.
        """
        self._prepared().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _ranker(self) -> Ranker:
        return self._prepared().get()

    async def _aranker(self) -> Ranker:
        return await self._prepared().aget()

    def _prepared(self) -> RankerSource:
        """Where the ranker comes from; made now for a subclass that asks before it was made.

        RerankError where not even the fields are set: `__init__` has not run.
        """
        if getattr(self, "__pydantic_private__", None) is None or "reranker" not in self.__dict__:
            raise RerankError(
                f"the {type(self).__name__} is not prepared yet: its fields are set when "
                "super().__init__() has run"
            )
        if self._source is None:
            self._prepare()
        source = self._source
        assert source is not None  # noqa: S101  # what _prepare is for; said to type checkers
        return source

    @model_validator(mode="after")
    def _check_fields(self) -> Self:
        self._prepare()
        return self

    def _prepare(self) -> None:
        """Judge the fields, and set what is kept beside them. Raises ConfigError."""
        source = RankerSource(self._judge(), self.reranker, type(self).__name__)
        if self._source == source:
            return  # the same model: what is open stays open, and what is closed closed
        if self._source is not None and self._source.closed:
            source.close()  # LlamaIndex's engines assign fields: that reopens nothing
        self._source = source

    def _judge(self) -> RerankerConfig:
        """The configuration in the fields, which then hold its values. Raises ConfigError."""
        check_ranker(self.reranker, self.model)
        config = self._configuration()
        self.__dict__.update({name: getattr(config, name) for name in CONFIG_FIELDS})
        self.__dict__["token"] = None if config.token is None else SecretStr(config.token)
        # By value: frameworks make copies by naming every field.
        given = [
            name
            for name, default in CONFIG_FIELDS.items()
            if getattr(config, name) != default and name not in RULES  # these go with requests
        ]
        if self.reranker is not None and given:
            raise ConfigError(
                f"reranker is ready as it is, so {', '.join(given)} would change nothing: "
                "give either reranker= or the configuration"
            )
        return config

    def _configuration(self) -> RerankerConfig:
        values = {name: getattr(self, name) for name in CONFIG_FIELDS}
        token = values["token"]
        if isinstance(token, SecretStr):
            token = token.get_secret_value() or None
        device = "auto" if values["device"] is None else values["device"]
        return RerankerConfig(**{**values, "token": token, "device": device})

    def __setattr__(self, name: str, value: Any) -> None:
        # pydantic checks fields against each other after it has set them: undo what does not fit.
        before = dict(self.__dict__)
        try:
            with own_errors(type(self).model_fields):
                super().__setattr__(name, value)
        except ValueError:
            self.__dict__.update(before)
            raise

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with the fields of *update*, whose model is theirs. Raises ConfigError."""
        copied = super().model_copy(update=update, deep=deep)
        copied._prepare()
        return copied

    def __eq__(self, other: object) -> bool:
        """Whether all fields are equal but those that are alive, which are no settings."""
        mine = {name: self.__dict__[name] for name in LIVE}
        if isinstance(other, RerankerFields) and any(
            other.__dict__[name] is not it for name, it in mine.items()
        ):
            other = other.__copy__()
            other.__dict__.update(mine)
        return super().__eq__(other)

    __hash__ = None  # type: ignore[assignment]  # as pydantic has it: fields can be assigned

    def __copy__(self) -> Self:
        copied = super().__copy__()
        copied._source = None  # it has a lease of its own
        copied._prepare()
        return copied

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        memo = {} if memo is None else memo
        memo[id(self.reranker)] = self.reranker
        return super().__deepcopy__(memo)

    def __getstate__(self) -> dict[Any, Any]:
        if self.reranker is not None:
            raise ConfigError(
                f"a {type(self).__name__} made with reranker= cannot be pickled, for its model is "
                "in memory: make it from the configuration fields"
            )
        # pydantic's own: LlamaIndex's would drop what cannot be pickled, and only warn.
        state = BaseModel.__getstate__(self)
        return {**state, "__dict__": state["__dict__"] | dict.fromkeys(("token", *LIVE))}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        BaseModel.__setstate__(self, state)


def empty_text_rule(fields: RerankerFields) -> OnEmptyText | None:
    """What requests say of blank documents; None, where a ready ranker goes by its own rule."""
    default = RerankerFields.model_fields["on_empty_text"].default
    ready = fields.reranker is not None and fields.on_empty_text == default
    return None if ready else fields.on_empty_text


for _name, _option in OPTIONS.items():
    RerankerFields.model_fields[_name].description = _option.text
RerankerFields.model_rebuild(force=True)
