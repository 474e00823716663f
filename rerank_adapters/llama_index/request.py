"""One query with its nodes: what is scored, what cannot be, and what comes out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle

from ..adapter_fields import OnEmptyText, check_on_empty_text, check_text_fn, split_empty
from ..checks import check_selection
from ..errors import InputError
from ..protocols import RerankRequest
from ..ranking import Ranking
from .metadata import with_retrieval_score, without_retrieval_score

Query = str | QueryBundle
Requests = Iterable[tuple[Query, Sequence[NodeWithScore]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How nodes are scored and what of them comes back; explained at the postprocessor's fields.

    Raises InputError.
    """

    top_n: int | None
    score_threshold: float | None
    metadata_mode: MetadataMode
    text_fn: Callable[[BaseNode], str] | None
    keep_retrieval_score: bool
    on_empty_text: OnEmptyText

    def __post_init__(self) -> None:
        check_selection(self.top_n, self.score_threshold)
        check_text_fn(self.text_fn)
        check_on_empty_text(self.on_empty_text)

    @classmethod
    def of(cls, fields: object) -> Options:
        """The options in a postprocessor's fields."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: getattr(fields, name) for name in names})


class NodeRequest:
    """A query, its nodes with the texts to score, and the output once there is a ranking.

    Raises InputError for a query or nodes that cannot be scored; *where* begins its message.
    """

    def __init__(
        self,
        query: Query | None,
        nodes: Sequence[NodeWithScore],
        options: Options,
        where: str = "",
    ) -> None:
        self.query = _checked_query(query, f"{where}query")
        self.nodes = _checked_nodes(nodes, f"{where}nodes")
        self.output: list[NodeWithScore] = []
        self._options = options
        self._bodies = [
            self._body(given.node, f"{where}nodes[{index}]")
            for index, given in enumerate(self.nodes)
        ]
        self._scored, self._blank = split_empty(
            self._bodies, options.on_empty_text, name=f"{where}nodes"
        )
        mode = MetadataMode.NONE if options.text_fn else options.metadata_mode
        self.metadata = [
            without_retrieval_score(self.nodes[index].node).get_metadata_str(mode).strip()
            for index in self._scored
        ]

    def to_rank(self, after_body: AbstractSet[str]) -> RerankRequest:
        """What a ranker is asked; metadata in *after_body* stand there, others before it."""
        pairs = zip(self._scored, self.metadata, strict=True)
        texts = [self._text(index, metadata, metadata in after_body) for index, metadata in pairs]
        return RerankRequest(self.query, texts)

    def answer(self, ranking: Ranking) -> None:
        """Set the output: the nodes of *ranking*, then those without text, cut to top_n."""
        options = self._options
        output = [self._copy(self._scored[one.index], float(one.score)) for one in ranking]
        if options.score_threshold is None:  # what was not scored cannot meet it
            output += [self._copy(index, None) for index in self._blank]
        self.output = output[: options.top_n]

    def _body(self, node: BaseNode, name: str) -> str:
        text_fn = self._options.text_fn
        if text_fn is None:
            return node.get_content(metadata_mode=MetadataMode.NONE)
        text = text_fn(node)
        if not isinstance(text, str):
            raise InputError(f"text_fn({name}.node) must give a str: got {text!r:.80}")
        return text

    def _text(self, index: int, metadata: str, after_body: bool) -> str:
        if not metadata:
            return self._bodies[index]
        if after_body:
            return f"{self._bodies[index]}\n\n{metadata}"
        node = without_retrieval_score(self.nodes[index].node)
        return node.get_content(metadata_mode=self._options.metadata_mode)

    def _copy(self, index: int, score: float | None) -> NodeWithScore:
        given = self.nodes[index]
        if not self._options.keep_retrieval_score:
            return given.model_copy(update={"score": score})
        node = with_retrieval_score(given.node, given.score)
        return given.model_copy(update={"score": score, "node": node})


def read_requests(requests: Requests, options: Options) -> list[NodeRequest]:
    """One for each (query, nodes) of *requests*; an InputError names the one at fault."""
    if isinstance(requests, str) or not isinstance(requests, Iterable):
        raise InputError(f"requests must be (query, nodes) pairs: got {requests!r:.80}")
    return [
        _read_request(request, options, f"requests[{index}]")
        for index, request in enumerate(requests)
    ]


def _read_request(request: object, options: Options, name: str) -> NodeRequest:
    if not isinstance(request, tuple | list) or len(request) != 2:
        raise InputError(f"{name} must be a (query, nodes) pair: got {request!r:.80}")
    query, nodes = request
    return NodeRequest(query, nodes, options, where=f"{name}: ")


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
    if isinstance(nodes, str) or not isinstance(nodes, Iterable):
        raise InputError(f"{name} must be NodeWithScore objects: got {nodes!r:.80}")
    checked = list(nodes)
    for index, node in enumerate(checked):
        if not isinstance(node, NodeWithScore):
            raise InputError(f"{name}[{index}] must be a NodeWithScore: got {type(node).__name__}")
    return checked
