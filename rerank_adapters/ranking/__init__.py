"""What rankers return, and how it is shown."""

from __future__ import annotations

from .ranking import RankedDocument, Ranking, check_selection, ranked

__all__ = ["RankedDocument", "Ranking", "check_selection", "ranked"]
