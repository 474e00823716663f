"""LlamaIndex: a node postprocessor that changes nothing but the order and the score."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, TypeVar

from .errors import InputError, MissingDependencyError

try:
    from llama_index.core.bridge.pydantic import (
        ConfigDict,
        Field,
        PrivateAttr,
        field_serializer,
        field_validator,
    )
    from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
    from llama_index.core.callbacks.base import EventContext
    from llama_index.core.instrumentation import get_dispatcher
    from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle
except ImportError as error:
    raise MissingDependencyError("llama_index.core", "llama-index") from error

from .adapting import LazyReranker, OnEmptyText, check_reranker, config_from, split_empty
from .config import DEFAULT_MODEL, Activation, BackendName, DType, Truncation
from .reranker import Reranker
from .values import RankedDocument, Ranking

RETRIEVAL_SCORE = "retrieval_score"
METADATA_SHARE = 0.25
"""Metadata longer than this share of the window goes after the body, so that truncation, which cuts
the end, costs metadata and never the passage."""

Node = TypeVar("Node", bound=BaseNode)
Queries = Sequence[tuple[str | QueryBundle, Sequence[NodeWithScore]]]

dispatcher = get_dispatcher(__name__)


class CrossEncoderPostprocessor(BaseNodePostprocessor):
    """Keeps the *top_n* most relevant nodes, best first, with `NodeWithScore.score` set.

    Input nodes, their metadata and the list are left as they were: what comes back are new
    NodeWithScore objects around the same nodes. The configuration fields are those of
    `RerankerConfig`; or give a ready `reranker=`. Equal configurations share one loaded model, which
    is loaded on first use. Scores are finite Python floats; equal scores keep the order given.
    """

    model_config = ConfigDict(
        arbitrary_types_allowed=True, extra="forbid", validate_assignment=True,
        protected_namespaces=(),
    )  # fmt: skip

    model: str = Field(default=DEFAULT_MODEL, description="hub id, local folder or 'default'")
    top_n: int | None = Field(default=2, ge=1, description="nodes kept; None keeps all")
    score_threshold: float | None = Field(
        default=None, allow_inf_nan=False, description="lowest score kept, before the cut to top_n"
    )
    backend: BackendName = "auto"
    device: str | tuple[str, ...] | None = Field(default=None, description="None is 'auto'")
    dtype: DType = "auto"
    num_workers: int = 1
    num_threads: int | None = None
    revision: str | None = None
    cache_folder: str | None = None
    local_files_only: bool = False
    token: str | None = Field(default=None, exclude=True, repr=False)
    trust_remote_code: bool = False
    max_length: int | None = None
    truncation: Truncation = "longest_first"
    query_max_tokens: int | None = None
    prompt: str | None = None
    max_batch_tokens: int | None = None
    activation: Activation = "default"
    file_name: str | None = None
    metadata_mode: MetadataMode = Field(
        default=MetadataMode.EMBED, description="which metadata are scored with the text"
    )
    text_fn: Callable[[BaseNode], str] | None = Field(
        default=None, description="builds the scored text; metadata_mode then has no part in it"
    )
    keep_retrieval_score: bool = Field(
        default=False, description="keep the score that came in as metadata['retrieval_score']"
    )
    on_empty_text: OnEmptyText = Field(
        default="keep_last", description="nodes without text: last and unscored, dropped, or an error"
    )
    reranker: Reranker | None = Field(default=None, repr=False, description="a ready one")
    _lazy: LazyReranker = PrivateAttr(default_factory=LazyReranker)

    def __init__(self, *, callback_manager: CallbackManager | None = None, **fields: Any) -> None:
        # pydantic checks the fields; only the name that may be None is taken apart.
        super().__init__(callback_manager=callback_manager or CallbackManager([]), **fields)
        check_reranker(self.reranker, self.model_fields_set)

    @classmethod
    def class_name(cls) -> str:
        """The name under which configurations are saved."""
        return "CrossEncoderPostprocessor"

    @field_validator("text_fn", mode="before")
    @classmethod
    def _callable(cls, value: object) -> object:
        if value is not None and not callable(value):
            raise ValueError(
                f"text_fn must be callable: got {value!r}; a saved configuration names it only, so "
                "give it again: from_dict(data, text_fn=...)"
            )
        return value

    @field_serializer("text_fn", "reranker", when_used="unless-none")
    def _name_only(self, value: object) -> str:
        """Code and loaded models are not data: a saved configuration says their name, and
        loading it asks for the object again."""
        return f"<{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__name__)}>"

    def postprocess_nodes_batch(self, requests: Queries) -> list[list[NodeWithScore]]:
        """`postprocess_nodes` for several (query, nodes) at once: one pool of pairs, few forwards."""
        calls = [_Call(self, query, nodes) for query, nodes in requests]
        with _events(self, calls):
            reranker = self._lazy.get(self._source())
            _finish(calls, reranker.rerank_many([call.request(reranker) for call in calls]))
        return [call.output for call in calls]

    async def apostprocess_nodes_batch(self, requests: Queries) -> list[list[NodeWithScore]]:
        """`postprocess_nodes_batch`, awaited."""
        calls = [_Call(self, query, nodes) for query, nodes in requests]
        with _events(self, calls):
            reranker = await self._lazy.aget(self._source())
            requested = [call.request(reranker) for call in calls]
            _finish(calls, await reranker.arerank_many(requested))
        return [call.output for call in calls]

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        return self.postprocess_nodes_batch([(query_bundle, nodes)])[0] if nodes else []

    @dispatcher.span
    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        return (await self.apostprocess_nodes_batch([(query_bundle, nodes)]))[0] if nodes else []

    def _source(self) -> Any:
        """The ready reranker, or the configuration to load one from."""
        return self.reranker or config_from(self, device=self.device or "auto")


class _Call:
    """One query with its nodes: what is scored, what cannot be, and what comes out."""

    def __init__(
        self,
        owner: CrossEncoderPostprocessor,
        query: str | QueryBundle | None,
        nodes: Sequence[NodeWithScore],
    ) -> None:
        self.owner = owner
        self.query = _query_text(query)
        self.nodes = list(nodes)
        self.output: list[NodeWithScore] = []
        bodies = [self._body(node.node) for node in self.nodes]
        self.scored, self.unscored = split_empty(bodies, owner.on_empty_text, name="nodes")

    def request(self, reranker: Reranker) -> tuple[str, list[str]]:
        """The query and the texts to score, in the order of `scored`."""
        return self.query, [self._text(self.nodes[place].node, reranker) for place in self.scored]

    def finish(self, ranking: Ranking) -> None:
        """Writes the output: ranked nodes, then those without text, cut to top_n."""
        ranked = [self._with_score(place) for place in ranking]
        unscored = [self.nodes[place].model_copy(update={"score": None}) for place in self.unscored]
        # A node that was not scored cannot meet a threshold.
        kept = unscored if self.owner.score_threshold is None else []
        self.output = [*ranked, *kept][: self.owner.top_n]

    def _with_score(self, place: RankedDocument) -> NodeWithScore:
        given = self.nodes[self.scored[place.index]]
        update: dict[str, Any] = {"score": place.score}
        if self.owner.keep_retrieval_score:
            update["node"] = _with_retrieval_score(given.node, given.score)
        return given.model_copy(update=update)

    def _body(self, node: BaseNode) -> str:
        if self.owner.text_fn is not None:
            return self.owner.text_fn(node)
        return node.get_content(metadata_mode=MetadataMode.NONE)

    def _text(self, node: BaseNode, reranker: Reranker) -> str:
        if self.owner.text_fn is not None:
            return self.owner.text_fn(node)
        node = _without_retrieval_score(node)
        metadata = node.get_metadata_str(mode=self.owner.metadata_mode).strip()
        room = int(reranker.info()["max_length"] * METADATA_SHARE)
        # A token is at least one character nearly always, so short metadata need no counting.
        if len(metadata) > room and reranker.count_tokens([metadata])[0] > room:
            return f"{self._body(node)}\n\n{metadata}"
        return node.get_content(metadata_mode=self.owner.metadata_mode)


def _query_text(query: str | QueryBundle | None) -> str:
    if query is None:
        raise InputError("query must be a str or a QueryBundle: got None; pass query_str=")
    return (query.query_str if isinstance(query, QueryBundle) else query).strip()


def _finish(calls: Sequence[_Call], rankings: Sequence[Ranking]) -> None:
    for call, ranking in zip(calls, rankings, strict=True):
        call.finish(ranking)


def _with_retrieval_score(node: Node, score: float | None) -> Node:
    """A copy that carries *score* in its metadata, out of sight of embeddings and LLMs."""
    return node.model_copy(
        update={
            "metadata": {**node.metadata, RETRIEVAL_SCORE: score},
            "excluded_embed_metadata_keys": _with_key(node.excluded_embed_metadata_keys),
            "excluded_llm_metadata_keys": _with_key(node.excluded_llm_metadata_keys),
        }
    )


def _with_key(keys: list[str]) -> list[str]:
    return keys if RETRIEVAL_SCORE in keys else [*keys, RETRIEVAL_SCORE]


def _without_retrieval_score(node: Node) -> Node:
    """A kept retrieval score is bookkeeping: it must not change the text that is scored."""
    if RETRIEVAL_SCORE not in node.metadata:
        return node
    rest = {key: value for key, value in node.metadata.items() if key != RETRIEVAL_SCORE}
    return node.model_copy(update={"metadata": rest})


@contextmanager
def _events(owner: CrossEncoderPostprocessor, calls: Sequence[_Call]) -> Iterator[None]:
    """One start and one end per call, instrumentation and legacy callback; an error closes both."""
    told = [call for call in calls if call.nodes]
    with ExitStack() as legacy:
        opened = [legacy.enter_context(_started(owner, call)) for call in told]
        try:
            yield
        finally:
            for call in told:
                dispatcher.event(ReRankEndEvent(nodes=call.output))
        for call, event in zip(told, opened, strict=True):
            event.on_end(payload={EventPayload.NODES: call.output})


def _started(
    owner: CrossEncoderPostprocessor, call: _Call
) -> AbstractContextManager[EventContext]:
    top_n = owner.top_n or len(call.nodes)  # the event asks for an int
    dispatcher.event(
        ReRankStartEvent(query=call.query, nodes=call.nodes, top_n=top_n, model_name=owner.model)
    )
    payload = {
        EventPayload.NODES: call.nodes,
        EventPayload.MODEL_NAME: owner.model,
        EventPayload.QUERY_STR: call.query,
        EventPayload.TOP_K: top_n,
    }
    return owner.callback_manager.event(CBEventType.RERANKING, payload=payload)
