"""LlamaIndex: a node postprocessor that changes nothing but the order and the score."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Self, TypeVar

from .errors import ConfigError, InputError, MissingDependencyError, RerankError

try:
    from llama_index.core.bridge.pydantic import (
        Field,
        ValidationError,
        ValidationInfo,
        field_serializer,
        field_validator,
    )
    from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
    from llama_index.core.instrumentation import (  # type: ignore[attr-defined]  # not said so
        get_dispatcher,
    )
    from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle
except ImportError as error:
    raise MissingDependencyError("llama_index.core", "llama-index") from error

from .adapting import FIELDS_CONFIG, OnEmptyText, RerankerFields, split_empty
from .reranker import Request, Reranker
from .values import Ranking

__all__ = ["CrossEncoderPostprocessor"]

RETRIEVAL_SCORE = "retrieval_score"
"""Where `keep_retrieval_score` writes, as LlamaIndex's own rerankers do."""

METADATA_SHARE = 0.25
"""Metadata of more tokens than this share of `max_length` go after the body: truncation cuts the
end, so it costs metadata and never the passage."""

AnyNode = TypeVar("AnyNode", bound=BaseNode)
Query = str | QueryBundle
Requests = Sequence[tuple[Query, Sequence[NodeWithScore]]]

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

    top_n: int | None = Field(default=2, ge=1)
    """Nodes that come back. None: all."""
    score_threshold: float | None = Field(default=None, allow_inf_nan=False)
    """The lowest score kept (inclusive), before the cut to `top_n`. None: no bound."""
    metadata_mode: MetadataMode = MetadataMode.EMBED
    """Which metadata are scored with the text: before it, or after it where they are long."""
    text_fn: Callable[[BaseNode], str] | None = None
    """Builds the text that is scored; `metadata_mode` then has no part in it."""
    keep_retrieval_score: bool = False
    """Keep the score that came in as metadata["retrieval_score"], unseen by embeddings and LLMs."""
    on_empty_text: OnEmptyText = "keep_last"
    """Nodes without text: after all others and unscored, left out, or an InputError."""
    reranker: Reranker | None = Field(default=None, repr=False)

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
        return self._run(_calls(self, requests))

    @dispatcher.span
    async def apostprocess_nodes_batch(self, requests: Requests) -> list[list[NodeWithScore]]:
        """`postprocess_nodes_batch`, awaited."""
        return await self._arun(_calls(self, requests))

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        return self._run([_Call(self, query_bundle, nodes)])[0]

    @dispatcher.span
    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        return (await self._arun([_Call(self, query_bundle, nodes)]))[0]

    def _run(self, calls: Sequence[_Call]) -> list[list[NodeWithScore]]:
        with _told(calls) as asked:
            if asked:
                reranker = self._ranker()
                unsure = _perhaps_long(asked, reranker)
                counts = reranker.count_tokens(unsure) if unsure else []
                requests = _requests(asked, _long(unsure, counts, reranker))
                _answer(asked, reranker.rerank_many(requests, **self._selection()))
        return [call.output for call in calls]

    async def _arun(self, calls: Sequence[_Call]) -> list[list[NodeWithScore]]:
        with _told(calls) as asked:
            if asked:
                reranker = await self._aranker()
                unsure = _perhaps_long(asked, reranker)
                counts = await asyncio.to_thread(reranker.count_tokens, unsure) if unsure else []
                requests = _requests(asked, _long(unsure, counts, reranker))
                _answer(asked, await reranker.arerank_many(requests, **self._selection()))
        return [call.output for call in calls]

    def _selection(self) -> dict[str, Any]:
        return {"top_n": self.top_n, "score_threshold": self.score_threshold}

    def _model_name(self) -> str:
        ready = {} if self.reranker is None else self.reranker.info()
        return str(ready.get("model", self.model))

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


class _Call:
    """One query with its nodes: what is scored, what cannot be, and what comes out."""

    def __init__(
        self,
        owner: CrossEncoderPostprocessor,
        query: Query | None,
        nodes: Sequence[NodeWithScore],
        where: str = "",
    ) -> None:
        self.owner = owner
        self.query = _checked_query(query, f"{where}query")
        self.nodes = _checked_nodes(nodes, f"{where}nodes")
        self.output: list[NodeWithScore] = []
        self._bodies = [
            self._body(given.node, f"{where}nodes[{place}]")
            for place, given in enumerate(self.nodes)
        ]
        self._scored, self._blank = split_empty(
            self._bodies, owner.on_empty_text, name=f"{where}nodes"
        )
        mode = MetadataMode.NONE if owner.text_fn else owner.metadata_mode
        self.metadata = [
            _without_retrieval_score(self.nodes[place].node).get_metadata_str(mode).strip()
            for place in self._scored
        ]

    def request(self, long: set[str]) -> Request:
        """The query and the texts to score; metadata among *long* go after the body."""
        places = zip(self._scored, self.metadata, strict=True)
        return self.query, [self._text(place, metadata, long) for place, metadata in places]

    def answer(self, ranking: Ranking) -> None:
        """Set the output: the nodes of *ranking*, then those without text, cut to top_n."""
        ranked = [(self._scored[place.index], place.score) for place in ranking]
        # What was not scored cannot meet a threshold.
        blank = self._blank if self.owner.score_threshold is None else []
        places = [*ranked, *((place, None) for place in blank)]
        self.output = [self._copy(place, score) for place, score in places[: self.owner.top_n]]

    def _body(self, node: BaseNode, name: str) -> str:
        if self.owner.text_fn is None:
            return node.get_content(metadata_mode=MetadataMode.NONE)
        text = self.owner.text_fn(node)
        if not isinstance(text, str):
            raise InputError(f"text_fn({name}.node) must give a str: got {text!r:.80}")
        return text

    def _text(self, place: int, metadata: str, long: set[str]) -> str:
        if not metadata:
            return self._bodies[place]
        if metadata in long:
            return f"{self._bodies[place]}\n\n{metadata}"
        node = _without_retrieval_score(self.nodes[place].node)
        return node.get_content(metadata_mode=self.owner.metadata_mode)

    def _copy(self, place: int, score: float | None) -> NodeWithScore:
        given = self.nodes[place]
        if not self.owner.keep_retrieval_score:
            return given.model_copy(update={"score": score})
        node = _with_retrieval_score(given.node, given.score)
        return given.model_copy(update={"score": score, "node": node})


