"""All of a query's candidates run the first layers; the weak stop there, the others go on.

From there on the same again, where there are more exits.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from ..early_exit import ExitHead
from ..engine.admission import Admission
from ..engine.held import Contest
from ..futures import done, prepare, settle, then
from ..protocols import Call, Pair, Scored, Scorer
from ..tokens import Scores, Stage, TokenBatch
from . import Core, Wrapper

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Exits:
    """Where candidates stop, first to last, how they are judged there and how many go on.

    state_bytes  what a token's hidden states take between two parts
    activate     from exit logits to scores
    """

    steps: tuple[tuple[ExitHead, int], ...]
    state_bytes: int
    activate: Callable[[Scores], Scores]


class EarlyExits(Wrapper):
    """Scores each query's best candidates whole, and the others by the exit head of a layer.

    Who goes on is decided by query, exit logit and index alone. Calls without groups, and queries
    with no more candidates than go on, are scored whole; an exit that all who are left may pass is
    none. Of a query that is between two parts no more states are kept than go on.
    """

    def __init__(self, inner: Scorer, core: Core, admission: Admission, exits: Exits) -> None:
        """*inner* scores whole, over the same *core* and *admission*."""
        super().__init__(inner)
        self.core = core
        self.admission = admission
        self.exits = exits

    def submit_pairs(self, pairs: Sequence[Pair], call: Call) -> Future[Scored]:
        """Score *pairs*, in groups by query: `Scored.exits` says who stopped."""
        least = self.exits.steps[-1][1]
        if call.groups is None or not (np.diff(call.groups) > least).any():
            return self.inner.submit_pairs(pairs, call)
        ticket = call.ticket
        if ticket is None or self.admission.used(ticket):
            ticket = self.admission.reserve(len(pairs), call.deadline)
        try:
            return _Run(self, pairs, call, ticket).start()
        except BaseException as error:
            settle(ticket, error)  # not cancelled: an async caller would hear of nothing else
            raise


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """The rows of one query's candidates, and the exits that stop some of them."""

    rows: Rows
    steps: tuple[tuple[ExitHead, int], ...]

    def parts(self, start: int) -> Iterator[tuple[Stage, int]]:
        """What is run behind each exit, and where the rows of those who do begin."""
        following = [*(head for head, _ in self.steps[1:]), None]
        for (head, keep), after in zip(self.steps, following, strict=True):
            yield Stage(head.layer, after), start
            start += keep


