"""One query with its nodes: what is scored, what cannot be, and what comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypedDict

from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle

from ..adapter_fields import (
    CallSettings,
    OnBlankQuery,
    came_of,
    in_body,
    is_kept,
    selected,
    warn_kept,
)
from ..errors import InputError
from ..hints import option_hint
from ..protocols import Ranked, RerankRequest
from ..ranking import Ranking, check_no_blank, split_blank
from .metadata import (
    NodeText,
    cut_to,
    with_hidden,
    with_retrieval_score,
    without_retrieval_score,
)

Query = str | QueryBundle
Span = tuple[int, int] | None
Requests = Iterable[tuple[Query, Sequence[NodeWithScore]]]


class Overrides(TypedDict, total=False):
    """What a call may set, for itself alone."""

    top_n: int | None
    score_threshold: float | None
    prompt: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(CallSettings):
    """How nodes are scored and what of them comes back; explained at the postprocessor's fields.

    Raises InputError.
    """

    text_fn: Callable[[BaseNode], str] | None
    metadata_mode: MetadataMode
    keep_retrieval_score: bool
    keep_unscored: bool

    def __post_init__(self) -> None:
        CallSettings.__post_init__(self)  # super() knows no class that has slots
        if self.keep_unscored and self.on_empty_text not in ("keep_last", None):
            raise InputError(
                "keep_unscored keeps nodes without text, which "
                f"on_empty_text={self.on_empty_text!r} does not: give one of them"
            )


def known(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a call was *given*; InputError where it is not a call's to set."""
    if unknown := sorted(set(given) - set(CALL_OPTIONS)):
        raise InputError(
            f"a call takes {', '.join(CALL_OPTIONS)}: got {', '.join(unknown)}"
            f"{_call_hint(unknown[0])}"
        )
    return given


CALL_OPTIONS = tuple(Overrides.__annotations__)


def _call_hint(name: str) -> str:
    """What LlamaIndex or this library calls *name*, as the end of a message."""
    return ": query is called query_str" if name == "query" else option_hint(name, CALL_OPTIONS)


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
        self.given, self.query = _checked_query(query, f"{where}query", options.on_blank_query)
        self.nodes = _checked_nodes(nodes, f"{where}nodes")
        self.output: list[NodeWithScore] = []
        self.error: BaseException | None = None
        self.caught: BaseException | None = None
        self.came_of: dict[str, str] = {}
        self.top_n = None if options.top_n is None else int(options.top_n)
        self._options = options
        self._texts = [
            self._text(given.node, f"{where}nodes[{index}]")
            for index, given in enumerate(self.nodes)
        ]
        shown = [text.shown for text in self._texts]
        if options.on_empty_text == "error":
            check_no_blank(shown, f"{where}nodes")
        self._scored, self._blank = split_blank(shown, options.on_empty_text or "keep_last")
        if not self.query:
            self._keep()

    @property
    def metadata(self) -> list[str]:
        """The metadata of each text that may stand after the body; "" where none may."""
        return [text.metadata for text in self._texts]

    def to_rank(self, after_body: AbstractSet[str]) -> RerankRequest:
        """What a ranker is asked; metadata in *after_body* stand there, others as the node says."""
        options = self._options
        self._after_body = after_body
        documents = [
            text.body_first if text.metadata in after_body else text.shown for text in self._texts
        ]
        rule = "drop" if options.keep_unscored else options.on_empty_text
        ids = [given.node.node_id for given in self.nodes]
        found = [given.score for given in self.nodes]
        scores = found if any(score is not None for score in found) else None
        return RerankRequest(self.query, documents, options.prompt, ids, scores, rule)

    def answer(self, ranking: Ranking) -> None:
        """Set the output: the nodes of *ranking*, cut to top_n, and those kept beside them."""
        options = self._options
        best = selected(ranking, self.top_n, options.score_threshold, options.min_score_fallback)
        self.came_of = {name: str(value) for name, value in came_of(best).items()}
        self.output = [self._copy(one.index, float(one.score), one.span) for one in best]
        if self._options.keep_unscored:
            self.output += [self._copy(index, None) for index in self._blank]

    @property
    def selection(self) -> dict[str, Any]:
        """What a ranker is told beside the texts."""
        whole = self._options.min_score_fallback > 0  # those below the bound may come back
        threshold = None if whole else self._options.score_threshold
        top_n = None if whole else self.top_n
        return {"top_n": top_n, "score_threshold": threshold, "return_exceptions": True}

    @property
    def asks(self) -> bool:
        """Whether there is something to rank, and a query to rank it by."""
        return bool(self.nodes and self.query)

    def fail(self, error: Exception, owner: str) -> None:
        """Set what came in place of a ranking: the error, or the nodes in spite of it."""
        if not is_kept(error, self._options.on_error):
            self.error = error
            return
        self.caught = error
        self._keep()
        warn_kept(owner, error, len(self.output))

    def _keep(self) -> None:
        """Set the output: the nodes as they came, unscored and cut to top_n."""
        if self._options.keep_unscored:
            kept = sorted([*self._scored[: self.top_n], *self._blank])
        else:
            kept = sorted([*self._scored, *self._blank])[: self.top_n]
        self.output = [self._copy(index, None) for index in kept]

    def _text(self, node: BaseNode, name: str) -> NodeText:
        options = self._options
        if options.text_fn is None:
            plain = without_retrieval_score(node)
            usual = NodeText.of(plain, options.metadata_mode)
            if usual.shown or options.on_empty_text != "score":
                return usual
            return NodeText(plain.get_content(metadata_mode=options.metadata_mode))
        text = options.text_fn(node)
        if not isinstance(text, str):
            raise InputError(f"text_fn({name}.node) must give a str: got {text!r:.80}")
        return NodeText(text)

    def _passage(self, index: int, span: Span) -> Span:
        """Where in the body *span* of the scored text is; None where nothing asks or is there."""
        if span is None or (self._options.span_key is None and not self._options.return_passages):
            return None
        body, text = _body(self.nodes[index].node), self._texts[index]
        if text.metadata and text.metadata in self._after_body:
            return in_body(span, 0, len(body))
        inner = body.strip()  # a template's text is stripped as a whole
        found = text.shown.rfind(inner)
        return None if found < 0 else in_body(span, found - body.index(inner), len(body))

    def _copy(self, index: int, score: float | None, span: Span = None) -> NodeWithScore:
        given, options = self.nodes[index], self._options
        passage = self._passage(index, span)
        if not options.keep_retrieval_score and passage is None:
            return given.model_copy(update={"score": score})
        node = given.node
        if options.keep_retrieval_score:
            node = with_retrieval_score(node, given.score)
        if passage is not None and options.return_passages:
            node = cut_to(node, _body(node), passage)
        if passage is not None and options.span_key is not None:
            node = with_hidden(node, options.span_key, list(passage))
        return given.model_copy(update={"score": score, "node": node})


