"""What comes back where nothing can be ranked: the documents as they came, by choice."""

from __future__ import annotations

import logging
from numbers import Integral
from typing import Any, Literal

from ..errors import ConfigError, InputError, RerankError
from ..ranking import Ranking
from .fields import Carried, RerankerFields

logger = logging.getLogger(__name__)

OnBlankQuery = Literal["error", "keep"]
OnError = Literal["raise", "keep"]


class FallbackFields(RerankerFields):
    """What an adapter does that cannot rank. Off: it raises."""

    on_blank_query: Carried[OnBlankQuery] = "error"
    """A query without text. "error": InputError. "keep": what came in comes back in its order,
    cut to `top_n`, unscored and so without a bound."""
    on_error: Carried[OnError] = "raise"
    """A reranker that fails or runs out of time. "raise": its error. "keep": as for a blank query,
    with a warning in the log and the error in the trace. Wrong input and a cancelled call are never
    caught."""
    min_score_fallback: Carried[int] = 0
    """How many of the best come back, at most `top_n`, where none meets `score_threshold`. 0: none,
    which says that nothing here answers the query."""


def selected(
    ranking: Ranking, top_n: int | None, score_threshold: float | None, min_score_fallback: int
) -> Ranking:
    """What of a whole *ranking* comes back: the bound first, then the cut, or the fallback."""
    best = ranking.top(top_n, score_threshold=score_threshold)
    if best.unanswered and min_score_fallback:
        logger.debug("%s: min_score_fallback=%d", best.below, min_score_fallback)
        scored = [it for it in ranking if it.bounded]
        count = min(min_score_fallback, top_n or min_score_fallback)
        return Ranking(scored[:count], below=best.below, dropped=ranking.dropped)
    return best


def came_of(best: Ranking) -> dict[str, Any]:
    """What traces say of what comes back; nothing where no phase and no bound left anything out.

    n_dropped  documents that rerank_count or an earlier stage left out
    stages     the stage of each document that comes back, None for the last
    below      that none met the score_threshold, in words
    """
    below, stages = best.below, [it.stage for it in best]
    met = below is None or any(it.score >= below.score_threshold for it in best)
    facts = {
        "n_dropped": best.dropped,
        "stages": stages if any(it is not None for it in stages) else [],
        "below": "" if met else str(below),
    }
    return {name: value for name, value in facts.items() if value}


def is_kept(error: object, on_error: OnError) -> bool:
    """Whether *on_error* lets documents pass in spite of *error*: the reranker's, not the input's.

    A cancelled call is no such error: CancelledError is neither of these classes.
    """
    failed = isinstance(error, RerankError | TimeoutError) and not isinstance(error, InputError)
    return on_error == "keep" and failed


def warn_kept(owner: str, error: Exception, count: int) -> None:
    """Say in the log that *owner* gave *count* documents back unranked, and why."""
    logger.warning(
        'on_error="keep": %s returns %d documents as they came, unscored, because of %s: %s',
        *(owner, count, type(error).__name__, error),
    )


def plain_count(name: str, value: object) -> int | None:
    """*value* as a field keeps it: a plain int of at least 1, or None. Raises ConfigError.

    NumPy's integers are counts; True and "2" are not.
    """
    if value is None:
        return None
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ConfigError(
            f"{name} must be an int of at least 1, or None for all: got {value!r:.80}"
        )
    return int(value)
