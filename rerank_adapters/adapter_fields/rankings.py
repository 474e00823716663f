"""What goes to a ranker and what comes back: texts worth scoring, and rankings to be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..errors import BackendError, InputError
from ..protocols import Ranked, RerankRequest
from ..ranking import Ranking
from .rules import OnEmptyText


def split_empty(
    texts: Sequence[str], on_empty_text: OnEmptyText, *, name: str
) -> tuple[list[int], list[int]]:
    """Indices of *texts* to score, and of blank ones to put last unscored.

    A score of nothing would be made up: blank texts are kept last ("keep_last"), left out ("drop"),
    or an InputError naming the index ("error").
    """
    scored = [index for index, text in enumerate(texts) if text.strip()]
    blank = [index for index, text in enumerate(texts) if not text.strip()]
    if blank and on_empty_text == "error":
        raise InputError(
            f"{name}[{blank[0]}] must have text to score: got {texts[blank[0]]!r}; "
            'on_empty_text="keep_last" or "drop" lets it pass'
        )
    return scored, blank if on_empty_text == "keep_last" else []


def checked_rankings(found: Sequence[Ranked], requests: Sequence[RerankRequest]) -> list[Ranked]:
    """*found*, one for each of *requests*; a BackendError stands where a ranking is none.

    A ranker may be anybody's: each index must exist and come once, and each score be finite.
    """
    if not isinstance(found, Sequence) or len(found) != len(requests):
        error = BackendError(
            f"the ranker must return {len(requests)} rankings in a list: got {found!r:.80}"
        )
        return [error for _ in requests]
    pairs = zip(found, requests, strict=True)
    return [_fault(ranking, request) or ranking for ranking, request in pairs]


def _fault(ranking: object, request: RerankRequest) -> BackendError | None:
    if isinstance(ranking, Exception):
        return None
    if not isinstance(ranking, Ranking):
        return BackendError(f"the ranker must return a Ranking per request: got {ranking!r:.80}")
    count, seen = len(request.documents), set[int]()
    for document in ranking:
        if document.index in seen or not 0 <= document.index < count:
            return BackendError(
                f"the ranker must name each of {count} documents at most once: got index "
                f"{document.index!r}"
            )
        if not math.isfinite(document.score):
            return BackendError(
                f"scores must be finite: got {document.score} for documents[{document.index}]"
            )
        seen.add(document.index)
    return None
