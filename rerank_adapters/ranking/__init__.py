"""What rankers return, and how it is shown."""

from __future__ import annotations

from .ranking import RankedDocument, Ranking, ranked

__all__ = ["RankedDocument", "Ranking", "ranked"]
