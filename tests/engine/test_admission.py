"""Several admissions of one engine: limits, lines and ends of their own, batches in common."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import Future, wait

import numpy as np
import pytest

from rerank_adapters.engine.admission import Admission, Limits
from rerank_adapters.engine.batching import BatchRule
from rerank_adapters.engine.engine import Engine
from rerank_adapters.errors import BackendError, ClosedError, OverloadedError
from tests.engine.traffic import PATIENCE, Held, checksum, request, rerank_threads, until


def _engine(*forwards, max_tokens: int = 16_384, **options) -> Engine:
    rule = BatchRule(max_tokens=max_tokens)
    return Engine([(forward, rule) for forward in forwards], **options)


def _submit(admission: Admission, encoded) -> Future:
    return admission.submit(encoded, ticket=admission.reserve(len(encoded), None))


# -- limits and batches ---------------------------------------------------------------------------


def test_limits_count_what_waits_of_their_own_admission():
    """One door is full with 4 pairs while another takes 50, and knows nothing of theirs."""
    held = Held()
    engine = _engine(held)
    small = Admission(engine, limits=Limits(pairs=4, block=False))
    large = Admission(engine, ends_engine=False)
    first = _submit(large, request([9]))
    assert held.entered.wait(PATIENCE)
    futures = [_submit(large, request([9] * 50)), _submit(small, request([9] * 4))]
    with pytest.raises(OverloadedError, match="it holds 4 pairs of 36 tokens, the request brings"):
        _submit(small, request([9]))
    futures.append(_submit(large, request([9] * 50)))
    assert small.stats()["queue_pairs"] == 4
    assert large.stats()["queue_pairs"] == 100
    assert [small.stats()["rejected"], large.stats()["rejected"]] == [1, 0]
    held.release.set()
    wait([first, *futures], PATIENCE)
    assert [small.stats()["done"], large.stats()["done"]] == [1, 3]
    small.close()
    assert held.sizes == [1, 104]  # they shared the batch


def test_a_batch_that_takes_from_one_makes_room_in_its_line():
    """A caller in line is let in when its own admission's pairs are taken."""
    held = Held()
    engine = _engine(held)
    door, other = Admission(engine, limits=Limits(pairs=1)), Admission(engine)
    first = _submit(other, request([9]))
    assert held.entered.wait(PATIENCE)
    futures = [_submit(door, request([9]))]
    caller = threading.Thread(target=lambda: futures.append(_submit(door, request([9]))))
    caller.start()
    until(lambda: door.stats()["parked"] == 1)
    futures.append(_submit(other, request([9])))  # unlimited: does not wait
    held.release.set()
    caller.join(PATIENCE)
    wait([first, *futures], PATIENCE)
    engine.close()
    assert sum(held.sizes) == 4


def test_max_batch_tokens_caps_batches_with_rows_of_the_admission():
    """No batch with rows of the capped admission is larger than its cap; others' alone are full."""
    held = Held()
    engine = _engine(held, max_tokens=400)
    capped = Admission(engine, max_batch_tokens=100, ends_engine=False)
    free = Admission(engine)
    first = _submit(free, request([10]))
    assert held.entered.wait(PATIENCE)
    encoded = [request([10] * 100, seed=1), request([10] * 20, seed=2)]
    futures = [_submit(free, encoded[0]), _submit(capped, encoded[1])]
    held.release.set()
    for future, tokens in zip(futures, encoded, strict=True):
        np.testing.assert_array_equal(future.result(PATIENCE), checksum(tokens))
    assert first.done()
    own = {row.tobytes() for row in _rows(encoded[1])}
    with_own = [len(it) for it in held.batches if own & {row.tobytes() for row in _rows(it)}]
    assert sum(len(it) for it in held.batches) == 121
    assert max(with_own) <= 10
    assert max(held.sizes) == 40
    assert capped.stats()["max_batch_tokens"] == 100
    assert free.stats()["max_batch_tokens"] == 400
    engine.close()


def _rows(batch) -> list[np.ndarray]:
    return np.split(batch.input_ids, batch.offsets[1:-1])


