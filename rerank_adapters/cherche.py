"""cherche's way: a ranker for its pipelines, unions, intersections and votes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .adapter_fields import Configuration, RankerSource, check_ranker, checked_rankings
from .adapter_fields import configuration as judged
from .config import DEFAULT_MODEL
from .errors import ConfigError, InputError, MissingDependencyError
from .protocols import Ranked, Ranker, RerankRequest

try:
    from cherche.compose import Intersection, Pipeline, Union, Vote
except ImportError as error:
    raise MissingDependencyError("cherche", "cherche") from error

__all__ = ["CrossEncoder"]

Found = Mapping[str, Any]


class CrossEncoder:
    """Ranks the documents that a retriever found: `retriever + documents + CrossEncoder(...)`.

    Every document comes back as a copy with its score as "similarity", a float, best first; equal
    scores keep the retriever's order. `|`, `&`, `*` and `+` are cherche's. A field that a document
    lacks, or that is None, is left out of its text; one without any text is blank and stands last
    (`on_empty_text`).

    on          the fields that are scored, joined by blanks
    key         the field of a document's identity, for unions, intersections and votes
    encoder     a hub id, a folder, a RerankerConfig or a mapping of its fields, a RemoteConfig; or
                a ready Ranker, which stays the caller's
    k           documents of a query that come back; None: all. A k of the pipeline goes before it
    batch_size  queries that are ranked together; None: all. Forwards are cut by tokens

    Raises ConfigError (an argument), InputError (a call), and at the first call what loading the
    model raises.

    >>> ranker = CrossEncoder(on="text", key="id", k=1)
    >>> found = ranker("how tall is it?", [{"id": 0, "text": "Red."}, {"id": 1, "text": "70 m."}])
    >>> found[0]["id"], type(found[0]["similarity"])
    (1, <class 'float'>)
    """

    def __init__(
        self,
        on: str | Sequence[str],
        key: str | None = None,
        encoder: Configuration | Ranker = DEFAULT_MODEL,
        k: int | None = None,
        batch_size: int | None = None,
    ) -> None:
        self.on = [on] if isinstance(on, str) else list(on)
        if not self.on or not all(isinstance(name, str) and name for name in self.on):
            raise ConfigError(f"on must be a field's name, or several: got {on!r:.80}")
        if key is not None:  # cherche asks whether there is one
            self.key = key
        ready = encoder if isinstance(encoder, Ranker) else None
        check_ranker(ready, DEFAULT_MODEL)
        config = judged(DEFAULT_MODEL if ready is not None else encoder, "encoder")  # type: ignore[arg-type]
        _check_count("k", k, ConfigError)
        _check_count("batch_size", batch_size, ConfigError)
        self.k = k
        self.batch_size = batch_size
        self._source = RankerSource(config, ready, "CrossEncoder")

    def __call__(
        self,
        q: str | Sequence[str],
        documents: Sequence[Any],
        batch_size: int | None = None,
        k: int | None = None,
        **others: Any,
    ) -> list[Any]:
        """Rank *documents* for the query *q*; for a list of queries a list for each.

        *others* is what a pipeline hands to its other stages. InputError for a blank query.
        """
        del others
        _check_count("k", k, InputError)
        _check_count("batch_size", batch_size, InputError)
        single = isinstance(q, str)
        if not documents:
            return [] if single else [[]]
        queries = [q] if isinstance(q, str) else list(q)
        groups = [documents] if single else list(documents)
        if len(queries) != len(groups):
            raise InputError(
                f"documents must be a list for each query: got {len(groups)} for {len(queries)}"
            )
        size = batch_size or self.batch_size or len(queries)
        ranked: list[list[dict[str, Any]]] = []
        for start in range(0, len(queries), size):
            part = slice(start, start + size)
            ranked += self._rank(queries[part], groups[part], self.k if k is None else k)
        return ranked[0] if single else ranked

    def close(self) -> None:
        """Let go of the model: later calls raise ClosedError. A given Ranker stays open."""
        self._source.close()

    def _rank(
        self, queries: Sequence[str], groups: Sequence[Sequence[Found]], k: int | None
    ) -> list[list[dict[str, Any]]]:
        requests = [
            RerankRequest(query, [self._text(document, row) for row, document in enumerate(group)])
            for query, group in zip(queries, groups, strict=True)
        ]
        found = self._source.get().rerank_many(requests, top_n=k)
        return [
            _answer(ranking, group)
            for ranking, group in zip(checked_rankings(found, requests), groups, strict=True)
        ]

    def _text(self, document: object, row: int) -> str:
        if not isinstance(document, Mapping):
            raise InputError(f"documents[{row}] must be a dict: got {document!r:.80}")
        values = [document.get(name) for name in self.on]
        return " ".join(filter(None, (str(value) for value in values if value is not None)))

    def __add__(self, other: Any) -> Pipeline:
        """A pipeline that ends here, as cherche has it; of documents, one that ends with them."""
        if isinstance(other, Pipeline):
            return other + self
        if not isinstance(other, list):
            return Pipeline(models=[other, self])
        if not hasattr(self, "key"):
            raise ConfigError("key must name the field of a document's identity: got None")
        return Pipeline(models=[self, {document[self.key]: document for document in other}])

    def __or__(self, other: Any) -> Union:
        """The union of what both find."""
        return Union([self, *_models(other, Union)])

    def __and__(self, other: Any) -> Intersection:
        """What both find."""
        return Intersection([self, *_models(other, Intersection)])

    def __mul__(self, other: Any) -> Vote:
        """Both vote."""
        return Vote([self, *_models(other, Vote)])

    def __repr__(self) -> str:
        return f"CrossEncoder\n\ton: {', '.join(self.on)}"


def _models(other: Any, kind: Any) -> list[Any]:
    return list(other.models) if isinstance(other, kind) else [other]


def _answer(ranking: Ranked, documents: Sequence[Found]) -> list[dict[str, Any]]:
    if isinstance(ranking, Exception):
        raise ranking
    return [
        {**document, "similarity": float(score)} for document, score in ranking.scored(documents)
    ]


def _check_count(name: str, value: object, kind: type[ConfigError | InputError]) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise kind(f"{name} must be an int of at least 1, or None: got {value!r:.80}")