def _body(node: BaseNode) -> str:
    return node.get_content(metadata_mode=MetadataMode.NONE)


@contextmanager
def outcomes(asked: Sequence[NodeRequest], owner: str) -> Iterator[None]:
    """What the block raises is the outcome of every request of *asked*."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  # raised again once all are told of
        for request in asked:
            request.fail(error, owner)


def settle(asked: Sequence[NodeRequest], found: Sequence[Ranked], owner: str) -> None:
    """Give each request of *asked* its own of *found*."""
    for request, ranking in zip(asked, found, strict=True):
        if isinstance(ranking, Exception):
            request.fail(ranking, owner)
        else:
            request.answer(ranking)


def read_requests(requests: Requests, options: Options) -> list[NodeRequest]:
    """One for each (query, nodes) of *requests*; an InputError names the one at fault."""
    return [
        NodeRequest(query, nodes, options, where=f"requests[{index}]: ")
        for index, (query, nodes) in enumerate(read_pairs(requests))
    ]


def read_pairs(requests: Requests) -> list[tuple[Query, Sequence[NodeWithScore]]]:
    """(query, nodes) for each of *requests*, read once; an InputError names the one at fault."""
    if isinstance(requests, str) or not isinstance(requests, Iterable):
        raise InputError(f"requests must be (query, nodes) pairs: got {requests!r:.80}")
    return [_read_pair(request, f"requests[{index}]") for index, request in enumerate(requests)]


def read_bundles(requests: Requests) -> list[tuple[QueryBundle, list[NodeWithScore]]]:
    """`read_pairs`, as LlamaIndex's own methods take them."""
    return [
        (query if isinstance(query, QueryBundle) else QueryBundle(query), list(nodes))
        for query, nodes in read_pairs(requests)
    ]


def _read_pair(request: object, name: str) -> tuple[Query, Sequence[NodeWithScore]]:
    if not isinstance(request, tuple | list) or len(request) != 2:
        raise InputError(f"{name} must be a (query, nodes) pair: got {request!r:.80}")
    query, nodes = request
    return query, nodes


def _checked_query(
    query: Query | None, name: str, on_blank_query: OnBlankQuery
) -> tuple[Query, str]:
    """The query as it was given, and the text that is scored: "" where a blank one is kept."""
    text = query.query_str if isinstance(query, QueryBundle) else query
    if query is None or not isinstance(text, str):
        raise InputError(
            f"{name} must be a str or a QueryBundle: got {query!r:.80}; pass query_str="
        )
    if not text.strip() and on_blank_query == "error":
        raise InputError(
            f'{name} must not be blank: got {text!r:.80}; on_blank_query="keep" lets it pass'
        )
    return query, text.strip()  # RetrieverTool hands over "query\n\n"


def _checked_nodes(nodes: Sequence[NodeWithScore], name: str) -> list[NodeWithScore]:
    one = isinstance(nodes, NodeWithScore | BaseNode)  # which can be iterated too
    if one or isinstance(nodes, str) or not isinstance(nodes, Iterable):
        cure = f"; pass [{_wrapped(nodes)}]" if one else ""
        raise InputError(f"{name} must be NodeWithScore objects: got {nodes!r:.80}{cure}")
    checked = list(nodes)
    for index, node in enumerate(checked):
        if not isinstance(node, NodeWithScore):
            wrapped = _wrapped(node)
            cure = f"; pass {wrapped}" if wrapped else ""
            raise InputError(
                f"{name}[{index}] must be a NodeWithScore: got {type(node).__name__}{cure}"
            )
    return checked


def _wrapped(value: object) -> str:
    """How *value* becomes a NodeWithScore, in code; "" where it does not."""
    if isinstance(value, NodeWithScore):
        return "node"
    if isinstance(value, BaseNode):
        return "NodeWithScore(node=node)"
    return "NodeWithScore(node=TextNode(text=text))" if isinstance(value, str) else ""
