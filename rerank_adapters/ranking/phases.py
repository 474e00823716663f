"""What becomes of candidates that a later phase does not score."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from .ranking import RankedDocument, Ranking

Rest = Literal["drop", "keep_below", "rescale"]


def with_rest(
    ranking: Ranking,
    left: Sequence[RankedDocument],
    earlier: Mapping[int, float],
    rest: Rest,
) -> Ranking:
    """*ranking* with those that were *left* behind, best first, as *rest* says.

    left     with the scores of the phase that left them behind, NaN where it gave none, and stage
    earlier  that phase's scores of the documents in *ranking*, by index, where it gave any

    "keep_below" puts them after all others, in their order, with the scores they have. "rescale"
    moves these below the lowest in *ranking* where they would reach above it, and sorts all by
    score; those without a score stay below. A missing score shows as 0.0, or the lowest where that
    is lower.
    """
    if rest == "drop" or not left:
        return ranking
    scored = [it for it in left if math.isfinite(it.score)]
    unscored = [it for it in left if not math.isfinite(it.score)]
    if rest == "rescale":
        scale, bias = adjustment([earlier.get(it.index, math.nan) for it in ranking], ranking)
        moved = [replace(it, score=it.score * scale + bias, rescaled=True) for it in scored]
        head = sorted([*ranking, *moved], key=lambda it: -it.score)
        left = unscored
    else:
        head = list(ranking)
    lowest = min([0.0, *(it.score for it in head)])
    shown = [it if math.isfinite(it.score) else replace(it, score=lowest) for it in left]
    return Ranking([*head, *shown])


def adjustment(before: Sequence[float], ranking: Ranking) -> tuple[float, float]:
    """(scale, bias) that keep scores of before from reaching above the lowest in *ranking*.

    *before*, NaN where unknown, are what its documents scored then. Ranges below 1 count as 1.
    (1, 0) where nothing needs to move. Source: Vespa's RangeAdjuster.
    """
    old = [score for score in before if math.isfinite(score)]
    new = ranking.scores
    if not old or not new or min(old) <= min(new):
        return 1.0, 0.0
    scale = max(1.0, max(new) - min(new)) / max(1.0, max(old) - min(old))
    return scale, min(new) - min(old) * scale
