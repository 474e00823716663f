"""All of a query's candidates run the first layers; the weak stop there, the others go on."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
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
    """Where candidates stop and how they are judged there.

    state_bytes  what a token's hidden states take between the two parts
    activate     from exit logits to scores
    """

    head: ExitHead
    keep: int
    state_bytes: int
    activate: Callable[[Scores], Scores]


class EarlyExits(Wrapper):
    """Scores each query's best candidates whole, and the others by the exit head of a layer.

    Who goes on is decided by query, exit logit and index alone. Calls without groups, and queries
    with no more candidates than go on, are scored whole. Of a query that is between the two parts
    no more states are kept than go on.
    """

    def __init__(self, inner: Scorer, core: Core, admission: Admission, exits: Exits) -> None:
        """*inner* scores whole, over the same *core* and *admission*."""
        super().__init__(inner)
        self.core = core
        self.admission = admission
        self.exits = exits

    def submit_pairs(self, pairs: Sequence[Pair], call: Call) -> Future[Scored]:
        """Score *pairs*, in groups by query: `Scored.exits` says who stopped."""
        if call.groups is None or not (np.diff(call.groups) > self.exits.keep).any():
            return self.inner.submit_pairs(pairs, call)
        ticket = call.ticket
        if ticket is None or self.admission.used(ticket):
            ticket = self.admission.reserve(len(pairs), call.deadline)
        try:
            return _Run(self, pairs, call, ticket).start()
        except BaseException as error:
            settle(ticket, error)  # not cancelled: an async caller would hear of nothing else
            raise


class _Run:
    """One call: a row for every pair, and behind these one for each pair that goes on."""

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
        self._went = np.zeros(len(groups) * self._exits.keep, np.int64)
        self._contests = [self._contest(at, rows) for at, rows in enumerate(groups)]
        self._exit = np.zeros(len(pairs), np.int64)
        for rows in groups:
            self._exit[rows] = self._exits.head.layer
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
        self._begin([it for it in self._contests if enter(it.size, self._later(it))])
        return then(self._ticket, self._scored)

    def _groups(self, call: Call) -> tuple[Rows, list[Rows]]:
        """The rows of queries that are scored whole, and those of each other one."""
        bounds = [] if call.groups is None else call.groups.tolist()
        each = [np.arange(*both) for both in itertools.pairwise(bounds)]
        small = [rows for rows in each if len(rows) <= self._exits.keep]
        whole = np.concatenate([np.zeros(0, np.int64), *small])
        return whole, [rows for rows in each if len(rows) > self._exits.keep]

    def _contest(self, at: int, rows: Rows) -> Contest:
        longest = np.sort(self._batch.lengths[rows])[-self._exits.keep :]
        return Contest(
            rows.tolist(),
            self._exits.keep,
            room=self._admission.held,
            size=int(longest.sum()) * self._exits.state_bytes,
            on_complete=partial(self._complete, at * self._exits.keep),
        )

    def _later(self, contest: Contest) -> Callable[[], None]:
        """What begins *contest* where it had to wait for room: in a preparing thread."""
        return lambda: self._prepare(lambda: self._begin([contest]))

    def _begin(self, contests: Sequence[Contest]) -> None:
        """Queue the first part of *contests*, which have their room."""
        opened = [contest for contest in contests if contest.open()]
        entries = [entry for contest in opened for entry in contest.entries]
        if entries:
            rows = np.array([entry.row for entry in entries], np.int64)
            stage = Stage(self._exits.head.layer, self._exits.head)
            batch = replace(self._batch.take(rows), stage=stage, held=tuple(entries))
            self._enqueue(batch, rows)

    def _complete(self, start: int, contest: Contest) -> None:
        """In a worker: have those who go on queued elsewhere, as rows from *start* on."""
        self._prepare(lambda: self._go_on(start, contest))

    def _go_on(self, start: int, contest: Contest) -> None:
        """Queue the second part of a query's best."""
        entries = contest.winners()
        if not entries:
            return  # closed meanwhile
        rows = np.array([entry.row for entry in entries], np.int64)
        numbers = start + np.arange(len(rows))
        self._went[numbers] = rows
        stage = Stage(self._exits.head.layer, self._exits.head, resumes=True)
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
        for contest in self._contests:
            contest.close()

    def _scored(self, rows: NDArray[np.float32]) -> Scored:
        """What the rows mean: exit logits where scoring ended, else logits of the last layer."""
        pairs, exits = len(self._truncated), self._exit.copy()
        exits[self._went] = 0
        logits = rows[:pairs].copy()
        logits[self._went] = rows[pairs:]
        whole = self._core.scored(logits, self._truncated)
        keys, scores = whole.keys.copy(), whole.scores.copy()
        stopped = exits > 0
        keys[stopped] = rows[:pairs][stopped, 0]
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
