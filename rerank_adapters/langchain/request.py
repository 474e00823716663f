"""One query with its documents: what is scored of them, and the documents that come back."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

from langchain_core.documents import Document
from langchain_core.runnables import RunnableConfig

from ..adapter_fields import came_of, is_kept, selected, warn_kept
from ..errors import InputError
from ..protocols import Ranked, RerankRequest
from ..ranking import Ranking, check_no_blank, is_blank, split_blank
from .settings import SETTINGS, Dedupe, Settings
from .tracing import Outcome

LCEL_FORM = "RunnableParallel(documents=retriever, query=RunnablePassthrough()) | compressor"


class DocumentRequest:
    """One input of a batch, read as far as it can be.

    error   what kept it from being asked
    caught  what its documents came back unranked in spite of
    came_of what traces say of its ranking
    """

    def __init__(
        self,
        given: object,
        config: RunnableConfig,
        settings: Settings,
        overrides: Mapping[str, Any],
    ) -> None:
        self.config = config
        self.query = ""
        self.texts: list[str] = []
        self.error: Exception | None = None
        self.caught: Exception | None = None
        self.came_of: dict[str, Any] = {}
        self._unranked = False
        self._settings = settings
        self._n_in: int | None = None
        self._documents: list[Document] = []
        self._retrieval_scores: list[float | None] | None = None
        try:
            self._read(given, overrides)
        except Exception as error:  # noqa: BLE001 (it may be text_fn's own; it is this input's outcome)
            self.error = error

    @property
    def facts(self) -> dict[str, int]:
        """How many documents came in, where that is known."""
        return {} if self._n_in is None else {"n_in": self._n_in}

    @property
    def to_rank(self) -> RerankRequest | None:
        """What a ranker is asked, None where nothing is to be scored."""
        rule = self._settings.on_empty_text
        nothing = rule == "drop" and all(map(is_blank, self.texts))  # then no model is loaded
        if self.error is not None or self._unranked or not self.texts or nothing:
            return None
        return RerankRequest(
            self.query,
            self.texts,
            self._settings.prompt,
            [document.id for document in self._documents],
            self._retrieval_scores,
            rule,
        )

    def outcome(self, ranked: Ranked) -> Outcome:
        """New documents, best first, each with its score, or the error that stands for them."""
        if self.error is not None:
            return self.error
        try:
            if self._unranked:
                return self._kept()
            if not isinstance(ranked, Exception):
                return self._answer(ranked)
            if not is_kept(ranked, self._settings.on_error):
                return ranked
            self.caught = ranked
            return self._kept()
        except Exception as error:  # noqa: BLE001 (a Document subclass may refuse to be copied)
            return error

    def _read(self, given: object, overrides: Mapping[str, Any]) -> None:
        query, documents = parts(given)
        self.query = query if isinstance(query, str) else ""
        self._settings = settings = self._settings.override(_configurable(self.config), overrides)
        self._unranked = isinstance(query, str) and not query.strip()
        if not isinstance(query, str) or (self._unranked and settings.on_blank_query == "error"):
            cure = '; on_blank_query="keep" lets it pass' if self._unranked else ""
            raise InputError(f"query must be a str that is not blank: got {query!r:.80}{cure}")
        every = _checked(documents)
        kept = _distinct(every, settings.dedupe)
        self._documents = [document for document, _ in kept]
        self.texts = [
            settings.text(document, index) for index, document in enumerate(self._documents)
        ]
        found = [
            settings.retrieval_score(document, index) if score is None else score
            for index, (document, score) in enumerate(kept)
        ]
        if settings.retrieval_score_key is not None or any(it is not None for it in found):
            self._retrieval_scores = found
        if settings.on_empty_text == "error":
            check_no_blank(self.texts, "documents")
        self._n_in = len(every)

    def _answer(self, ranking: Ranking) -> list[Document]:
        settings = self._settings
        best = selected(
            ranking, settings.top_n, settings.score_threshold, settings.min_score_fallback
        )
        self.came_of = came_of(best)
        return [self._copy(one.index, one.score, one.span) for one in best]

    def _kept(self) -> list[Document]:
        """The documents as they came, cut, with no score: not even an earlier one."""
        settings = self._settings
        scored, blank = split_blank(self.texts, settings.on_empty_text or "keep_last")
        order = sorted([*scored, *blank])[: settings.top_n]
        return [self._copy(index, None) for index in order]

    def _copy(
        self, index: int, score: float | None, span: tuple[int, int] | None = None
    ) -> Document:
        document, key = self._documents[index], self._settings.score_key
        changes: dict[str, Any] = {}
        metadata = dict(document.metadata)
        if key is not None and score is None:
            metadata.pop(key, None)
        elif key is not None and score is not None:
            metadata[key] = float(score)
        if (found := self._settings.passage(document, index, span)) is not None:
            if self._settings.span_key is not None:
                metadata[self._settings.span_key] = list(found)
            if self._settings.return_passages:
                changes["page_content"] = document.page_content[slice(*found)]
        return document.model_copy(update={**changes, "metadata": metadata})


def outcomes(
    requests: Sequence[DocumentRequest], rankings: Sequence[Ranked], owner: str
) -> list[Outcome]:
    """Each one's documents or error; *rankings* are those of what was asked, in order.

    A log names *owner* where documents come back unranked because of an error.
    """
    rest = iter(rankings)
    found: list[Outcome] = []
    for request in requests:
        outcome = request.outcome(next(rest) if request.to_rank is not None else Ranking([]))
        if request.caught is not None and not isinstance(outcome, Exception):
            warn_kept(owner, request.caught, len(outcome))
        found.append(outcome)
    return found


def only(results: Sequence[Outcome]) -> list[Document]:
    """The documents of a call with one input, or its error raised."""
    (result,) = results
    if isinstance(result, Exception):
        raise result
    return result


def deliver(results: Sequence[Outcome], *, return_exceptions: bool) -> list[Any]:
    """*results*; the first error among them is raised unless errors are to be returned."""
    for result in results:
        if isinstance(result, Exception) and not return_exceptions:
            raise result
    return list(results)


def parts(given: object) -> tuple[Any, Any]:
    """The query and the documents of a Runnable's input. Raises InputError."""
    if isinstance(given, Mapping) and {"query", "documents"} <= given.keys():
        return given["query"], given["documents"]
    raise InputError(
        'input must be {"query": str, "documents": [Document, ...]}, as it comes from '
        f"`{LCEL_FORM}`: got {given!r:.80}"
    )


