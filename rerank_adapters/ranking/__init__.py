"""What rankers return, and how it is shown."""

from __future__ import annotations

from .blank import OnEmptyText, check_no_blank, is_blank, split_blank
from .fusion import Fuse, FuseMethod
from .phases import Rest, with_rest
from .ranking import (
    Below,
    RankedDocument,
    Ranking,
    check_selection,
    ranked,
    with_blank,
    with_dropped,
)

__all__ = [
    "Below",
    "Fuse",
    "FuseMethod",
    "OnEmptyText",
    "RankedDocument",
    "Ranking",
    "Rest",
    "check_no_blank",
    "check_selection",
    "is_blank",
    "ranked",
    "split_blank",
    "with_blank",
    "with_dropped",
    "with_rest",
]
