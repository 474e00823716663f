"""The queue by itself: every row is dealt once, whose turn it is, who is passed over."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank_adapters.engine.batching import BatchRule, plan_batches
from rerank_adapters.engine.pairs import together
from rerank_adapters.engine.plan import Load
from rerank_adapters.engine.queue import RequestQueue
from rerank_adapters.engine.requests import Answer, Batch, Request, Ticket
from tests.engine.traffic import request

untimed = settings(deadline=None, max_examples=50)
LENGTHS = st.lists(st.lists(st.integers(1, 80), min_size=1, max_size=20), min_size=1, max_size=20)
RULES = st.builds(
    BatchRule,
    max_tokens=st.just(500),
    max_padding=st.sampled_from([0.0, 0.1, 0.5]),
    free_padding=st.sampled_from([0, 0, 100]),
)
RULE = BatchRule(max_tokens=10_000)


def _request(lengths: list[int], *, seed: int = 0) -> Request:
    ticket = Ticket(None, number=0, pairs=0, deadline=math.inf)
    return Request(Answer(ticket, len(lengths)), request(lengths, seed=seed))


def _queue(
    *sizes: list[int], window_tokens: int = 10_000, max_skipped: int = 8
) -> tuple[RequestQueue, list[Request]]:
    queue = RequestQueue(window_tokens=window_tokens, max_skipped=max_skipped)
    waiting = [_request(lengths, seed=at) for at, lengths in enumerate(sizes)]
    for entry in waiting:
        queue.add(entry)
    return queue, waiting


def _take(queue: RequestQueue, budget: int, rule: BatchRule = RULE) -> Batch:
    batch, tokens = queue.take(rule, budget)
    assert tokens == len(batch.tokens().input_ids)
    return batch


def _served(batch: Batch) -> list[Request]:
    return [entry for entry, _ in batch.parts]


# -- every row once -------------------------------------------------------------------------------


@untimed
@given(sizes=LENGTHS, budget=st.integers(1, 400), window=st.integers(1, 2000))
def test_the_queue_deals_every_row_once_within_the_budget(sizes, budget, window):
    """Batches hold the budget (but for one long pair), and the counts end at zero."""
    queue, waiting = _queue(*sizes, window_tokens=window)
    dealt = {entry: [] for entry in waiting}
    while queue:
        batch = _take(queue, budget)
        lengths = batch.tokens().lengths
        assert len(batch) == 1 or len(batch) * lengths.max() <= budget
        for entry, indices in batch.parts:
            rows = entry.order[indices]
            assert lengths.max() >= entry.encoded.lengths[rows].max()
            dealt[entry] += rows.tolist()
    assert all(sorted(rows) == list(range(len(e.encoded))) for e, rows in dealt.items())
    assert queue.load == Load()


@untimed
@given(data=st.data(), window=st.integers(1, 2000))
def test_the_queue_deals_every_row_once_whatever_happens_in_between(data, window):
    """Requests come and are dropped, budgets, rules and caps differ from one batch to the next."""
    queue, _ = _queue(window_tokens=window)
    loads = [Load(), Load()]
    rules = st.sampled_from(data.draw(st.lists(RULES, min_size=1, max_size=2)))
    budgets = st.sampled_from(data.draw(st.lists(st.integers(1, 300), min_size=1, max_size=2)))
    dealt: dict[Request, list[int]] = {}
    owner: dict[Request, Load] = {}
    for step in range(data.draw(st.integers(1, 40))):
        waiting = [entry for entry, rows in dealt.items() if len(rows) < len(entry.encoded)]
        do = data.draw(st.sampled_from(["add", "add", "take", "take", "drop"]))
        if do == "add" or not waiting:
            lengths = data.draw(st.lists(st.integers(1, 80), min_size=1, max_size=20))
            entry = _request(lengths, seed=step)
            dealt[entry], owner[entry] = [], data.draw(st.sampled_from(loads))
            cap = data.draw(st.none() | st.integers(1, 300))
            queue.add(entry, load=owner[entry], max_batch_tokens=cap)
        elif do == "drop":
            entry = data.draw(st.sampled_from(waiting))
            queue.drop(entry.ticket)
            del dealt[entry]
        else:
            _deal(_take(queue, data.draw(budgets), data.draw(rules)), dealt)
        assert queue.load == _load(dealt)
        for load in loads:
            own = {entry: rows for entry, rows in dealt.items() if owner[entry] is load}
            assert load == _load(own)
    while queue:
        _deal(_take(queue, 200), dealt)
    assert all(sorted(rows) == list(range(len(e.encoded))) for e, rows in dealt.items())


def _deal(batch: Batch, dealt: dict[Request, list[int]]) -> None:
    """Note whose rows a batch took; its tokens are theirs."""
    tokens, start = batch.tokens(), 0
    for entry, indices in batch.parts:
        rows = entry.order[indices].tolist()
        dealt[entry] += rows
        own = tokens.take(range(start, start + len(rows)))
        whole = together([entry.encoded.views(np.array(rows))])
        np.testing.assert_array_equal(own.input_ids, whole.input_ids)
        start += len(rows)


def _load(dealt: dict[Request, list[int]]) -> Load:
    """What is left of requests of which these rows were dealt."""
    left = [np.delete(entry.encoded.lengths, rows) for entry, rows in dealt.items()]
    left = [lengths for lengths in left if len(lengths)]
    return Load(len(left), sum(map(len, left)), int(sum(map(np.sum, left))))


@untimed
@given(
    lengths=st.lists(st.integers(1, 80), min_size=1, max_size=60),
    budget=st.integers(1, 500),
    rule=RULES,
)
def test_a_request_alone_is_cut_as_if_it_had_been_planned(lengths, budget, rule):
    """The shortcut for the only request gives the batches that a plan of all of it has."""
    queue, (entry,) = _queue(lengths)
    expected = plan_batches(
        entry.encoded.lengths,
        max_batch_tokens=budget,
        max_padding=rule.max_padding,
        free_padding=rule.free_padding,
    )
    got = []
    while queue:
        batch = _take(queue, budget, rule)
        got.append(sorted(entry.order[batch.parts[0][1]].tolist()))
    assert got == [sorted(rows.tolist()) for rows in expected]


def test_what_was_dropped_is_in_no_later_batch():
    """A request that is planned for a batch leaves that batch; the others are dealt as before."""
    queue, waiting = _queue(*[[10] * 10] * 4)
    assert _served(_take(queue, 100)) == [waiting[0]]
    queue.drop(waiting[2].ticket)
    assert [_served(_take(queue, 100)) for _ in range(2)] == [[waiting[3]], [waiting[1]]]
    assert queue.load == Load()


# -- rules and caps -------------------------------------------------------------------------------


def test_each_rule_is_used_for_the_batches_it_is_asked_for():
    """One device pads nothing beyond 10 %, the other pads for free: each has its own batches."""
    careful, free = (BatchRule(max_tokens=400, free_padding=padding) for padding in (0, 400))
    queue, _ = _queue(*[[100, 50, 10, 10, 10, 10]] * 2)
    assert _take(queue, 400, careful).tokens().lengths.tolist() == [100, 100]
    assert sorted(_take(queue, 400, free).tokens().lengths.tolist()) == [*[10] * 6, 50, 50]
    assert _take(queue, 400, careful).tokens().lengths.tolist() == [10, 10]


def test_a_cap_holds_for_every_batch_of_its_window():
    """The smallest cap of those that wait bounds their batches; later ones are as full as ever."""
    queue, _ = _queue([10] * 100)
    for cap in (50, 70):
        queue.add(_request([10] * 10), max_batch_tokens=cap)
    sizes = []
    while queue.load.requests > 1:
        sizes.append(len(_take(queue, 400)))
    assert set(sizes) == {5}
    assert len(_take(queue, 400)) == 40


def test_a_cap_of_the_only_request_is_kept():
    """Alone in the queue it is cut by its own cap too, even where it would fit a batch whole."""
    queue, _ = _queue()
    queue.add(_request([10] * 12), max_batch_tokens=50)
    assert [len(_take(queue, 400)) for _ in range(3)] == [5, 5, 2]


# -- whose turn it is -----------------------------------------------------------------------------


def test_the_oldest_request_is_in_the_first_batch():
    """A long-waiting request of one odd length is not starved by a crowd of another length."""
    queue, waiting = _queue([7], *[[50] * 10] * 20)
    assert waiting[0] in _served(_take(queue, 500))


def test_a_small_request_behind_a_large_one_waits_for_one_batch():
    """A newcomer of one pair runs in the second batch, not after the five hundred before it."""
    queue, waiting = _queue([100] * 500, [90], window_tokens=131_072)
    _take(queue, 1000)
    assert waiting[1] in _served(_take(queue, 1000))


def test_the_smallest_of_several_goes_first():
    """Behind a large request three wait: that with the fewest tokens goes first, the most last."""
    exact = BatchRule(max_tokens=1000, max_padding=0.0)
    queue, (large, most, fewest, middle) = _queue([100] * 500, [40] * 3, [30], [20] * 3)
    order = [_served(_take(queue, 1000, exact)) for _ in range(4)]
    assert order == [[large], [fewest], [middle], [most]]


@pytest.mark.parametrize("small", [1, 12], ids=["fewer than its half", "more than its half"])
def test_a_large_request_has_half_of_the_tokens(small):
    """A stream of small ones next to it takes what it needs, and at most the other half."""
    queue, waiting = _queue([100] * 500)
    big, others, left = waiting[0], 0, 50_000
    while left:
        for _ in range(small):
            queue.add(_request([60]))
        batch = _take(queue, 1000)
        own = sum(100 * len(indices) for entry, indices in batch.parts if entry is big)
        left -= own
        others += int(batch.tokens().lengths.sum()) - own
        assert others <= 1.1 * (50_000 - left) + 1000
    if small == 1:
        assert len(queue) <= 2, "60 tokens a batch are less than half: they waited for one batch"
    else:
        assert others > 48_000


def test_a_forward_counts_in_addition_to_its_tokens():
    """100 + 600 tokens do not share a batch. A large one has as many tokens as small ones have, or,
    where a forward costs as much as 900 tokens, (1000 + 900) / (600 + 900) turns for one of theirs.
    """
    turns = {}
    for free_padding in (0, 900):
        queue, waiting = _queue([100] * 500, window_tokens=400_000)
        turns[free_padding] = -50  # the large one's
        left = 500
        while left:
            queue.add(_request([600]))
            batch = _take(queue, 1000, BatchRule(max_tokens=1000, free_padding=free_padding))
            left -= sum(len(indices) for entry, indices in batch.parts if entry is waiting[0])
            turns[free_padding] += 1
    assert turns[0] == pytest.approx(50 * 1000 / 600, abs=2)
    assert turns[900] == pytest.approx(50 * 1900 / 1500, abs=2)


def test_a_huge_request_does_not_hide_those_behind_it():
    """A request that would fill the whole window leaves room for a newcomer to be seen."""
    queue, waiting = _queue([10] * 5000, [10], window_tokens=1000)
    _take(queue, 100)
    assert waiting[1] in _served(_take(queue, 100))


# -- who is passed over ---------------------------------------------------------------------------


def test_a_request_passed_over_often_enough_goes_next():
    """Three batches served someone younger than the middle request; the fourth is its own."""
    queue, waiting = _queue([200] * 50, [50, 50], max_skipped=3)
    middle = waiting[1]
    served_at = None
    for batch in range(20):
        queue.add(_request([20], seed=batch))  # ever smaller, ever younger
        if middle in _served(_take(queue, 200)):
            served_at = batch
            break
    assert served_at is not None
    assert 3 <= served_at <= 6  # passed over three times, each next to one batch of the oldest


def test_all_older_than_the_youngest_served_were_passed_over():
    """A batch serves the oldest and the youngest of four: the two in between were passed over, and
    go by age, not by size.
    """
    queue, waiting = _queue([200, *[50] * 100], [100] * 4, [20], [190], max_skipped=1)
    oldest, second, smallest, youngest = waiting
    assert _served(_take(queue, 400)) == [oldest, youngest]
    assert _served(_take(queue, 400)) == [second], f"not {smallest}"


def test_a_request_served_starts_again_to_be_passed_over():
    """Passed over once and then served, it has no right of way over a smaller one."""
    queue, waiting = _queue([200, *[50] * 100], [100] * 8, [190], max_skipped=1)
    oldest, second, youngest = waiting
    assert _served(_take(queue, 400)) == [oldest, youngest]
    assert _served(_take(queue, 400)) == [second]  # by right of way; 400 tokens of it are left
    small = _request([20])
    queue.add(small)
    while oldest in _served(batch := _take(queue, 400)):
        pass
    assert _served(batch) == [small]


# -- one caller's pairs in parts ------------------------------------------------------------------


@untimed
@given(data=st.data(), window=st.integers(1, 2000))
def test_parts_of_one_caller_are_dealt_once_and_as_one(data, window):
    """Parts come between batches, beside those of others: each row once, one request counted."""
    queue, _ = _queue(window_tokens=window)
    sizes = st.lists(st.integers(1, 80), min_size=1, max_size=20)
    answers = [Answer(_request([]).ticket, 0) for _ in range(data.draw(st.integers(1, 3)))]
    came: dict[Answer, list[int]] = {answer: [] for answer in answers}
    left: dict[Answer, dict[int, int]] = {answer: {} for answer in answers}

    def deal(batch: Batch) -> None:
        assert len({part.answer for part, _ in batch.parts}) == len(batch.parts)
        lengths = iter(batch.tokens().lengths.tolist())
        for part, indices in batch.parts:
            for number in part.numbers[part.order[indices]].tolist():
                assert left[part.answer].pop(number) == next(lengths)

    for step in range(data.draw(st.integers(1, 30))):
        if data.draw(st.booleans()) or not queue:
            answer, lengths = data.draw(st.sampled_from(answers)), data.draw(sizes)
            numbers = np.arange(len(came[answer]), len(came[answer]) + len(lengths))
            came[answer] += lengths
            left[answer] |= dict(zip(numbers.tolist(), lengths, strict=True))
            queue.add(Request(answer, request(lengths, seed=step), numbers))
        else:
            deal(queue.take(RULE, data.draw(st.integers(1, 300)))[0])
        waits = [rows for rows in left.values() if rows]
        total = sum(sum(rows.values()) for rows in waits)
        assert queue.load == Load(len(waits), sum(map(len, waits)), total)
    while queue:
        deal(queue.take(RULE, 200)[0])
    assert not any(left.values())


def test_parts_keep_the_turn_of_their_first():
    """All of the first part was taken and another came meanwhile: the next part is still older."""
    queue, (first,) = _queue([50] * 4)
    batch = _take(queue, 200)
    assert _served(batch) == [first]
    first.answer.mark_started(0.0)
    younger = _request([50] * 4, seed=1)
    queue.add(younger)
    second = Request(first.answer, request([50] * 4, seed=2), np.arange(4, 8))
    queue.add(second)
    assert [_served(_take(queue, 200)) for _ in range(2)] == [[second], [younger]]


def test_a_caller_in_parts_does_not_hide_those_behind_it():
    """Its parts together fill a quarter of the window, as one large request does."""
    queue, (first, newcomer) = _queue([10] * 50, [10], window_tokens=1000)
    for part in range(1, 100):
        numbers = np.arange(50 * part, 50 * part + 50)
        queue.add(Request(first.answer, request([10] * 50, seed=part), numbers))
    _take(queue, 100)
    assert newcomer in _served(_take(queue, 100))
