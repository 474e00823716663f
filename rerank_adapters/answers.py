"""What comes back from a ranker: rankings to be trusted, and scores in the order of pairs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from .errors import BackendError
from .protocols import Pair, Ranked, Ranker, RerankRequest
from .ranking import OnEmptyText, Ranking


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


def pair_scores(
    ranker: Ranker, pairs: Sequence[Pair], on_empty_text: OnEmptyText = "score"
) -> list[float]:
    """One finite float per pair, in order, from any *ranker*: one request for each query.

    BackendError where it leaves a document out; what a request failed of.
    """
    rows = _rows_by_query(pairs)
    requests = [
        RerankRequest(query, [pairs[row][1] for row in own], on_empty_text=on_empty_text)
        for query, own in rows.items()
    ]
    found = ranker.rerank_many(requests, top_n=None)
    return _in_rows(checked_rankings(found, requests), rows.values(), len(pairs))


def _rows_by_query(pairs: Sequence[Pair]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for row, (query, _) in enumerate(pairs):
        rows.setdefault(query, []).append(row)
    return rows


def _in_rows(rankings: Sequence[Ranked], rows: Iterable[Sequence[int]], count: int) -> list[float]:
    """The scores of *rankings* where their pairs stand, of which there are *count*."""
    scores = [0.0] * count
    for ranking, own in zip(rankings, rows, strict=True):
        if isinstance(ranking, Exception):
            raise ranking
        if len(ranking) != len(own):
            raise BackendError(
                f"the ranker must rank all {len(own)} documents where top_n is None: got "
                f"{len(ranking)} of them"
            )
        for document in ranking:
            scores[own[document.index]] = float(document.score)
    return scores