class _Run:
    """One call: a row for every pair, and behind these one each time that a pair goes on."""

    def __init__(
        self,
        scorer: EarlyExits,
        pairs: Sequence[Pair],
        call: Call,
        ticket: Future[NDArray[np.float32]],
    ) -> None:
        self._core = scorer.core
        self._admission = scorer.admission
        self._exits = scorer.exits
        self._ticket = ticket
        started = perf_counter()
        encoded = scorer.core.encode(pairs, call)
        self._batch, self._truncated = encoded.batch, encoded.truncated
        self._small, groups = self._groups(call)
        self._went = np.zeros(sum(keep for it in groups for _, keep in it.steps), np.int64)
        self._layer = np.zeros_like(self._went)  # that each of these ran to; 0: the last
        self._exit = np.zeros(len(pairs), np.int64)
        self._contests: list[tuple[_Group, Contest]] = []
        start = 0
        for group in groups:
            self._exit[group.rows] = group.steps[0][0].layer
            self._contests.append((group, self._contest(group, start)))
            start += sum(keep for _, keep in group.steps)
        self._answer = self._admission.begin(
            ticket,
            len(pairs) + len(self._went),
            tokenise_seconds=perf_counter() - started,
            on_progress=_later(call.on_progress, len(self._went)),
        )
        self._admitted = False

    def start(self) -> Future[Scored]:
        """Queue the first part; a Future of all answers, whose end frees every state."""
        self._ticket.add_done_callback(lambda _: self._close())
        if len(self._small):
            self._enqueue(self._batch.take(self._small), self._small)
        enter = self._admission.held.enter
        inside = [it for it in self._contests if enter(it[1].size, self._later(*it))]
        for _, first in itertools.groupby(inside, lambda it: it[0].steps[0][0]):
            self._begin(list(first))
        return then(self._ticket, self._scored)

    def _groups(self, call: Call) -> tuple[Rows, list[_Group]]:
        """The rows of queries that are scored whole, and each other query."""
        bounds = [] if call.groups is None else call.groups.tolist()
        small, groups = [np.zeros(0, np.int64)], []
        for both in itertools.pairwise(bounds):
            rows = np.arange(*both)
            steps = tuple(step for step in self._exits.steps if step[1] < len(rows))
            if steps:
                groups.append(_Group(rows, steps))
            else:
                small.append(rows)
        return np.concatenate(small), groups

    def _contest(self, group: _Group, start: int) -> Contest:
        """Its rounds, whose winners are the later rows from *start* on."""
        keeps = [keep for _, keep in group.steps]
        longest = np.sort(self._batch.lengths[group.rows])[-keeps[0] :]
        return Contest(
            group.rows.tolist(),
            keeps,
            room=self._admission.held,
            size=int(longest.sum()) * self._exits.state_bytes,
            on_complete=partial(self._complete, group.parts(start)),
        )

    def _later(self, group: _Group, contest: Contest) -> Callable[[], None]:
        """What begins *contest* where it had to wait for room: in a preparing thread."""
        return lambda: self._prepare(lambda: self._begin([(group, contest)]))

    def _begin(self, contests: Sequence[tuple[_Group, Contest]]) -> None:
        """Queue the first part of *contests*, which have their room and stop at the same layer."""
        opened = [contest for _, contest in contests if contest.open()]
        entries = [entry for contest in opened for entry in contest.entries]
        if entries:
            rows = np.array([entry.row for entry in entries], np.int64)
            stage = Stage(0, contests[0][0].steps[0][0])
            batch = replace(self._batch.take(rows), stage=stage, held=tuple(entries))
            self._enqueue(batch, rows)

    def _complete(self, parts: Iterator[tuple[Stage, int]], contest: Contest) -> None:
        """In a worker: have those who go on queued elsewhere, for the next of *parts*."""
        self._prepare(lambda: self._go_on(*next(parts), contest))

    def _go_on(self, stage: Stage, start: int, contest: Contest) -> None:
        """Queue the next part of a query's best, as later rows from *start* on."""
        entries = contest.next_round()
        if not entries:
            return  # closed meanwhile
        rows = np.array([entry.row for entry in entries], np.int64)
        numbers = start + np.arange(len(rows))
        self._went[numbers] = rows
        self._layer[numbers] = 0 if stage.head is None else stage.head.layer
        batch = replace(self._batch.take(rows), stage=stage, held=tuple(entries))
        self._enqueue(batch, len(self._truncated) + numbers)

    def _enqueue(self, batch: TokenBatch, numbers: Rows) -> None:
        """The first part asks to be let in, and may wait for it; what follows goes on."""
        admitted, self._admitted = self._admitted, True
        (self._admission.go_on if admitted else self._admission.admit)(self._answer, batch, numbers)

    def _prepare(self, work: Callable[[], None]) -> None:
        def task() -> Future[None]:
            try:
                work()
            except BaseException as error:  # noqa: BLE001  # the caller's to raise
                settle(self._ticket, error)
            return done(None)

        prepare(task, ticket=None)

    def _close(self) -> None:
        for _, contest in self._contests:
            contest.close()

    def _scored(self, rows: NDArray[np.float32]) -> Scored:
        """What the rows mean: exit logits where scoring ended, else logits of the last layer."""
        pairs, exits = len(self._truncated), self._exit.copy()
        logits = rows[:pairs].copy()
        for layer in [*(head.layer for head, _ in self._exits.steps[1:]), 0]:
            later = np.flatnonzero(self._layer == layer)
            exits[self._went[later]] = layer
            logits[self._went[later]] = rows[pairs + later]
        whole = self._core.scored(logits, self._truncated)
        keys, scores = whole.keys.copy(), whole.scores.copy()
        stopped = exits > 0
        keys[stopped] = logits[stopped, 0]
        scores[stopped] = self._exits.activate(keys[stopped])
        return replace(whole, logits=keys, scores=scores, exits=exits)


def _later(report: Callable[[int], None] | None, rows: int) -> Callable[[int], None] | None:
    """*report* of pairs, from counts of rows: the first *rows* of them are not told."""
    if report is None:
        return None
    lock = threading.Lock()
    untold = rows

    def count(found: int) -> None:
        nonlocal untold
        with lock:
            told = max(0, found - untold)
            untold = max(0, untold - found)
        if told:
            report(told)

    return count
