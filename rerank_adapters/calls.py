"""How the facade calls a scorer: all requests at once, each apart where one failed, or a stream."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

import numpy as np

from .calibration import Calibration
from .checks import check_selection, checked_requests, deadline_of, gathered
from .errors import BackendError, ClosedError, InputError, RerankError
from .futures import done, prepare, then, wait, wait_async
from .protocols import (
    Caching,
    Call,
    Pair,
    Queue,
    Ranked,
    Requests,
    RerankRequest,
    Scored,
    Scorer,
    Weighted,
)
from .ranking import (
    Fuse,
    OnEmptyText,
    RankedDocument,
    Ranking,
    Rest,
    ranked,
    split_blank,
    with_blank,
    with_dropped,
    with_rest,
)
from .texts import spans_in, whole, whole_pairs

logger = logging.getLogger(__name__)

Seam = TypeVar("Seam")

RULES = ("on_empty_text", "rerank_count", "rest", "fuse")
"""Options of a Reranker that concern rankings, not scores."""

LOOK_AHEAD_PAIRS = 4096
"""Pairs that a stream keeps in flight, so that batches are full and memory stays flat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What of a ranking comes back: the bound first, inclusive, then the cut.

    on_empty_text: what becomes of blank documents where a request says nothing of them
    rerank_count, rest, fuse: which candidates are scored, what becomes of others, and of scores
    """

    top_n: int | None = None
    score_threshold: float | None = None
    on_empty_text: OnEmptyText = "keep_last"
    rerank_count: int | None = None
    rest: Rest = "drop"
    fuse: Fuse | None = None

    def __post_init__(self) -> None:
        check_selection(self.top_n, self.score_threshold)

    @property
    def needs_scores(self) -> str:
        """The option that cannot do without retrieval_scores, "" where none is set."""
        if self.fuse is not None and self.fuse.method == "linear":
            return 'fuse="linear"'
        moves = self.rest == "rescale" and self.rerank_count is not None
        return 'rest="rescale"' if moves else ""

    def ranking(self, asked: Asked, scored: Scored) -> Ranking:
        """The ranking of one request's answers."""
        answers = (scored.scores, scored.keys, scored.truncated, scored.spans, scored.exits)
        if self.fuse is None and not asked.rest:
            ranking = ranked(
                *answers,
                indices=asked.indices,
                blank=asked.blank,
                top_n=self.top_n,
                score_threshold=self.score_threshold,
            )
            return with_dropped(ranking, asked.dropped)
        ranking = ranked(*answers, indices=asked.indices)
        if self.fuse is not None:
            ranking = self.fuse.fused(ranking, asked.retrieval_scores)
        found = () if asked.retrieval_scores is None else asked.retrieval_scores
        earlier = {
            index: float("nan") if score is None else float(score)
            for index, score in enumerate(found)
        }
        left = [RankedDocument(it, earlier.get(it, float("nan")), stage=0) for it in asked.rest]
        ranking = with_rest(ranking, left, earlier, self.rest)
        ranking = with_dropped(with_blank(ranking, asked.blank), asked.dropped)
        return ranking.top(self.top_n, score_threshold=self.score_threshold)


@dataclass(frozen=True, slots=True)
class Asked:
    """What of a checked request is scored: not its blank documents, unless its rule says so.

    request           with the documents that are scored, those at *indices* (None: all)
    blank             indices of the documents that stand after them
    rest              indices of those beyond rerank_count that come back too
    retrieval_scores  of all documents
    dropped           how many beyond rerank_count do not come back
    """

    request: RerankRequest
    indices: list[int] | None
    blank: list[int]
    rest: list[int]
    retrieval_scores: Sequence[float | None] | None
    dropped: int = 0

    @classmethod
    def of(cls, request: RerankRequest, rules: Selection) -> Self:
        """Tell the documents of *request* apart."""
        scored, blank = split_blank(request.documents, request.on_empty_text or "score")
        found, rest, dropped = request.retrieval_scores, list[int](), 0
        if (count := rules.rerank_count) is not None and count < len(request.documents):
            if rules.rest == "drop":
                dropped = len(request.documents) - count
                blank = [index for index in blank if index < count]
            else:
                rest = [index for index in scored if index >= count]
            scored = [index for index in scored if index < count]
            logger.debug(
                "%d of %d candidates are scored, %d dropped: rerank_count=%d, rest=%r",
                *(len(scored), len(request.documents), dropped, count, rules.rest),
            )
        if len(scored) == len(request.documents):
            return cls(request, None, blank, rest, found)
        return cls(request.take(scored), scored, blank, rest, found, dropped)

    @property
    def pairs(self) -> int:
        """How many pairs are scored."""
        return len(self.request.documents)