def test_each_worker_keeps_its_own_rule():
    """A worker of 50 tokens and one of 200 serve one queue: each is given what suits it."""
    meeting = threading.Barrier(2)
    sizes: dict[str, list[int]] = {"small": [], "large": []}

    def forward(name):
        def run(batch):
            if not sizes[name]:
                meeting.wait(PATIENCE)  # so that both take part
            sizes[name].append(len(batch))
            return checksum(batch)

        return run

    rules = {"small": BatchRule(max_tokens=50), "large": BatchRule(max_tokens=200)}
    engine = Engine([(forward(name), rule) for name, rule in rules.items()])
    admission = Admission(engine)
    encoded = request([10] * 500)
    np.testing.assert_array_equal(_submit(admission, encoded).result(PATIENCE), checksum(encoded))
    admission.close()
    assert max(sizes["small"]) == 5
    assert max(sizes["large"]) == 20
    assert sum(map(sum, sizes.values())) == 500


def test_a_larger_budget_may_be_allowed_later():
    """allow() raises budgets and what they decide, and lowers none."""
    held = Held()
    engine = Engine([(held, BatchRule(max_tokens=50, free_padding=50))])
    admission = Admission(engine)
    first = _submit(admission, request([10]))
    assert held.entered.wait(PATIENCE)
    engine.allow(20)
    assert admission.stats()["max_batch_tokens"] == 50
    engine.allow(100)
    second = _submit(admission, request([20, *[10] * 8]))
    held.release.set()
    wait([first, second], PATIENCE)
    admission.close()
    assert held.sizes == [1, 5, 4]  # 20 × 5 padded tokens: padding stayed free


# -- requests in parts ----------------------------------------------------------------------------


def test_a_request_in_parts_counts_by_the_most_it_may_have_until_it_is_here():
    """Ten pairs of at most 50 tokens are 500 of 600; by their tokens, 100, another has room too."""
    held = Held()
    engine = _engine(held)
    door, other = Admission(engine, limits=Limits(tokens=600)), Admission(engine, ends_engine=False)
    first = _submit(other, request([9]))
    assert held.entered.wait(PATIENCE)
    ticket = door.reserve(10, None)
    answer = door.open(ticket, pairs=10, most_tokens=50)
    assert door.used(ticket)
    assert door.stats()["queue_tokens"] == 0
    later = threading.Thread(target=_submit, args=(door, request([30] * 10, seed=1)))
    later.start()
    until(lambda: door.stats()["parked"] == 1)
    numbers = np.random.default_rng(0).permutation(10)
    encoded = request(range(1, 11))
    door.add(answer, encoded.take(numbers[:4]), numbers[:4])
    assert door.stats()["parked"] == 1  # 6 pairs are still to come, of 300 tokens at the most
    door.add(answer, encoded.take(numbers[4:]), numbers[4:], tokenise_seconds=2.0)
    until(lambda: door.stats()["parked"] == 0)
    assert door.stats()["queue_tokens"] == 55 + 300
    assert [door.stats()["requests"], door.stats()["queue_requests"]] == [2, 2]
    held.release.set()
    np.testing.assert_array_equal(ticket.result(PATIENCE), checksum(encoded))
    later.join(PATIENCE)
    first.result(PATIENCE)
    assert door.stats()["tokenise_seconds"] == 2.0
    door.close()


def test_a_request_in_parts_needs_room_at_once():
    """Where others wait or it does not fit nothing changes: the ticket is to be submitted whole."""
    held = Held()
    engine = _engine(held)
    door = Admission(engine, limits=Limits(pairs=10, block=False))
    first = _submit(door, request([9]))
    assert held.entered.wait(PATIENCE)
    futures = [_submit(door, request([9] * 6))]
    ticket = door.reserve(4, None)
    assert door.open(ticket, pairs=5, most_tokens=9) is None
    with pytest.raises(OverloadedError):
        door.reserve(1, None)  # its own four are kept
    assert door.open(ticket, pairs=4, most_tokens=9) is not None
    assert door.open(ticket, pairs=4, most_tokens=9) is None
    with pytest.raises(OverloadedError, match="it holds 10 pairs of 90 tokens"):
        door.reserve(1, None)
    ticket.cancel()
    futures.append(_submit(door, request([9] * 4)))
    held.release.set()
    wait([first, *futures], PATIENCE)
    assert [door.stats()["done"], door.stats()["cancelled"]] == [3, 1]
    door.close()


