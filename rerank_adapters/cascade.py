"""Cascade: rankers one after the other, each over what the one before it kept."""

from __future__ import annotations

import logging
import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any, Protocol, runtime_checkable

from .answers import checked_rankings
from .calls import Closing, Selection
from .checks import checked_requests, deadline_of
from .config import RerankerConfig
from .errors import ClosedError, ConfigError
from .hints import first_guesses
from .protocols import ModelInfo, Ranked, Ranker, Requests, RerankRequest
from .ranking import (
    Fuse,
    FuseMethod,
    RankedDocument,
    Ranking,
    Rest,
    check_selection,
    with_blank,
    with_dropped,
    with_rest,
)

logger = logging.getLogger(__name__)

Stage = Ranker | tuple[Ranker, int | None]


@runtime_checkable
class Warmable(Protocol):
    """Has something to get ready before the first call."""

    def warm(self) -> None:
        """Get ready."""
        ...

    async def awarm(self) -> None:
        """`warm`, awaited."""
        ...


@dataclass(frozen=True, slots=True)
class _Ask:
    """What a stage is asked, and how long it may take."""

    ranker: Ranker
    requests: list[RerankRequest]
    timeout: float | None


@dataclass(eq=False)
class _Course:
    """One request on its way through the stages; indices are those of its documents.

    going   those that the next stage ranks
    steps   each stage's ranking, without its blank documents
    blank   those without text, which a stage's own rule lets through
    error   what it failed of
    """

    request: RerankRequest
    going: list[int]
    steps: list[Ranking] = field(default_factory=list)
    blank: list[int] = field(default_factory=list)
    error: Exception | None = None

    def took(self, ranking: Ranking, keep: int | None) -> None:
        """One stage's ranking of those that were `going`, of which the best *keep* go on."""
        found = [replace(it, index=self.going[it.index]) for it in ranking]
        self.blank += [it.index for it in found if it.blank]
        self.steps.append(Ranking([it for it in found if not it.blank]))
        self.going = sorted(self.steps[-1].indices[:keep])  # ties are by index, as without stages


