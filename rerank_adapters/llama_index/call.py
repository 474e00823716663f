"""One query with its nodes: what is scored, what cannot be, and what comes out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle

from ..adapting import split_empty
from ..errors import InputError
from ..reranker import Request
from ..values import Ranking
from .metadata import with_retrieval_score, without_retrieval_score

if TYPE_CHECKING:
    from .postprocessor import CrossEncoderPostprocessor

Query = str | QueryBundle
Requests = Iterable[tuple[Query, Sequence[NodeWithScore]]]


class Call:
    """A query, its nodes with the texts to score, and the output once there is a ranking.

    Raises InputError for a query or nodes that cannot be scored; *where* begins its message.
    """

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
        self.after_body: set[str] = set()
        """The metadata that stand after the body; all others stand where the node puts them."""
        self._bodies = [
            self._body(given.node, f"{where}nodes[{place}]")
            for place, given in enumerate(self.nodes)
        ]
        self._scored, self._blank = split_empty(
            self._bodies, owner.on_empty_text, name=f"{where}nodes"
        )
        mode = MetadataMode.NONE if owner.text_fn else owner.metadata_mode
        self.metadata = [
            without_retrieval_score(self.nodes[place].node).get_metadata_str(mode).strip()
            for place in self._scored
        ]

    def request(self) -> Request:
        """The query and the texts to score."""
        places = zip(self._scored, self.metadata, strict=True)
        return self.query, [self._text(place, metadata) for place, metadata in places]

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

    def _text(self, place: int, metadata: str) -> str:
        if not metadata:
            return self._bodies[place]
        if metadata in self.after_body:
            return f"{self._bodies[place]}\n\n{metadata}"
        node = without_retrieval_score(self.nodes[place].node)
        return node.get_content(metadata_mode=self.owner.metadata_mode)

    def _copy(self, place: int, score: float | None) -> NodeWithScore:
        given = self.nodes[place]
        if not self.owner.keep_retrieval_score:
            return given.model_copy(update={"score": score})
        node = with_retrieval_score(given.node, given.score)
        return given.model_copy(update={"score": score, "node": node})


def calls_of(owner: CrossEncoderPostprocessor, requests: Requests) -> list[Call]:
    """One call for each (query, nodes) of *requests*; an InputError names the one at fault."""
    if isinstance(requests, str) or not isinstance(requests, Iterable):
        raise InputError(f"requests must be (query, nodes) pairs: got {requests!r:.80}")
    return [_call(owner, request, f"requests[{place}]") for place, request in enumerate(requests)]


def _call(owner: CrossEncoderPostprocessor, request: object, name: str) -> Call:
    if not isinstance(request, tuple | list) or len(request) != 2:
        raise InputError(f"{name} must be a (query, nodes) pair: got {request!r:.80}")
    query, nodes = request
    return Call(owner, query, nodes, where=f"{name}: ")


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
    for place, node in enumerate(checked):
        if not isinstance(node, NodeWithScore):
            raise InputError(f"{name}[{place}] must be a NodeWithScore: got {type(node).__name__}")
    return checked
