"""What a call may set in every adapter, read from its fields and checked once for all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self, get_args

from ..checks import check_selection
from ..errors import InputError
from ..ranking import OnEmptyText
from .fallback import OnBlankQuery, OnError
from .fields import RerankerFields, empty_text_rule
from .passages import check_passages
from .rules import check_word


@dataclass(frozen=True, slots=True, kw_only=True)
class CallSettings:
    """How one call scores, and what of it comes back. Raises InputError.

    on_empty_text: None leaves blank documents to the ranker's own rule.
    prompt: this call's instruction, for models that take one; None: the model's own.
    """

    top_n: int | None
    score_threshold: float | None
    text_fn: Callable[[Any], str] | None
    on_empty_text: OnEmptyText | None
    on_blank_query: OnBlankQuery
    on_error: OnError
    min_score_fallback: int
    span_key: str | None
    return_passages: bool
    prompt: str | None = None

    def __post_init__(self) -> None:
        check_selection(self.top_n, self.score_threshold)
        if self.text_fn is not None and not callable(self.text_fn):
            raise InputError(f"text_fn must be callable or None: got {self.text_fn!r:.80}")
        check_word("on_empty_text", self.on_empty_text, (*get_args(OnEmptyText), None))
        check_word("on_blank_query", self.on_blank_query, get_args(OnBlankQuery))
        check_word("on_error", self.on_error, get_args(OnError))
        fallback = self.min_score_fallback
        if isinstance(fallback, bool) or not isinstance(fallback, int) or fallback < 0:
            raise InputError(
                f"min_score_fallback must be an int of at least 0: got {fallback!r:.80}"
            )
        if self.prompt is not None and not isinstance(self.prompt, str):
            raise InputError(f"prompt must be a str or None: got {self.prompt!r:.80}")
        check_passages(self.span_key, self.return_passages, self.text_fn)

    @classmethod
    def of(cls, fields: RerankerFields, **changes: Any) -> Self:
        """The settings in an adapter's *fields*, with *changes*."""
        # The prompt in the fields is the model's own, in its configuration.
        names = [field.name for field in dataclasses.fields(cls) if field.name != "prompt"]
        changes = {"on_empty_text": empty_text_rule(fields), **changes}
        return cls(**{name: getattr(fields, name) for name in names} | changes)