@first_guesses
class Cascade(Closing):
    """Ranks by *stages*, cheapest first, each over the best that the one before it kept; a Ranker.

    stages        (ranker, keep), or a ranker: any Ranker, and how many documents it hands on, or
                  back where it is the last (None: all)
    rerank_count  how many candidates the first stage ranks: the first ones, in the order given
    rest          what becomes of documents that are left behind: "drop", "keep_below" (with the
                  score and the number of the stage that ranked them last, from 1; 0: none did),
                  or "rescale" (these scores moved below those of the next stage, from the last
                  stage backwards, as `RerankerConfig` says)
    fuse          the last stage's ranking with the retrieval scores, see `Fuse`

    A timeout is the whole cascade's. Blank documents stand where the first stage puts them.
    `close` closes every ranker. Raises ConfigError.

    >>> from rerank_adapters import Reranker
    >>> with Cascade([(Reranker(max_length=32), 1), Reranker()]) as cascade:
    ...     ranking = cascade.rerank("how tall is it?", ["It is red.", "It is 70 m tall."])
    >>> ranking.indices
    [1]
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        rerank_count: int | None = None,
        rest: Rest = "drop",
        fuse: Fuse | FuseMethod | dict[str, Any] | None = None,
    ) -> None:
        config = RerankerConfig(rerank_count=rerank_count, rest=rest, fuse=Fuse.of(fuse))
        self._stages = _checked_stages(stages)
        self._rules = Selection(
            rerank_count=config.rerank_count, rest=config.rest, fuse=config.fuse
        )
        self._closed = False

    def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
        prompt: str | None = None,
        timeout: float | None = None,
    ) -> Ranking:
        """Rank *documents* for *query*, best first."""
        asked = [RerankRequest(query, documents, prompt)]
        ranking: Ranking
        (ranking,) = self.rerank_many(
            asked, top_n=top_n, score_threshold=score_threshold, timeout=timeout
        )
        return ranking

    async def arerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
        prompt: str | None = None,
        timeout: float | None = None,
    ) -> Ranking:
        """`rerank`, awaited."""
        asked = [RerankRequest(query, documents, prompt)]
        ranking: Ranking
        (ranking,) = await self.arerank_many(
            asked, top_n=top_n, score_threshold=score_threshold, timeout=timeout
        )
        return ranking

    def rerank_many(
        self,
        requests: Requests,
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
        timeout: float | None = None,
        return_exceptions: bool = False,
    ) -> list[Any]:
        """One ranking per request, in order: each stage ranks all of them as one pool."""
        steps = self._steps(requests, top_n, score_threshold, timeout, return_exceptions)
        try:
            ask = next(steps)
            while True:
                ask = steps.send(
                    ask.ranker.rerank_many(
                        ask.requests, timeout=ask.timeout, return_exceptions=True
                    )
                )
        except StopIteration as end:
            return list(end.value)

    async def arerank_many(
        self,
        requests: Requests,
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
        timeout: float | None = None,
        return_exceptions: bool = False,
    ) -> list[Any]:
        """`rerank_many`, awaited."""
        steps = self._steps(requests, top_n, score_threshold, timeout, return_exceptions)
        found: list[Ranked] | None = None
        while True:
            try:
                ask = next(steps) if found is None else steps.send(found)
            except StopIteration as end:
                return list(end.value)
            found = await ask.ranker.arerank_many(
                ask.requests, timeout=ask.timeout, return_exceptions=True
            )

    def warm(self) -> None:
        """Get every stage ready that can be."""
        for ranker, _ in self._stages:
            if isinstance(ranker, Warmable):
                ranker.warm()

    async def awarm(self) -> None:
        """`warm`, awaited."""
        for ranker, _ in self._stages:
            if isinstance(ranker, Warmable):
                await ranker.awarm()

    def info(self) -> ModelInfo:
        """What the last stage runs; `model` names those of all, "a > b"."""
        self._check_open()
        infos = [ranker.info() for ranker, _ in self._stages]
        return replace(infos[-1], model=" > ".join(info.model for info in infos))

    def close(self) -> None:
        """Close every ranker. Idempotent."""
        self._closed = True
        for ranker, _ in self._stages:
            ranker.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the cascade is closed: make another")

    def _steps(
        self,
        requests: Requests,
        top_n: int | None,
        score_threshold: float | None,
        timeout: float | None,
        return_exceptions: bool,
    ) -> Generator[_Ask, list[Ranked], list[Ranked]]:
        """Yield what each stage is asked, take what it gives; return a ranking or error each."""
        check_selection(top_n, score_threshold)
        self._check_open()
        deadline = deadline_of(timeout)
        checked = checked_requests(
            requests, needs_scores=self._rules.needs_scores, return_exceptions=return_exceptions
        )
        courses: list[_Course | Exception] = [
            it if isinstance(it, Exception) else self._course(it, given)
            for it, given in zip(checked, requests, strict=True)
        ]
        for ranker, keep in self._stages:
            going = [
                it for it in courses if isinstance(it, _Course) and it.going and it.error is None
            ]
            if not going:
                break
            left = None if deadline is None else deadline - monotonic()
            if left is not None and left <= 0:
                _arrived(going, [_late()] * len(going), keep, return_exceptions)
                break
            asked = [course.request.take(course.going) for course in going]
            found = checked_rankings((yield _Ask(ranker, asked, left)), asked)
            _arrived(going, found, keep, return_exceptions)
        return [
            it if isinstance(it, Exception) else self._ranked(it, top_n, score_threshold)
            for it in courses
        ]

    def _course(self, request: RerankRequest, given: object) -> _Course:
        rule = given.on_empty_text if isinstance(given, RerankRequest) else None
        count = len(request.documents)
        first = count if self._rules.rerank_count is None else self._rules.rerank_count
        return _Course(replace(request, on_empty_text=rule), list(range(count))[:first])

    def _ranked(self, course: _Course, top_n: int | None, score_threshold: float | None) -> Ranked:
        """The last stage's ranking, with those that were left behind, from the last backwards."""
        if course.error is not None:
            return course.error
        rules, given = self._rules, course.request.retrieval_scores
        ranking = course.steps[-1] if course.steps else Ranking([])
        scored = len(ranking)
        if rules.fuse is not None:
            ranking = rules.fuse.fused(ranking, given)
        ranking = Ranking(ranking[: self._stages[-1][1]])
        if rules.rest != "drop":
            for stage, step in reversed(list(enumerate(course.steps, 1))):
                ranking = self._with_left(ranking, step, stage)
            first = course.steps[0].indices if course.steps else []
            ranking = self._with_unranked(ranking, course, {*first, *course.blank})
        count, blank = len(course.request.documents), list(dict.fromkeys(course.blank))
        ranking = with_blank(ranking, blank)
        ranking = with_dropped(ranking, count - len(ranking))
        logger.debug(
            "%d of %d candidates ranked last, %d dropped: rest=%r",
            *(scored, count, ranking.dropped, rules.rest),
        )
        return ranking.top(top_n, score_threshold=score_threshold)

    def _with_left(self, ranking: Ranking, step: Ranking, stage: int) -> Ranking:
        """*ranking* with those that *stage* ranked and did not hand on."""
        there = set(ranking.indices)
        left = [replace(it, stage=stage) for it in step if it.index not in there]
        earlier = {it.index: it.score for it in step}
        return with_rest(ranking, left, earlier, self._rules.rest)

    def _with_unranked(self, ranking: Ranking, course: _Course, ranked: set[int]) -> Ranking:
        """*ranking* with those beyond rerank_count, which no stage ranked."""
        count, scores = self._rules.rerank_count, course.request.retrieval_scores
        if count is None:
            return ranking
        found = () if scores is None else scores
        earlier = {at: math.nan if it is None else float(it) for at, it in enumerate(found)}
        left = [
            RankedDocument(index, earlier.get(index, math.nan), stage=0)
            for index in range(count, len(course.request.documents))
            if index not in ranked
        ]
        return with_rest(ranking, left, earlier, self._rules.rest)