def test_parts_after_the_end_of_their_request_are_dropped():
    """What comes after it was cancelled is not queued; what came before leaves the queue."""
    held = Held()
    engine = _engine(held)
    door = Admission(engine, limits=Limits(pairs=100))
    first = _submit(door, request([9]))
    assert held.entered.wait(PATIENCE)
    ticket = door.reserve(6, None)
    answer = door.open(ticket, pairs=6, most_tokens=9)
    door.add(answer, request([9] * 3), np.arange(3))
    assert door.stats()["queue_pairs"] == 3
    ticket.cancel()
    door.add(answer, request([9] * 3), np.arange(3, 6))
    assert [door.stats()["queue_pairs"], door.stats()["unfinished"]] == [0, 1]
    held.release.set()
    first.result(PATIENCE)
    door.close()
    assert held.sizes == [1]


def test_a_pair_at_fault_is_named_as_its_caller_counts():
    """The second part's first row is the caller's pair 1."""

    def fail(batch):
        raise ValueError("no")

    door = Admission(_engine(fail))
    ticket = door.reserve(3, None)
    answer = door.open(ticket, pairs=3, most_tokens=9)
    door.add(answer, request([7]), np.array([1]))
    with pytest.raises(BackendError, match="the forward pass of pair 1 failed"):
        ticket.result(PATIENCE)
    door.close()


# -- tickets --------------------------------------------------------------------------------------


def test_a_ticket_is_good_for_one_request():
    """A second use raises, before its end as after it, and harms neither."""
    engine = _engine(checksum)
    with pytest.raises(RuntimeError, match="good for one request"):
        _twice(admission := Admission(engine), wait_first=False)
    with pytest.raises(RuntimeError, match="good for one request"):
        _twice(admission, wait_first=True)
    assert admission.stats()["failed"] == admission.stats()["cancelled"] == 0
    admission.close()


def _twice(admission: Admission, *, wait_first: bool) -> None:
    encoded = request([5])
    ticket = admission.reserve(1, None)
    assert not admission.used(ticket)
    assert admission.submit(encoded, ticket=ticket) is ticket
    assert admission.used(ticket)
    if wait_first:
        ticket.result(PATIENCE)
    try:
        admission.submit(request([7]), ticket=ticket)
    finally:
        np.testing.assert_array_equal(ticket.result(PATIENCE), checksum(encoded))


def test_a_ticket_of_another_admission_is_refused():
    """It counts as used, so that who has it reserves one of its own."""
    engine = _engine(checksum)
    here, there = Admission(engine), Admission(engine, ends_engine=False)
    ticket = there.reserve(1, None)
    for foreign in (ticket, Future()):
        assert here.used(foreign)
        with pytest.raises(RuntimeError, match="a ticket of this admission is needed"):
            here.submit(request([5]), ticket=foreign)
    assert there.submit(request([5]), ticket=ticket).result(PATIENCE).shape == (1,)
    here.close()


def test_a_ticket_that_ended_before_is_given_back():
    """Cancelled while its texts were tokenised, it is returned as it is; nothing is computed."""
    held = Held()
    admission = Admission(_engine(held))
    ticket = admission.reserve(3, None)
    assert admission.stats()["preparing"] == 1
    assert ticket.cancel()
    assert admission.used(ticket)
    assert admission.submit(request([5] * 3), ticket=ticket) is ticket
    stats = admission.stats()
    assert (stats["preparing"], stats["unfinished"], stats["cancelled"]) == (0, 0, 1)
    admission.close()
    assert held.sizes == []


def test_a_result_that_is_kept_keeps_no_admission():
    """The Future of a finished request knows neither its admission nor the engine's forwards."""
    admission = Admission(_engine(checksum))
    future = _submit(admission, request([5]))
    future.result(PATIENCE)
    known = weakref.ref(admission)
    admission.close()
    del admission
    gc.collect()
    assert known() is None
    assert future.done()


# -- the end --------------------------------------------------------------------------------------


