"""Haystack: a ranker component, sync and native async, that a pipeline saves and loads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from math import inf
from typing import Any, Self

from .adapter_fields import (
    Configuration,
    RankerSource,
    Warmable,
    as_config_errors,
    check_ranker,
    checked_rankings,
    configuration,
    saved,
)
from .checks import check_selection
from .config import DEFAULT_MODEL
from .errors import ConfigError, InputError, MissingDependencyError
from .protocols import Ranked, Ranker, RerankRequest

try:
    from haystack import Document, component, default_from_dict, default_to_dict
    from haystack.utils import Secret
except ImportError as error:
    raise MissingDependencyError("haystack", "haystack") from error

__all__ = ["CrossEncoderRanker"]


@component
class CrossEncoderRanker:
    """Keeps the *top_k* most relevant documents, best first, each with its score.

    Documents that come back are copies, with ids, metadata and embeddings as they were. Of several
    with one id the best scored so far is ranked, as Haystack's own rankers have it. Equal scores
    keep the order given; a document without text is blank (`on_empty_text`). Scores that documents
    come with are the first stage's, for `fuse` and `rest` in the configuration. Whoever loads a
    pipeline names this package: `Pipeline.loads(text, allowed_modules=["rerank_adapters"])`.

    model                 a hub id, a folder, or a whole configuration: a `RerankerConfig`, or a
                          mapping of its fields, as YAML has it
    token                 the hub's, as a Secret; it is read when the model is loaded
    top_k                 documents that come back, at least 1; None: all
    score_threshold       the lowest score kept (inclusive), before the cut to top_k; None: no bound
    meta_fields_to_embed  metadata scored with the content, before it, in this order; a document
                          that lacks one goes without
    embedding_separator   what stands between them
    reranker              a ready one, in place of model: any Ranker; it stays the caller's

    Raises ConfigError (an argument), InputError (an argument of a call), and at the first run what
    loading the model raises.

    >>> ranker = CrossEncoderRanker(top_k=1)
    >>> documents = [Document(content="It is red."), Document(content="It is 70 m tall.", id="b")]
    >>> best = ranker.run("how tall is it?", documents)["documents"]
    >>> best[0].id, best[0].score > 0.5
    ('b', True)
    """

    def __init__(
        self,
        model: Configuration = DEFAULT_MODEL,
        *,
        token: Secret | None = None,
        top_k: int | None = 10,
        score_threshold: float | None = None,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
        reranker: Ranker | None = None,
    ) -> None:
        check_ranker(reranker, model)
        self.config = configuration(model, "model")
        if reranker is not None and (token is not None or model != DEFAULT_MODEL):
            raise ConfigError(
                "reranker is ready as it is, so model and token would change nothing: give either"
            )
        if token is not None and not isinstance(token, Secret):
            raise ConfigError(
                f"token must be a Secret, as of Secret.from_env_var: got a {type(token).__name__}"
            )
        with as_config_errors():
            _check(top_k, score_threshold)
        self.token = token
        self.top_k = top_k
        self.score_threshold = score_threshold
        self.meta_fields_to_embed = _names(meta_fields_to_embed)
        self.embedding_separator = embedding_separator
        self.reranker = reranker

    @component.output_types(documents=list[Document])
    def run(
        self,
        query: str,
        documents: list[Document],
        top_k: int | None = None,
        score_threshold: float | None = None,
    ) -> dict[str, list[Document]]:
        """Rank *documents* for *query*; *top_k* and *score_threshold* for this call, where given.

        InputError for a blank query and for what is no list of Documents.
        """
        request, distinct = self._asked(query, documents, top_k, score_threshold)
        if not distinct:
            return {"documents": []}
        found = self._source.get().rerank_many([request], **self._cut(top_k, score_threshold))
        return {"documents": _answer(found, request, distinct)}

    @component.output_types(documents=list[Document])
    async def run_async(
        self,
        query: str,
        documents: list[Document],
        top_k: int | None = None,
        score_threshold: float | None = None,
    ) -> dict[str, list[Document]]:
        """`run`, awaited; nothing blocks the event loop, loading included."""
        request, distinct = self._asked(query, documents, top_k, score_threshold)
        if not distinct:
            return {"documents": []}
        ranker = await self._source.aget()
        found = await ranker.arerank_many([request], **self._cut(top_k, score_threshold))
        return {"documents": _answer(found, request, distinct)}

    def warm_up(self) -> None:
        """Load the model now, not at the first run, and score one pair where the ranker can."""
        ranker = self._source.get()
        if isinstance(ranker, Warmable):
            ranker.warm()

    async def warm_up_async(self) -> None:
        """`warm_up`, awaited; loading happens off the event loop."""
        ranker = await self._source.aget()
        if isinstance(ranker, Warmable):
            await ranker.awarm()

    def close(self) -> None:
        """Let go of the model: later runs raise ClosedError. A given reranker stays open."""
        self._source.close()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a pipeline's YAML: no weights, and of the token its variable's name."""
        if self.reranker is not None:
            raise ConfigError(
                "a CrossEncoderRanker made with reranker= cannot be saved, for its model is in "
                "memory: make it from model="
            )
        values: dict[str, Any] = default_to_dict(
            self,
            model=saved(self.config),
            token=self.token,
            top_k=self.top_k,
            score_threshold=self.score_threshold,
            meta_fields_to_embed=self.meta_fields_to_embed,
            embedding_separator=self.embedding_separator,
        )
        return values

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """A component of what `to_dict` wrote."""
        made: Self = default_from_dict(cls, data)
        return made

    @cached_property
    def _source(self) -> RankerSource:
        """Made at the first use: only then is the token's variable read."""
        config = self.config
        if self.token is not None:
            config = replace(config, token=self.token.resolve_value())
        return RankerSource(config, self.reranker, "CrossEncoderRanker")

    def _cut(self, top_k: int | None, score_threshold: float | None) -> dict[str, Any]:
        return {
            "top_n": self.top_k if top_k is None else top_k,
            "score_threshold": self.score_threshold if score_threshold is None else score_threshold,
        }

    def _asked(
        self,
        query: str,
        documents: Sequence[Document],
        top_k: int | None,
        score_threshold: float | None,
    ) -> tuple[RerankRequest, list[Document]]:
        """What the ranker is asked, and the documents that its indices name."""
        _check(top_k, score_threshold)
        if not isinstance(query, str) or not query.strip():
            raise InputError(f"query must be a str that is not blank: got {query!r:.80}")
        distinct = _distinct(documents)
        found = [one.score for one in distinct]
        scores = found if any(score is not None for score in found) else None
        texts = [self._text(one) for one in distinct]
        return RerankRequest(query, texts, retrieval_scores=scores), distinct

    def _text(self, document: Document) -> str:
        """The content behind its metadata; nothing where there is no content."""
        content = document.content or ""
        if not content.strip():
            return ""
        values = [document.meta.get(name) for name in self.meta_fields_to_embed]
        parts = [str(value) for value in values if value is not None]
        return self.embedding_separator.join([*parts, content])