def _arrived(
    going: Sequence[_Course], found: Sequence[Ranked], keep: int | None, return_exceptions: bool
) -> None:
    for course, ranked in zip(going, found, strict=True):
        if not isinstance(ranked, Exception):
            course.took(ranked, keep)
        elif return_exceptions:
            course.error = ranked
        else:
            raise ranked


def _late() -> TimeoutError:
    return TimeoutError("no scores within the timeout: the request was dropped between two stages")


def _checked_stages(stages: Any) -> list[tuple[Ranker, int | None]]:
    several = isinstance(stages, Sequence) and not isinstance(stages, str) and stages
    if not several or isinstance(stages, Ranker):
        raise ConfigError(
            f"stages must be a list of (ranker, keep), with one at least: got {stages!r:.80}"
        )
    return [_stage(stage, f"stages[{index}]") for index, stage in enumerate(stages)]


def _stage(stage: Any, name: str) -> tuple[Ranker, int | None]:
    pair = stage if isinstance(stage, tuple | list) else (stage, None)
    ranker, keep = pair if len(pair) == 2 else (None, None)
    if not isinstance(ranker, Ranker) or isinstance(ranker, type):
        raise ConfigError(
            f"{name} must be (ranker, keep), the ranker with rerank_many, arerank_many, info and "
            f"close: got {stage!r:.80}"
        )
    if keep is not None and (isinstance(keep, bool) or not isinstance(keep, int) or keep < 1):
        raise ConfigError(f"{name} must keep at least 1, or None for all: got {keep!r:.80}")
    return ranker, keep
