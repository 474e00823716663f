"""What rankers return, and how it is shown."""

from __future__ import annotations

from .blank import OnEmptyText, check_no_blank, is_blank, split_blank
from .ranking import RankedDocument, Ranking, check_selection, ranked

__all__ = [
    "OnEmptyText",
    "RankedDocument",
    "Ranking",
    "check_no_blank",
    "check_selection",
    "is_blank",
    "ranked",
    "split_blank",
]
