"""What a call may set: what is scored of documents, and what of them comes back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, get_args, get_type_hints

from langchain_core.documents import Document
from langchain_core.runnables import ConfigurableFieldSpec
from typing_extensions import TypedDict

from ..adapter_fields import CallSettings, OnBlankQuery, OnError, check_word, in_body
from ..errors import InputError
from ..ranking import OnEmptyText

Dedupe = Literal["id", "content"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(CallSettings):
    """What a call may set; the fields are explained in `RankingFields`. Raises InputError."""

    text_fn: Callable[[Document], str] | None
    score_key: str | None
    rank_fields: Sequence[str] | None
    dedupe: Dedupe | None
    retrieval_score_key: str | None

    def __post_init__(self) -> None:
        CallSettings.__post_init__(self)  # super() knows no class that has slots
        _check_key(self.score_key)
        _check_key(self.retrieval_score_key, "retrieval_score_key", "None to read no score")
        check_word("dedupe", self.dedupe, (*get_args(Dedupe), None))
        if self.text_fn is not None and self.rank_fields is not None:
            raise InputError("text_fn builds the whole text: give either it or rank_fields")
        _check_names(self.rank_fields)

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

    def passage(
        self, document: Document, index: int, span: tuple[int, int] | None
    ) -> tuple[int, int] | None:
        """Where in the content *span* of `text` is; None where nothing asks, or nothing is."""
        if span is None or (self.span_key is None and not self.return_passages):
            return None
        content = len(document.page_content)
        return in_body(span, len(self.text(document, index)) - content, content)

    def retrieval_score(self, document: Document, index: int) -> float | None:
        """What the first stage gave *document*, from its metadata; None where it gave nothing."""
        if self.retrieval_score_key is None:
            return None
        score = document.metadata.get(self.retrieval_score_key)
        if score is not None and (not isinstance(score, Real) or isinstance(score, bool)):
            raise InputError(
                f"documents[{index}].metadata[{self.retrieval_score_key!r}] must be a number or "
                f"None: got {score!r:.80}"
            )
        return None if score is None else float(score)

    def text(self, document: Document, index: int) -> str:
        """The text that is scored for *document*. InputError where `text_fn` gives none."""
        if self.text_fn is not None:
            text = self.text_fn(document)
            if not isinstance(text, str):
                raise InputError(f"text_fn(documents[{index}]) must give a str: got {text!r:.80}")
            return text
        values = ((name, document.metadata.get(name)) for name in self.rank_fields or ())
        lines = [f"{name}: {value}" for name, value in values if value is not None]
        content = document.page_content
        if not isinstance(content, str):
            raise InputError(f"documents[{index}].page_content must be a str: got {content!r:.80}")
        return "\n".join([*lines, content])


class Overrides(TypedDict, total=False):
    """The same as arguments of a call, for type checkers."""

    top_n: int | None
    score_threshold: float | None
    score_key: str | None
    text_fn: Callable[[Document], str] | None
    rank_fields: Sequence[str] | None
    on_empty_text: OnEmptyText | None
    dedupe: Dedupe | None
    retrieval_score_key: str | None
    span_key: str | None
    return_passages: bool
    on_blank_query: OnBlankQuery
    on_error: OnError
    min_score_fallback: int
    prompt: str | None


class _SettingSpec(ConfigurableFieldSpec):
    """Equal to any of its id: whoever else in a chain goes by a name of ours may describe it."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ConfigurableFieldSpec) and other.id == self.id

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self.id)


def _specs() -> list[ConfigurableFieldSpec]:
    """What config["configurable"] obeys; no instance's values: two in a chain may differ."""
    hints = get_type_hints(Settings)
    return [
        _SettingSpec(
            id=name,
            annotation=Any if name == "text_fn" else hints[name] | None,  # JSON has no functions
            name=name,
            description="For this call; left out, as it was made.",
        )
        for name in SETTINGS
    ]


SETTINGS = tuple(field.name for field in dataclasses.fields(Settings))

SPECS = _specs()


def _check_names(names: object) -> None:
    """Raise InputError unless *names* can be rank_fields: their order is that of the text."""
    several = names if isinstance(names, Sequence) and not isinstance(names, str) else [None]
    if names is not None and not all(isinstance(name, str) for name in several):
        raise InputError(f"rank_fields must be a sequence of str: got {names!r:.80}")


def _check_key(
    key: object, name: str = "score_key", otherwise: str = "None to write no score"
) -> None:
    if key is not None and (not isinstance(key, str) or not key):
        raise InputError(f"{name} must be a non-empty str, or {otherwise}: got {key!r:.80}")