@dataclass(frozen=True, slots=True)
class Plan:
    """Checked requests, and what comes back of them; those that cannot be asked hold an error.

    good: what is asked of those that can be
    """

    checked: list[RerankRequest | InputError]
    good: list[Asked]
    selection: Selection
    deadline: float | None
    return_exceptions: bool

    @classmethod
    def of(
        cls,
        requests: Requests,
        selection: Selection,
        timeout: float | None,
        return_exceptions: bool = False,
    ) -> Plan:
        """Check *requests*; InputError names the one at fault, or stands in its place."""
        checked = checked_requests(
            requests,
            on_empty_text=selection.on_empty_text,
            needs_scores=selection.needs_scores,
            return_exceptions=return_exceptions,
        )
        good = [
            Asked.of(request, selection)
            for request in checked
            if isinstance(request, RerankRequest)
        ]
        return cls(checked, good, selection, deadline_of(timeout), return_exceptions)

    @property
    def pairs(self) -> int:
        """How many pairs they have."""
        return sum(asked.pairs for asked in self.good)

    def whole(self, on_progress: Callable[[int], None] | None) -> tuple[list[Pair], Call]:
        """All of them as one call."""
        pairs, call = gathered([asked.request for asked in self.good], self.deadline)
        return pairs, replace(call, on_progress=on_progress)

    def ungrouped(self) -> tuple[list[Pair], Call]:
        """All of them as pairs that have nothing to do with each other."""
        pairs, call = self.whole(None)
        return pairs, replace(call, groups=None)

    def apart(self) -> list[tuple[list[Pair], Call]]:
        """One call for each."""
        return [gathered([asked.request], self.deadline) for asked in self.good]

    def rankings(self, scored: Scored) -> list[Ranked]:
        """One ranking per request of `whole`."""
        bounds = np.cumsum([0, *(asked.pairs for asked in self.good)]).tolist()
        spans = zip(self.good, bounds[:-1], bounds[1:], strict=True)
        return [
            self.selection.ranking(asked, scored.take(slice(start, end)))
            for asked, start, end in spans
        ]

    def only(self, scored: Scored) -> Ranking:
        """The ranking of the one request there is."""
        return self.selection.ranking(self.good[0], scored)

    def shared_fate(self, error: Exception) -> list[Ranked] | None:
        """*error* for each request where it concerns all of them, None where one may be at fault.

        Raises it where exceptions are not to be returned.
        """
        if not self.return_exceptions:
            raise error
        count = len(self.good)
        if count == 1 or isinstance(error, TimeoutError | ClosedError):
            return [error] * count
        return None

    def outcomes(self, each: Iterable[Scored | Exception]) -> list[Ranked]:
        """What came of the requests of `apart`."""
        return [
            it if isinstance(it, Exception) else self.selection.ranking(asked, it)
            for asked, it in zip(self.good, each, strict=True)
        ]

    def merged(self, found: Iterable[Ranked]) -> list[Ranked]:
        """*found*, with the errors of the others where they stood."""
        rest = iter(found)
        return [next(rest) if isinstance(it, RerankRequest) else it for it in self.checked]


