"""What all adapters share, free of any framework: fields, the source of a ranker, rules."""

from __future__ import annotations

from ..answers import checked_rankings, pair_scores
from ..cascade import Warmable
from .configurations import Configuration, configuration, saved
from .fallback import (
    FallbackFields,
    OnBlankQuery,
    OnError,
    came_of,
    is_kept,
    plain_count,
    selected,
    warn_kept,
)
from .fields import FIELDS_CONFIG, Carried, RerankerFields
from .passages import in_body
from .rules import (
    as_config_errors,
    check_word,
    plain_selection,
)
from .settings import CallSettings
from .source import RankerSource, check_ranker

__all__ = [
    "FIELDS_CONFIG",
    "CallSettings",
    "Carried",
    "Configuration",
    "FallbackFields",
    "OnBlankQuery",
    "OnError",
    "RankerSource",
    "RerankerFields",
    "Warmable",
    "as_config_errors",
    "came_of",
    "check_ranker",
    "check_word",
    "checked_rankings",
    "configuration",
    "in_body",
    "is_kept",
    "pair_scores",
    "plain_count",
    "plain_selection",
    "saved",
    "selected",
    "warn_kept",
]
