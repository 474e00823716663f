"""What comes back from a ranker: rankings to be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .errors import BackendError
from .protocols import Ranked, RerankRequest
from .ranking import Ranking


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
