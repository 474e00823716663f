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
from .fields import FIELDS_CONFIG, Carried, RerankerFields, empty_text_rule
from .rankings import checked_rankings
from .rules import (
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
    "OnError",
    "RankerSource",
    "RerankerFields",
    "Warmable",
    "as_config_errors",
    "check_on_empty_text",
    "check_text_fn",
    "check_word",
    "checked_rankings",
    "empty_text_rule",
    "is_kept",
    "plain_count",
    "plain_selection",
    "warn_kept",
]