def _configurable(config: RunnableConfig) -> dict[str, Any]:
    """The settings among config["configurable"]; what else is there belongs to others."""
    given = config.get("configurable") or {}
    return {name: given[name] for name in SETTINGS if name in given}


Given = tuple[Document, float | None]
"""A document, and what a (document, score) tuple says that the first stage gave it."""


def _checked(documents: Iterable[Document | tuple[Document, float]]) -> list[Given]:
    no_list = isinstance(documents, str | bytes | Mapping | Document)  # which can be iterated too
    if no_list or not isinstance(documents, Iterable):
        cure = "; pass [document]" if isinstance(documents, Document) else ""
        raise InputError(f"documents must be an iterable of Document: got {documents!r:.80}{cure}")
    given = [_pair(document, index) for index, document in enumerate(documents)]
    for index, (document, _) in enumerate(given):
        if not isinstance(document, Document):
            cure = "; Document(text) makes one" if isinstance(document, str) else ""
            raise InputError(f"documents[{index}] must be a Document: got {document!r:.80}{cure}")
        if not isinstance(document.metadata, dict):
            raise InputError(
                f"documents[{index}].metadata must be a dict: got {document.metadata!r:.80}"
            )
    return given


def _pair(given: Any, index: int) -> Given:
    if not (isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], Document)):
        return given, None
    score = given[1]
    if score is not None and (not isinstance(score, Real) or isinstance(score, bool)):
        raise InputError(f"documents[{index}][1] must be a number or None: got {score!r:.80}")
    return given[0], None if score is None else float(score)


def _distinct(documents: list[Given], dedupe: Dedupe | None) -> list[Given]:
    """The first of each; a document without an id is like no other."""
    if dedupe is None:
        return documents
    kept: dict[Hashable, Given] = {}
    for given in documents:
        document, _ = given
        key = document.page_content if dedupe == "content" else document.id
        kept.setdefault(id(document) if key is None else key, given)
    return list(kept.values())
