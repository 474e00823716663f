"""What all adapters share, free of any framework: fields, the source of a ranker, rules."""

from __future__ import annotations

from .fallback import (
    FallbackFields,
    OnBlankQuery,
    OnError,
    is_kept,
    plain_count,
    warn_kept,
)
from .fields import FIELDS_CONFIG, Carried, RerankerFields
from .rankings import checked_rankings, split_empty
from .rules import (
    OnEmptyText,
    as_config_errors,
    check_on_empty_text,
    check_text_fn,
    check_word,
    plain_selection,
)
from .source import RankerSource, Warmable

__all__ = [
    "FIELDS_CONFIG",
    "Carried",
    "FallbackFields",
    "OnBlankQuery",
    "OnEmptyText",
    "OnError",
    "RankerSource",
    "RerankerFields",
    "Warmable",
    "as_config_errors",
    "check_on_empty_text",
    "check_text_fn",
    "check_word",
    "checked_rankings",
    "is_kept",
    "plain_count",
    "plain_selection",
    "split_empty",
    "warn_kept",
]
