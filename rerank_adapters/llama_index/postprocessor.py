"""CrossEncoderPostprocessor: its fields, and its ways in, sync and native async."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Self, Unpack

from llama_index.core.bridge.pydantic import (
    Field,
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

from ..adapter_fields import (
    FIELDS_CONFIG,
    Carried,
    FallbackFields,
    RankerSource,
    as_config_errors,
    checked_rankings,
    plain_selection,
)
from ..config import RerankerConfig
from ..errors import ConfigError
from ..protocols import Ranker, RerankRequest, TokenCounter
from .events import Trace, told, traced
from .hooks import ASYNC, SYNC, all_of, follow_sync, overrides
from .metadata import long_metadata, texts_to_count
from .request import (
    NodeRequest,
    Options,
    Overrides,
    Requests,
    known,
    outcomes,
    read_bundles,
    read_requests,
    settle,
)

dispatcher = get_dispatcher(__name__)

Hook = Callable[..., object]

_GIVEN: ContextVar[tuple[object, Mapping[str, Any]]] = ContextVar("given", default=(None, {}))


class CrossEncoderPostprocessor(FallbackFields, BaseNodePostprocessor):
    """Keeps the *top_n* most relevant nodes, best first, with `NodeWithScore.score` set.

    Input nodes, their metadata and their list stay as they were: what comes back are new
    NodeWithScore objects around the same nodes. Equal scores keep the order given; scores are
    finite Python floats. A node without text is blank, whatever its metadata: see `on_empty_text`.
    Configure it by the fields of `RerankerConfig`, explained there, or give a ready `reranker`.
    Equal configurations share one model, loaded on first use.

    Raises ConfigError (a field) and InputError (query, nodes), both ValueErrors, and on first use
    what loading the model raises; pydantic's ValidationError for what is no field.

    >>> from llama_index.core.schema import NodeWithScore, TextNode
    >>> texts = ["It is red.", "It is 70 m tall."]
    >>> nodes = [NodeWithScore(node=TextNode(text=text)) for text in texts]
    >>> postprocessor = CrossEncoderPostprocessor(top_n=1)
    >>> postprocessor.postprocess_nodes(nodes, query_str="how tall is it?")[0].text
    'It is 70 m tall.'
    """

    model_config = FIELDS_CONFIG

    top_n: Carried[int | None] = 2
    """Nodes that come back. None: all."""
    score_threshold: Carried[float | None] = None
    """The lowest score kept (inclusive), before the cut to `top_n`. None: no bound."""
    metadata_mode: MetadataMode = MetadataMode.EMBED
    """Which metadata are scored with the text: before it, or after it where they are long."""
    text_fn: SkipJsonSchema[Carried[Callable[[BaseNode], str] | None]] = None
    """Builds the text that is scored; `metadata_mode` then has no part in it."""
    keep_retrieval_score: bool = False
    """Keep the score that came in as metadata["retrieval_score"], unseen by embeddings and LLMs."""
    span_key: Carried[str | None] = None
    """Where in a node's metadata the bounds of its best passage are written, [start, end] in
    characters of its text, unseen by embeddings and LLMs, when nodes are read in `windows`."""
    return_passages: Carried[bool] = False
    """Give new nodes of the same ids that hold the best passage alone, with `windows`."""
    keep_unscored: bool = False
    """Nodes without text (images) come back beside the others, whatever `top_n` and
    `score_threshold` say."""
    reranker: SkipJsonSchema[Carried[Ranker | None]] = Field(default=None, repr=False)

    @classmethod
    def class_name(cls) -> str:
        """The name under which configurations are saved."""
        return "CrossEncoderPostprocessor"

    def postprocess_nodes(
        self,
        nodes: list[NodeWithScore],
        query_bundle: QueryBundle | None = None,
        query_str: str | None = None,
        **options: Unpack[Overrides],
    ) -> list[NodeWithScore]:
        """Rerank *nodes* for the query; *options* are for this call alone."""
        with self._given(options):
            return super().postprocess_nodes(nodes, query_bundle, query_str)

    async def apostprocess_nodes(
        self,
        nodes: list[NodeWithScore],
        query_bundle: QueryBundle | None = None,
        query_str: str | None = None,
        **options: Unpack[Overrides],
    ) -> list[NodeWithScore]:
        """`postprocess_nodes`, awaited; nothing blocks the event loop, loading included."""
        with self._given(options):
            return await super().apostprocess_nodes(nodes, query_bundle, query_str)

    def postprocess_nodes_batch(
        self, requests: Requests, **options: Unpack[Overrides]
    ) -> list[list[NodeWithScore]]:
        """`postprocess_nodes` for each (query, nodes) of *requests*: one pool of pairs.

        Where a subclass has a `_postprocess_nodes` of its own, each goes through that, by itself.
        """
        with self._given(options):
            if overrides(type(self), CrossEncoderPostprocessor, SYNC):
                return [self.postprocess_nodes(nodes, it) for it, nodes in read_bundles(requests)]
            return self._run(read_requests(requests, self._options()), self._postprocess_nodes)

    async def apostprocess_nodes_batch(
        self, requests: Requests, **options: Unpack[Overrides]
    ) -> list[list[NodeWithScore]]:
        """`postprocess_nodes_batch`, awaited; calls of a subclass's own hook wait together."""
        with self._given(options):
            if overrides(type(self), CrossEncoderPostprocessor, ASYNC):
                return await all_of(
                    self.apostprocess_nodes(nodes, it) for it, nodes in read_bundles(requests)
                )
            read = read_requests(requests, self._options())
            return await self._arun(read, self._apostprocess_nodes)

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        return self._run([NodeRequest(query_bundle, nodes, self._options())])[0]

    @dispatcher.span
    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        return (await self._arun([NodeRequest(query_bundle, nodes, self._options())]))[0]

    def _run(
        self, requests: Sequence[NodeRequest], spanned: Hook | None = None
    ) -> list[list[NodeWithScore]]:
        source = self._prepared()
        with self._traced(requests, source, spanned) as asked, outcomes(asked, self._owner):
            if asked:
                ranker = source.get()
                to_rank = _to_rank(asked, ranker, _texts_to_count(asked, ranker))
                found = ranker.rerank_many(to_rank, **asked[0].selection)
                settle(asked, checked_rankings(found, to_rank), self._owner)
        return [request.output for request in requests]

    async def _arun(
        self, requests: Sequence[NodeRequest], spanned: Hook | None = None
    ) -> list[list[NodeWithScore]]:
        source = self._prepared()
        with self._traced(requests, source, spanned) as asked, outcomes(asked, self._owner):
            if asked:
                ranker = await source.aget()
                texts = _texts_to_count(asked, ranker)
                if texts:
                    to_rank = await asyncio.to_thread(_to_rank, asked, ranker, texts)
                else:
                    to_rank = _to_rank(asked, ranker, texts)
                found = await ranker.arerank_many(to_rank, **asked[0].selection)
                settle(asked, checked_rankings(found, to_rank), self._owner)
        return [request.output for request in requests]

    @property
    def _owner(self) -> str:
        """What a log calls it."""
        return type(self).__name__

    @contextmanager
    def _traced(
        self, requests: Sequence[NodeRequest], source: RankerSource, spanned: Hook | None
    ) -> Iterator[list[NodeRequest]]:
        """The requests to rank; all are told of, whatever comes of them."""
        running = source.running
        facts = told(self if running is None and self.reranker is None else running)
        traces = [Trace(one, self, facts, spanned) for one in requests]
        with traced(traces, lambda: source.running):
            yield [one for one in requests if one.asks]

    @contextmanager
    def _given(self, options: Overrides) -> Iterator[None]:
        """Keep what a call was given for the hooks under it, which have no argument for it."""
        token = _GIVEN.set((self, {**self._overrides(), **options}))
        try:
            yield
        finally:
            _GIVEN.reset(token)

    def _overrides(self) -> Mapping[str, Any]:
        owner, given = _GIVEN.get()
        return given if owner is self else {}

    def _options(self) -> Options:
        return Options.of(self, **known(self._overrides()))

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        super().__pydantic_init_subclass__(**options)
        follow_sync(cls)

    def _judge(self) -> RerankerConfig:
        config = super()._judge()
        with as_config_errors():
            Options.of(self)
        selection = plain_selection(self.top_n, self.score_threshold)
        self.__dict__["top_n"], self.__dict__["score_threshold"] = selection
        return config

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        fields = type(self).model_fields
        for name, value in super().__repr_args__():
            # Only what was set; a callback manager there is always.
            if name not in fields or (name != "callback_manager" and value != fields[name].default):
                yield name, value

    @field_validator("callback_manager", mode="before")
    @classmethod
    def _manager(cls, value: CallbackManager | None) -> CallbackManager:
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


def _texts_to_count(asked: Sequence[NodeRequest], ranker: Ranker) -> list[str]:
    """The texts whose tokens say where metadata stand; none where the ranker knows no tokens."""
    if not isinstance(ranker, TokenCounter):
        return []
    return texts_to_count([(one.query, one.metadata) for one in asked], ranker.max_length)


def _to_rank(
    asked: Sequence[NodeRequest], ranker: Ranker, texts: Sequence[str]
) -> list[RerankRequest]:
    """What the ranker is asked; counts the tokens of *texts*, which takes a while."""
    if not texts or not isinstance(ranker, TokenCounter):
        return [one.to_rank(frozenset()) for one in asked]
    counts = dict(zip(texts, ranker.count_tokens(texts), strict=True))
    window = ranker.max_length
    return [one.to_rank(long_metadata(one.query, one.metadata, counts, window)) for one in asked]