def _calls(owner: CrossEncoderPostprocessor, requests: Requests) -> list[_Call]:
    return [
        _Call(owner, query, nodes, where=f"requests[{place}]: ")
        for place, (query, nodes) in enumerate(requests)
    ]


def _checked_query(query: Query | None, name: str) -> str:
    text = query.query_str if isinstance(query, QueryBundle) else query
    if not isinstance(text, str):
        raise InputError(
            f"{name} must be a str or a QueryBundle: got {query!r:.80}; pass query_str="
        )
    if not text.strip():
        raise InputError(f"{name} must not be blank: got {text!r:.80}")
    return text.strip()  # RetrieverTool hands over "query\n\n"


def _checked_nodes(nodes: Sequence[NodeWithScore], name: str) -> list[NodeWithScore]:
    checked = list(nodes)
    for place, node in enumerate(checked):
        if not isinstance(node, NodeWithScore):
            raise InputError(f"{name}[{place}] must be a NodeWithScore: got {type(node).__name__}")
    return checked


def _perhaps_long(calls: Sequence[_Call], reranker: Reranker) -> list[str]:
    """Distinct metadata that may be over their share; a token is at least a byte."""
    room = _room(reranker)
    texts = dict.fromkeys(text for call in calls for text in call.metadata)
    return [text for text in texts if len(text.encode("utf-8", "replace")) > room]


def _long(texts: Sequence[str], counts: Sequence[int], reranker: Reranker) -> set[str]:
    room = _room(reranker)
    return {text for text, count in zip(texts, counts, strict=True) if count > room}


def _room(reranker: Reranker) -> int:
    return int(reranker.info()["max_length"] * METADATA_SHARE)


def _requests(calls: Sequence[_Call], long: set[str]) -> list[Request]:
    return [call.request(long) for call in calls]


def _answer(calls: Sequence[_Call], rankings: Sequence[Ranking]) -> None:
    for call, ranking in zip(calls, rankings, strict=True):
        call.answer(ranking)


def _with_retrieval_score(node: AnyNode, score: float | None) -> AnyNode:
    """A copy that carries *score* in its metadata, out of sight of embeddings and LLMs."""
    kept = None if score is None else float(score)  # an earlier step may have left a NumPy number
    return node.model_copy(
        update={
            "metadata": {**node.metadata, RETRIEVAL_SCORE: kept},
            "excluded_embed_metadata_keys": _with_key(node.excluded_embed_metadata_keys),
            "excluded_llm_metadata_keys": _with_key(node.excluded_llm_metadata_keys),
        }
    )


def _with_key(keys: list[str]) -> list[str]:
    return keys if RETRIEVAL_SCORE in keys else [*keys, RETRIEVAL_SCORE]


def _without_retrieval_score(node: AnyNode) -> AnyNode:
    """A kept retrieval score is bookkeeping: it must not change the text that is scored."""
    if RETRIEVAL_SCORE not in node.metadata:
        return node
    rest = {key: value for key, value in node.metadata.items() if key != RETRIEVAL_SCORE}
    return node.model_copy(update={"metadata": rest})


@contextmanager
def _told(calls: Sequence[_Call]) -> Iterator[list[_Call]]:
    """The calls that have nodes, each between its events; an error closes them all."""
    asked = [call for call in calls if call.nodes]
    with ExitStack() as open_events:
        for call in asked:
            open_events.enter_context(_events(call))
        yield asked


@contextmanager
def _events(call: _Call) -> Iterator[None]:
    """A start and an end for *call*: instrumentation events and the older callback pair."""
    owner, name = call.owner, call.owner._model_name()
    top_n = owner.top_n or len(call.nodes)  # the event asks for an int
    payload: dict[str, Any] = {
        EventPayload.NODES: call.nodes,
        EventPayload.MODEL_NAME: name,
        EventPayload.QUERY_STR: call.query,
        EventPayload.TOP_K: top_n,
    }
    dispatcher.event(
        ReRankStartEvent(query=call.query, nodes=call.nodes, top_n=top_n, model_name=name)
    )
    try:
        with owner.callback_manager.event(CBEventType.RERANKING, payload=payload) as event:
            yield
            event.on_end(payload={EventPayload.NODES: call.output})
    finally:
        dispatcher.event(ReRankEndEvent(nodes=call.output))


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
