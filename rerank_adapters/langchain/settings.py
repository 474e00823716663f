"""One rerank as it was asked for: the settings of the call, its documents, and its answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from langchain_core.documents import Document
from typing_extensions import TypedDict

from ..adapting import OnEmptyText, split_empty
from ..errors import InputError
from ..reranker import check_selection
from ..values import Ranking

Dedupe = Literal["id", "content"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a call may set; the fields are explained in `RankingFields`."""

    top_n: int | None = 3
    score_threshold: float | None = None
    score_key: str = "relevance_score"
    text_fn: Callable[[Document], str] | None = None
    rank_fields: Sequence[str] | None = None
    on_empty_text: OnEmptyText = "keep_last"
    dedupe: Dedupe | None = None

    def __post_init__(self) -> None:
        check_selection(self.top_n, self.score_threshold)
        check_key(self.score_key)
        _check_word("on_empty_text", self.on_empty_text, get_args(OnEmptyText))
        _check_word("dedupe", self.dedupe, (*get_args(Dedupe), None))
        if self.text_fn is not None and not callable(self.text_fn):
            raise InputError(f"text_fn must be callable or None: got {self.text_fn!r}")
        if self.text_fn is not None and self.rank_fields is not None:
            raise InputError("text_fn builds the whole text: give either it or rank_fields")
        check_names(self.rank_fields)

    @classmethod
    def of(cls, fields: object) -> Settings:
        """The settings in an adapter's fields."""
        return cls(**{name: getattr(fields, name) for name in SETTINGS})

    def override(self, *sources: Mapping[str, Any]) -> Settings:
        """These settings with those of *sources*, of which the last wins. InputError for others."""
        changes = {name: value for source in sources for name, value in source.items()}
        if unknown := sorted(set(changes) - set(SETTINGS)):
            raise InputError(f"a call takes {', '.join(SETTINGS)}: got {', '.join(unknown)}")
        if not changes:
            return self
        # Each of the two says what is scored, so a call that names one drops the other.
        if changes.get("text_fn") and "rank_fields" not in changes:
            changes["rank_fields"] = None
        if changes.get("rank_fields") and "text_fn" not in changes:
            changes["text_fn"] = None
        return dataclasses.replace(self, **changes)

    def text(self, document: Document, place: int) -> str:
        """The text that is scored for *document*. InputError where `text_fn` gives none."""
        if self.text_fn is not None:
            text = self.text_fn(document)
            if not isinstance(text, str):
                raise InputError(f"text_fn(documents[{place}]) must give a str: got {text!r:.80}")
            return text
        values = ((name, document.metadata.get(name)) for name in self.rank_fields or ())
        lines = [f"{name}: {value}" for name, value in values if value is not None]
        content = document.page_content
        if not isinstance(content, str):
            raise InputError(f"documents[{place}].page_content must be a str: got {content!r:.80}")
        return "\n".join([*lines, content])


class Overrides(TypedDict, total=False):
    """The same as arguments of a call, for type checkers."""

    top_n: int | None
    score_threshold: float | None
    score_key: str
    text_fn: Callable[[Document], str] | None
    rank_fields: Sequence[str] | None
    on_empty_text: OnEmptyText
    dedupe: Dedupe | None


SETTINGS = tuple(field.name for field in dataclasses.fields(Settings))


class Job:
    """One query with its documents: what is scored of them, and the documents that come back."""

    def __init__(self, query: object, documents: Iterable[Document], settings: Settings) -> None:
        if not isinstance(query, str) or not query.strip():
            raise InputError(f"query must be a str that is not blank: got {query!r:.80}")
        self.query = query
        self.settings = settings
        given = _checked(documents)
        self.n_in = len(given)
        self._documents = _distinct(given, settings.dedupe)
        texts = [settings.text(document, place) for place, document in enumerate(self._documents)]
        self._scored, self._blank = split_empty(texts, settings.on_empty_text, name="documents")
        self.texts = [texts[place] for place in self._scored]

    def answer(self, ranking: Ranking) -> list[Document]:
        """New documents, best first, each with its score; those without text last."""
        settings = self.settings
        floor = settings.score_threshold
        places = [place for place in ranking if floor is None or place.score >= floor]
        answer = [(self._scored[place.index], place.score) for place in places]
        if floor is None:  # what was not scored cannot meet a threshold
            # Not a score, but a number that keeps them last wherever documents are sorted by it.
            lowest = min([0.0, *(place.score for place in places)])
            answer += [(place, lowest) for place in self._blank]
        return [self._scored_copy(place, score) for place, score in answer[: settings.top_n]]

    def _scored_copy(self, place: int, score: float) -> Document:
        document = self._documents[place]
        metadata = {**document.metadata, self.settings.score_key: float(score)}
        return document.model_copy(update={"metadata": metadata})


def check_top_n(top_n: object) -> object:
    """*top_n*, if it can be one: a field keeps the rule that a call keeps."""
    check_selection(top_n, None)  # type: ignore[arg-type]  # what it is, is what is checked
    return top_n


def check_threshold(score_threshold: object) -> object:
    """*score_threshold*, if it can be one."""
    check_selection(None, score_threshold)  # type: ignore[arg-type]  # likewise
    return score_threshold


def check_names(names: object) -> object:
    """*names*, if they are rank_fields: their order is that of the text."""
    several = names if isinstance(names, Sequence) and not isinstance(names, str) else [None]
    if names is not None and not all(isinstance(name, str) for name in several):
        raise InputError(f"rank_fields must be a sequence of str: got {names!r:.80}")
    return names


def check_key(key: object) -> str:
    """*key*, if it can be a metadata key."""
    if not isinstance(key, str) or not key:
        raise InputError(f"score_key must be a non-empty str: got {key!r}")
    return key


def _check_word(name: str, value: object, words: tuple[object, ...]) -> None:
    if value not in words:
        raise InputError(f"{name} must be one of {', '.join(map(repr, words))}: got {value!r}")


def _checked(documents: Iterable[Document]) -> list[Document]:
    if isinstance(documents, str | bytes | Mapping) or not isinstance(documents, Iterable):
        raise InputError(f"documents must be an iterable of Document: got {documents!r:.80}")
    given = list(documents)
    for place, document in enumerate(given):
        if not isinstance(document, Document):
            raise InputError(f"documents[{place}] must be a Document: got {document!r:.80}")
        if not isinstance(document.metadata, dict):
            raise InputError(
                f"documents[{place}].metadata must be a dict: got {document.metadata!r:.80}"
            )
    return given


def _distinct(documents: list[Document], dedupe: Dedupe | None) -> list[Document]:
    """The first of each; a document without an id is like no other."""
    if dedupe is None:
        return documents
    kept: dict[Hashable, Document] = {}
    for document in documents:
        key = document.page_content if dedupe == "content" else document.id
        kept.setdefault(id(document) if key is None else key, document)
    return list(kept.values())
