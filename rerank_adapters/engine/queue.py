"""Who shares the next batch, and whose turn it is. Knows no threads."""

from __future__ import annotations

from typing import NamedTuple

from ..tokens import Stage
from .batching import BatchRule, is_too_padded, iterate_batches
from .plan import NO_CAP, Load, Piece, Plan, Waiting
from .requests import Batch, Indices, Request, Ticket


class _Planned(NamedTuple):
    """A plan, what it is for, and when it is no longer the best: at `renew_at` batches left."""

    plan: Plan
    rule: BatchRule
    budget: int
    has_room: bool
    renew_at: int


class RequestQueue:
    """Requests in order of arrival; `take` cuts the next batch out of a bounded window of them.

    While several wait, half of the tokens are the oldest request's, so that a stream of small ones
    does not hold a large one up; the other half is for the one that was passed over *max_skipped*
    times, else for the one with the fewest tokens left, so that no small one waits for a large one.
    A batch has one of them for its anchor: it is the one with the anchor's longest pair in the
    window's plan. The plan is kept until it could be a better one: until a request arrives that
    the window has room for, until half is taken, or until a batch by another rule is asked for.
    """

    def __init__(self, *, window_tokens: int, max_skipped: int) -> None:
        self.window_tokens = window_tokens
        self._max_skipped = max_skipped
        self._waiting: dict[tuple[Ticket, Stage | None], Waiting] = {}
        self._stages: set[Stage | None] = {None}
        self._ahead = 0  # tokens by which the oldest is ahead of its half
        self._planned: _Planned | None = None
        self.load = Load()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(
        self, request: Request, *, load: Load | None = None, max_batch_tokens: int | None = None
    ) -> None:
        """Put *request* last, or to what waits of its caller; count it in *load* too meanwhile.

        Batches that are planned with it hold at most *max_batch_tokens*. More pairs of a caller
        that was served before stand where the first ones stood: its turn goes by when it came.
        """
        key = request.ticket, request.encoded.stage
        self._stages.add(request.encoded.stage)
        waiting = self._waiting.get(key)
        is_new = waiting is None
        if waiting is None:
            most = max_batch_tokens or NO_CAP
            waiting = Waiting(request, load=load or Load(), max_batch_tokens=most)
            self._waiting[key] = waiting
        else:
            waiting.grow(request)
        for each in (self.load, waiting.load):
            each.requests += is_new
            each.pairs += len(request.encoded)
            each.tokens += request.encoded.tokens
        moved = request.answer.started and is_new and len(self._waiting) > 1
        if moved:
            self._waiting = dict(sorted(self._waiting.items(), key=_arrived))
        if moved or not is_new or (self._planned and self._planned.has_room):
            self._planned = None

    def drop(self, ticket: Ticket) -> None:
        """Remove what still waits of a request, if anything does."""
        for stage in self._stages:
            if waiting := self._waiting.get((ticket, stage)):
                self._count_out(waiting, len(waiting.indices), waiting.tokens, last=True)
                self._planned = None

    def take(self, rule: BatchRule, budget: int) -> tuple[Batch, int]:
        """Cut the next batch, of at most *budget* padded tokens; needs a request.

        Returns the tokens in it too, padding not counted.
        """
        if len(self._waiting) == 1:
            pieces = self._cut_alone(rule, budget)
        else:
            pieces = self._cut_shared(rule, budget)
        tokens = 0
        for waiting, indices, taken in pieces:
            waiting.take(indices, taken)
            tokens += taken
            self._count_out(waiting, len(indices), taken, last=not len(waiting.indices))
        if not self._waiting:
            self._planned = None  # which would keep what it served
        return Batch([(waiting.request, indices) for waiting, indices, _ in pieces]), tokens

    def _count_out(self, waiting: Waiting, pairs: int, tokens: int, *, last: bool) -> None:
        for each in (self.load, waiting.load):
            each.requests -= last
            each.pairs -= pairs
            each.tokens -= tokens
        if last:
            del self._waiting[waiting.key]

    def _cut_alone(self, rule: BatchRule, budget: int) -> list[Piece]:
        """What a plan of the only request would take first, without planning the rest."""
        self._planned = None
        (waiting,) = self._waiting.values()
        budget = min(budget, waiting.max_batch_tokens)
        if _fits_one_batch(waiting, rule, budget):
            return [Piece(waiting, waiting.indices, waiting.tokens)]
        request = waiting.request
        request.sort()
        most = max(1, budget // max(1, int(request.lengths[waiting.indices[0]])))
        lengths = request.lengths[waiting.indices[:most]]
        batches = iterate_batches(
            lengths,
            max_batch_tokens=budget,
            max_padding=rule.max_padding,
            free_padding=rule.free_padding,
        )
        size = len(next(batches))
        return [Piece(waiting, waiting.indices[:size], int(lengths[:size].sum()))]

    def _cut_shared(self, rule: BatchRule, budget: int) -> list[Piece]:
        plan = self._current_plan(rule, budget)
        oldest = next(iter(self._waiting.values()))
        its_turn = self._ahead <= 0
        pieces, youngest = plan.take(plan.turn(self._max_skipped, oldest=its_turn))
        for older in plan.window[:youngest]:
            older.skipped += 1  # those of them that are served start again at 0
        own = pieces[0].tokens if pieces[0].waiting is oldest else 0
        ahead = self._ahead + 2 * own - sum(piece.tokens for piece in pieces)
        # A forward costs something in addition to its tokens: what padding may be free for.
        ahead += rule.free_padding if its_turn else -rule.free_padding
        most = budget + rule.free_padding  # what nobody asked for is not saved up
        self._ahead = max(-most, min(most, ahead))
        return pieces

    def _current_plan(self, rule: BatchRule, budget: int) -> Plan:
        now = self._planned
        if now and now.plan.left > now.renew_at and (now.budget, now.rule) == (budget, rule):
            return now.plan
        window, pieces, room = self._window()
        least = min(budget, *(waiting.max_batch_tokens for waiting in window))
        plan = Plan(window, pieces, rule=rule, budget=least)
        # What lies beyond the window fills up its last batches, so those are not taken yet.
        whole = sum(map(len, pieces)) == self.load.pairs
        self._planned = _Planned(plan, rule, budget, room > 0, 0 if whole else plan.left // 2)
        return plan

    def _window(self) -> tuple[list[Waiting], list[Indices], int]:
        """The oldest requests, the pairs of each that may be taken, and the tokens to spare.

        All are for the part of the network that the oldest of all waits for. One request fills a
        quarter of the window at most, so a newcomer is seen behind a huge one.
        """
        window, pieces = [], []
        room = self.window_tokens
        oldest = next(iter(self._waiting.values()))
        for waiting in self._waiting.values():
            if waiting.request.encoded.stage != oldest.request.encoded.stage:
                continue
            waiting.request.sort()
            indices, tokens = waiting.longest(min(room, self.window_tokens // 4))
            window.append(waiting)
            pieces.append(indices)
            room -= tokens
            if room <= 0:
                break
        return window, pieces, room


def _arrived(item: tuple[tuple[Ticket, Stage | None], Waiting]) -> tuple[float, int]:
    """When its caller came; of one caller's, first what goes on and so frees memory."""
    request = item[1].request
    stage = request.encoded.stage
    return request.answer.arrived or 0.0, 0 if stage is None else -stage.after


def _fits_one_batch(waiting: Waiting, rule: BatchRule, budget: int) -> bool:
    """Whether all of an untouched request goes into one batch, so that it need not be sorted."""
    encoded, pairs = waiting.request.encoded, len(waiting.indices)
    if pairs < len(encoded):
        return False
    padded = pairs * int(encoded.lengths.max(initial=1))
    return padded <= budget and not is_too_padded(
        padded,
        waiting.tokens,
        max_padding=rule.max_padding,
        free_padding=rule.free_padding,
    )