class Caller:
    """Hands pairs to a scorer, and waits for them in a thread or on an event loop."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self.queue = inside(scorer, Queue)  # type: ignore[type-abstract]  # a protocol to look for
        self.ended = False

    @property
    def closed(self) -> bool:
        """Whether it takes no more requests: closed, or its queue is."""
        return self.ended or (self.queue is not None and self.queue.closed)

    def close(self) -> None:
        """Close the scorer. Idempotent."""
        if not self.ended:
            self.ended = True
            self.scorer.close()

    def stats(self) -> dict[str, Any]:
        """What the scorer's queue and cache count."""
        cache = inside(self.scorer, Caching)  # type: ignore[type-abstract]  # likewise
        queue = {} if self.queue is None else self.queue.stats()
        return queue if cache is None else {**queue, **cache.cache_stats()}

    def check_open(self) -> None:
        """Raise ClosedError where it was closed."""
        if self.ended:
            raise ClosedError("the reranker is closed: load it again")

    def submit(self, pairs: Sequence[Pair], call: Call) -> Future[Scored]:
        """A Future of the answers, checked; prepared in this thread."""
        if not pairs:
            return done(_NOTHING)
        read = whole_pairs(pairs)
        if call.prompts is not None:
            prompts = [None if prompt is None else whole(prompt) for prompt in call.prompts]
            call = replace(call, prompts=prompts)
        return then(
            self.scorer.submit_pairs(read, call),
            lambda scored: _as_given(_checked(scored, len(pairs)), pairs, read),
        )

    def run(self, pairs: Sequence[Pair], call: Call) -> Scored:
        """The answers, waited for. RerankError in a worker, which would wait for itself."""
        if self.queue is not None and self.queue.serving():
            raise RerankError(
                "score and rerank wait, and must not be called in a callback of a Future of the "
                "same reranker: its thread would wait for itself. Use submit there"
            )
        return wait(self.submit(pairs, call), call.deadline)

    def fitted(self, pairs: Sequence[Pair], call: Call, labels: Sequence[int]) -> Calibration:
        """The calibration that *labels* of *pairs* ask for, but for pairs that stopped early."""
        scored, given = self.run(pairs, call), np.asarray(labels)
        if scored.exits is not None and given.shape == scored.exits.shape:
            rows = np.flatnonzero(scored.exits == 0)
            scored, given = scored.take(rows), given[rows]
        return Calibration.fit(
            scored.keys, given, weights=self.weights(), model=self.scorer.info().model
        )

    def weights(self) -> tuple[str, ...]:
        """The names of the weights that run, () where nobody knows."""
        weighted = inside(self.scorer, Weighted)  # type: ignore[type-abstract]  # likewise
        return () if weighted is None else weighted.weights()

    def run_each(self, calls: Iterable[tuple[list[Pair], Call]]) -> list[Scored | Exception]:
        """The answers to each call, or what it failed of; all wait in the queue together."""
        futures = [self._attempt(pairs, call) for pairs, call in calls]
        return [it if isinstance(it, Exception) else _outcome(it[0], it[1]) for it in futures]

    async def run_async(self, pairs: Sequence[Pair], call: Call) -> Scored:
        """`run`, awaited: prepared off the event loop, in this context."""
        if not pairs:
            return _NOTHING
        ticket = None if self.queue is None else self.queue.reserve(len(pairs), call.deadline)
        future = prepare(lambda: self.submit(pairs, replace(call, ticket=ticket)), ticket=ticket)
        return await wait_async(future, call.deadline)

    async def run_each_async(
        self, calls: Iterable[tuple[list[Pair], Call]]
    ) -> list[Scored | Exception]:
        """`run_each`, awaited."""
        works = [self.run_async(pairs, call) for pairs, call in calls]
        outcomes = await asyncio.gather(*works, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, Exception):
                raise outcome
        return outcomes  # type: ignore[return-value]  # the loop above saw to it

    def stream(
        self,
        requests: Iterable[RerankRequest | tuple[str, Sequence[str]]],
        selection: Selection,
        progress: bool,
        on_progress: Callable[[int], None] | None,
    ) -> Iterator[Ranking]:
        """One ranking per request, in order, with `LOOK_AHEAD_PAIRS` in flight."""
        with counting(None, progress=progress, on_progress=on_progress) as count:
            yield from self._stream(requests, selection, count)

    def _stream(
        self,
        requests: Iterable[RerankRequest | tuple[str, Sequence[str]]],
        selection: Selection,
        on_progress: Callable[[int], None] | None,
    ) -> Iterator[Ranking]:
        flying: deque[tuple[Plan, Future[Scored]]] = deque()
        pairs_flying = 0
        try:
            for request in requests:
                plan = Plan.of([request], selection, None)
                while flying and pairs_flying + plan.pairs > LOOK_AHEAD_PAIRS:
                    first, future = flying.popleft()
                    pairs_flying -= first.pairs
                    yield first.only(wait(future, None))
                flying.append((plan, self.submit(*plan.whole(on_progress))))
                pairs_flying += plan.pairs
            while flying:
                first, future = flying.popleft()
                yield first.only(wait(future, None))
        finally:
            for _, future in flying:
                future.cancel()

    def _attempt(
        self, pairs: list[Pair], call: Call
    ) -> tuple[Future[Scored], float | None] | Exception:
        try:
            return self.submit(pairs, call), call.deadline
        except Exception as error:  # noqa: BLE001  # it is the outcome of this call
            return error


