"""What all adapters share, free of any framework: fields, the source of a ranker, rules."""

from __future__ import annotations

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
from .source import Warmable

__all__ = [
    "FIELDS_CONFIG",
    "Carried",
    "OnEmptyText",
    "RerankerFields",
    "Warmable",
    "as_config_errors",
    "check_on_empty_text",
    "check_text_fn",
    "check_word",
    "checked_rankings",
    "plain_selection",
    "split_empty",
]