def _check(top_k: object, score_threshold: object) -> None:
    try:
        check_selection(top_k, score_threshold)  # type: ignore[arg-type]  # it judges them
    except InputError as error:
        raise InputError(str(error).replace("top_n", "top_k")) from None


def _names(given: object) -> list[str]:
    names = [] if given is None else given
    if not isinstance(names, list | tuple) or not all(isinstance(it, str) and it for it in names):
        raise ConfigError(
            f"meta_fields_to_embed must be a list of names, or None: got {given!r:.80}"
        )
    return list(names)


def _distinct(documents: object) -> list[Document]:
    """Of each id the best scored document, where the first of them stood."""
    if not isinstance(documents, Sequence) or isinstance(documents, str | bytes):
        raise InputError(f"documents must be a list of Documents: got {documents!r:.80}")
    best: dict[str, Document] = {}
    for index, document in enumerate(documents):
        if not isinstance(document, Document):
            raise InputError(f"documents[{index}] must be a Document: got {document!r:.80}")
        known = best.get(document.id)
        if known is None or _score(document) > _score(known):
            best[document.id] = document
    return list(best.values())


def _score(document: Document) -> float:
    return -inf if document.score is None else float(document.score)


def _answer(
    found: Sequence[Ranked], request: RerankRequest, documents: Sequence[Document]
) -> list[Document]:
    (ranking,) = checked_rankings(found, [request])
    if isinstance(ranking, Exception):
        raise ranking
    return [
        replace(document, score=float(score), meta=dict(document.meta))
        for document, score in ranking.scored(documents)
    ]