class Closing:
    """What can be closed, and so be used by `with` and `async with`."""

    def close(self) -> None:
        """Free what is held. Idempotent."""
        raise NotImplementedError

    def _check_open(self) -> None:
        """Raise ClosedError where it was closed."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """`close`, with the waiting off the event loop."""
        await asyncio.to_thread(self.close)

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def inside(scorer: object, seam: type[Seam]) -> Seam | None:
    """The outermost part of *scorer* that has what *seam* asks for, looked for through `inner`."""
    part: object = scorer
    while part is not None:
        if isinstance(part, seam):
            return part
        part = getattr(part, "inner", None)
    return None


@contextmanager
def counting(
    total: int | None, *, progress: bool, on_progress: Callable[[int], None] | None
) -> Iterator[Callable[[int], None] | None]:
    """What counts pairs done: *on_progress*, and a bar where *progress* is true."""
    if not progress:
        yield on_progress
        return
    from .progress import Bar  # lazy: nobody else needs tqdm

    with Bar(total, also=on_progress) as bar:
        yield bar.count


def _outcome(future: Future[Scored], deadline: float | None) -> Scored | Exception:
    try:
        return wait(future, deadline)
    except Exception as error:  # noqa: BLE001  # it is the outcome of this call
        return error


def _as_given(scored: Scored, pairs: Sequence[Pair], read: Sequence[Pair]) -> Scored:
    """*scored* with spans that count in the documents of *pairs*, of which *read* was made."""
    if read is pairs or scored.spans is None:
        return scored
    documents = [document for _, document in pairs]
    spans = [spans_in(text, span) for text, span in zip(documents, scored.spans, strict=True)]
    return replace(scored, spans=np.array(spans, dtype=np.int64))


_NOTHING = Scored(np.zeros(0, np.float32), np.zeros(0, np.float32), np.zeros(0, np.bool_))


def _checked(scored: Scored, pairs: int) -> Scored:
    """*scored*, where it has one finite answer per pair: NaN never sorts."""
    keys: dict[str, Any] = {"scores": scored.scores, "logits": scored.keys}
    for name, values in keys.items():
        if np.shape(values) != (pairs,):
            raise BackendError(
                f"the scorer returned {name} of shape {np.shape(values)} for {pairs} pairs"
            )
        if not np.isfinite(values).all():
            row = int(np.flatnonzero(~np.isfinite(values))[0])
            raise BackendError(f"{name} must be finite: got {values[row]} for pair {row}")
    return scored
