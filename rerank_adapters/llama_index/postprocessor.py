"""CrossEncoderPostprocessor: its fields, and its ways in, sync and native async."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

from llama_index.core.bridge.pydantic import (
    Field,
    StrictInt,
    ValidationError,
    ValidationInfo,
    field_serializer,
    field_validator,
)
from llama_index.core.callbacks import CallbackManager
from llama_index.core.instrumentation import (  # type: ignore[attr-defined]  # not said so
    get_dispatcher,
)
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle
from pydantic.json_schema import SkipJsonSchema

from ..adapting import FIELDS_CONFIG, OnEmptyText, RerankerFields
from ..errors import ConfigError, RerankError
from ..reranker import Request, Reranker
from ..values import Ranking
from .call import Call, Requests, calls_of
from .events import told
from .metadata import move_long, texts_to_count

dispatcher = get_dispatcher(__name__)


class CrossEncoderPostprocessor(RerankerFields, BaseNodePostprocessor):
    """Keeps the *top_n* most relevant nodes, best first, with `NodeWithScore.score` set.

    Input nodes, their metadata and their list stay as they were: what comes back are new
    NodeWithScore objects around the same nodes. Equal scores keep the order given; scores are
    finite Python floats. Nodes without text come last with score None, unless there is a threshold.
    Configure it by the fields of `RerankerConfig`, explained there, or give a ready `reranker`.
    Equal configurations share one model, loaded on first use.

    Raises ConfigError or pydantic's ValidationError (a field) and InputError (query, nodes), all
    three ValueErrors, and on first use what loading the model raises.
    """

    model_config = FIELDS_CONFIG

    top_n: StrictInt | None = Field(default=2, ge=1)
    """Nodes that come back. None: all."""
    score_threshold: float | None = Field(default=None, allow_inf_nan=False)
    """The lowest score kept (inclusive), before the cut to `top_n`. None: no bound."""
    metadata_mode: MetadataMode = MetadataMode.EMBED
    """Which metadata are scored with the text: before it, or after it where they are long."""
    text_fn: SkipJsonSchema[Callable[[BaseNode], str] | None] = None
    """Builds the text that is scored; `metadata_mode` then has no part in it."""
    keep_retrieval_score: bool = False
    """Keep the score that came in as metadata["retrieval_score"], unseen by embeddings and LLMs."""
    on_empty_text: OnEmptyText = "keep_last"
    """Nodes without text: after all others and unscored, left out, or an InputError."""
    reranker: SkipJsonSchema[Reranker | None] = Field(default=None, repr=False)

    if not TYPE_CHECKING:  # type checkers and editors see a keyword for each field

        def __init__(self, **fields: Any) -> None:
            with _own_errors():
                super().__init__(**fields)

    def __setattr__(self, name: str, value: Any) -> None:
        with _own_errors():
            super().__setattr__(name, value)

    @classmethod
    def class_name(cls) -> str:
        """The name under which configurations are saved."""
        return "CrossEncoderPostprocessor"

    @dispatcher.span
    def postprocess_nodes_batch(self, requests: Requests) -> list[list[NodeWithScore]]:
        """`postprocess_nodes` for each (query, nodes) of *requests*: one pool of pairs."""
        return self._run(calls_of(self, requests))

    @dispatcher.span
    async def apostprocess_nodes_batch(self, requests: Requests) -> list[list[NodeWithScore]]:
        """`postprocess_nodes_batch`, awaited."""
        return await self._arun(calls_of(self, requests))

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        return self._run([Call(self, query_bundle, nodes)])[0]

    @dispatcher.span
    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        return (await self._arun([Call(self, query_bundle, nodes)]))[0]

    def _run(self, calls: Sequence[Call]) -> list[list[NodeWithScore]]:
        with told(calls) as asked:
            if asked:
                reranker = self._ranker()
                texts = texts_to_count(asked, reranker.info()["max_length"])
                counts = reranker.count_tokens(texts) if texts else []
                requests = _requests(asked, texts, counts, reranker)
                _answer(asked, reranker.rerank_many(requests, **self._selection()))
        return [call.output for call in calls]

    async def _arun(self, calls: Sequence[Call]) -> list[list[NodeWithScore]]:
        with told(calls) as asked:
            if asked:
                reranker = await self._aranker()
                texts = texts_to_count(asked, reranker.info()["max_length"])
                counts = await asyncio.to_thread(reranker.count_tokens, texts) if texts else []
                requests = _requests(asked, texts, counts, reranker)
                _answer(asked, await reranker.arerank_many(requests, **self._selection()))
        return [call.output for call in calls]

    def _selection(self) -> dict[str, Any]:
        return {"top_n": self.top_n, "score_threshold": self.score_threshold}

    @field_validator("callback_manager", mode="before")
    @classmethod
    def _given(cls, value: CallbackManager | None) -> CallbackManager:
        return CallbackManager() if value is None else value

    @field_validator("text_fn", "reranker", mode="before")
    @classmethod
    def _not_a_name(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, str):
            raise ConfigError(
                f"{info.field_name} is only named in a saved configuration, {value}: "
                f"give it again, as in from_dict(saved, {info.field_name}=...)"
            )
        return value

    @field_serializer("text_fn", "reranker", when_used="unless-none")
    def _name_only(self, value: object) -> str:
        """Code and loaded models are not data; left out, their loss would go unseen."""
        named = value if hasattr(value, "__qualname__") else type(value)
        return f"<{named.__module__}.{named.__qualname__}>"

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        memo = {} if memo is None else memo
        memo[id(self.callback_manager)] = self.callback_manager  # as engines share it
        return super().__deepcopy__(memo)

    def __getstate__(self) -> dict[Any, Any]:
        state = super().__getstate__()
        del state["__dict__"]["callback_manager"]  # its handlers belong to this process
        return state

    def __setstate__(self, state: dict[Any, Any]) -> None:
        fields = {**state["__dict__"], "callback_manager": CallbackManager()}
        super().__setstate__({**state, "__dict__": fields})


def _requests(
    calls: Sequence[Call], texts: Sequence[str], counts: Sequence[int], reranker: Reranker
) -> list[Request]:
    tokens = dict(zip(texts, counts, strict=True))
    move_long(calls, tokens, reranker.info()["max_length"])
    return [call.request() for call in calls]


def _answer(calls: Sequence[Call], rankings: Sequence[Ranking]) -> None:
    for call, ranking in zip(calls, rankings, strict=True):
        call.answer(ranking)


@contextmanager
def _own_errors() -> Iterator[None]:
    """Raise this library's errors as they are, not inside pydantic's."""
    try:
        yield
    except ValidationError as error:
        for detail in error.errors():
            cause = detail.get("ctx", {}).get("error")
            if isinstance(cause, RerankError):
                raise cause from None
        raise