def test_one_admission_closes_while_requests_of_both_are_in_flight():
    """Its own fail at once, running or waiting; the other's are answered, and more are taken."""
    held = Held()
    engine = _engine(held)
    ended = []
    going = Admission(engine, ends_engine=False, on_close=lambda: ended.append(True))
    staying = Admission(engine)
    running = [_submit(staying, request([9]))]
    assert held.entered.wait(PATIENCE)
    running.append(_submit(going, request([9])))
    held.release.set()
    running[1].result(PATIENCE)
    held.batches.clear()  # holds the next forward again
    held.entered.clear()
    held.release.clear()
    own = [_submit(going, request([9], seed=1))]
    assert held.entered.wait(PATIENCE)
    own += [_submit(going, request([9])), going.reserve(5, None)]
    theirs = [_submit(staying, request([9], seed=n)) for n in range(3)]
    going.close()
    for future in own:
        with pytest.raises(ClosedError, match="the reranker is closed"):
            future.result(PATIENCE)
    assert going.closed
    assert not staying.closed
    assert ended == [True]
    with pytest.raises(ClosedError, match="the reranker is closed"):
        going.reserve(1, None)
    assert staying.stats()["queue_pairs"] == 3
    assert going.stats()["unfinished"] == 0
    held.release.set()
    for n, future in enumerate(theirs):
        np.testing.assert_array_equal(future.result(PATIENCE), checksum(request([9], seed=n)))
    assert held.sizes == [1, 3]
    going.close()
    assert ended == [True]
    staying.close()
    assert engine.closed


def test_an_admission_closed_without_waiting_finishes_what_it_has():
    """wait=False takes no more; on_close comes after the last request, even one still reserved."""
    held = Held()
    engine = _engine(held)
    ended = threading.Event()
    going = Admission(engine, ends_engine=False, on_close=ended.set)
    first = _submit(going, request([9]))
    assert held.entered.wait(PATIENCE)
    second, third = _submit(going, request([9])), going.reserve(1, None)
    going.close(wait=False)
    with pytest.raises(ClosedError):
        going.reserve(1, None)
    held.release.set()
    wait([first, second], PATIENCE)
    assert not ended.is_set()
    assert going.submit(request([9]), ticket=third).result(PATIENCE).shape == (1,)
    assert ended.wait(PATIENCE)
    assert not engine.closed
    engine.close()


@pytest.mark.parametrize("ends_engine", [True, False])
@pytest.mark.parametrize("waits", [True, False])
def test_an_idle_admission_is_closed_at_once(ends_engine, waits):
    """Its on_close is called once, and the engine ends with it if it is to."""
    ended = []
    engine = _engine(checksum, on_close=lambda: ended.append("engine"))
    admission = Admission(
        engine, ends_engine=ends_engine, on_close=lambda: ended.append("admission")
    )
    _submit(admission, request([9])).result(PATIENCE)
    for _ in range(2):
        admission.close(wait=waits)
    until(lambda: admission.stats()["unfinished"] == 0 and len(ended) == 1 + ends_engine)
    engine.close()
    assert sorted(ended) == ["admission", "engine"]


def test_the_admission_that_ends_the_engine_ends_it_for_all():
    """The others' requests fail too, and they take no more."""
    held = Held()
    engine = _engine(held)
    ending, other = Admission(engine), Admission(engine, ends_engine=False)
    future = _submit(other, request([9]))
    assert held.entered.wait(PATIENCE)
    closer = threading.Thread(target=ending.close)
    closer.start()
    with pytest.raises(ClosedError, match="the reranker is closed"):
        future.result(PATIENCE)
    assert other.closed
    with pytest.raises(ClosedError, match="the reranker is closed"):
        other.reserve(1, None)
    held.release.set()
    closer.join(PATIENCE)
    assert rerank_threads() == []


def test_a_broken_engine_refuses_every_admission_with_the_cause():
    """A worker that died of one admission's batch is everybody's end."""

    def die(_):
        raise SystemExit("gone")

    engine = _engine(die)
    one, other = Admission(engine), Admission(engine, ends_engine=False)
    with pytest.raises(ClosedError, match="the engine broke"):
        _submit(one, request([9])).result(PATIENCE)
    for admission in (one, other):
        with pytest.raises(ClosedError, match="the engine broke") as caught:
            admission.reserve(1, None)
        assert isinstance(caught.value.__cause__, SystemExit)
        assert admission.closed
    until(lambda: rerank_threads() == [])
