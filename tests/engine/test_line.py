"""A full queue, over stub forwards: who is refused, who waits in line, and in which order.

The numbers are those of tests/scorers/fault_table.py.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future, wait
from time import monotonic

import numpy as np
import pytest

from rerank_adapters import futures as preparing
from rerank_adapters.engine.line import Limits, Line
from rerank_adapters.errors import ClosedError, OverloadedError
from tests.engine.traffic import PATIENCE, Held, Scheduler, checksum, request, until


class Turns:
    """A forward that notes the length of each pair, and goes on when `turns` is released."""

    def __init__(self) -> None:
        self.turns = threading.Semaphore(0)
        self.order: list[int] = []

    def __call__(self, batch):
        self.order.extend(batch.lengths.tolist())
        assert self.turns.acquire(timeout=PATIENCE)
        return checksum(batch)


@pytest.fixture
def one_thread(monkeypatch) -> None:
    """Async calls are prepared by a single thread."""
    monkeypatch.setattr(preparing, "PREPARING_THREADS", 1)


def _stats(scheduler: Scheduler, *names: str) -> tuple[int, ...]:
    stats = scheduler.stats()
    return tuple(stats[name] for name in names)


# -- parked requests ------------------------------------------------------------------------------


def test_17_overload_parks_async_requests_and_no_thread(one_thread):
    """Three async calls over a full queue are all prepared by the one thread, which blocks for none
    of them; a sync call after them waits behind them.
    """
    forward = Turns()
    with Scheduler([forward], max_queue_pairs=1) as scheduler:
        futures = [scheduler.submit(request([1]))]
        until(lambda: forward.order == [1])
        futures.append(scheduler.submit(request([2])))  # fills the queue
        futures += [scheduler.submit_call(lambda n=n: request([n])) for n in (3, 4, 5)]
        until(lambda: _stats(scheduler, "parked", "preparing") == (3, 0))
        sync = threading.Thread(target=lambda: futures.append(scheduler.submit(request([6]))))
        sync.start()
        until(lambda: _stats(scheduler, "parked") == (4,))
        assert preparing.prepare(lambda: preparing.done(7), ticket=None).result(PATIENCE) == 7
        for _ in range(6):
            forward.turns.release()
        sync.join(PATIENCE)
        wait(futures, PATIENCE)
    assert forward.order == [1, 2, 3, 4, 5, 6]


def test_17_overload_lets_callers_in_by_when_they_asked(one_thread):
    """An async call that waited to be tokenised goes before a sync one that asked after it."""
    forward, tokenised = Turns(), threading.Event()

    def encode():
        assert tokenised.wait(PATIENCE)
        return request([3])

    with Scheduler([forward], max_queue_pairs=1) as scheduler:
        futures = [scheduler.submit(request([1]))]
        until(lambda: forward.order == [1])
        futures.append(scheduler.submit(request([2])))  # fills the queue
        futures += [scheduler.submit_call(encode), scheduler.submit_call(lambda: request([4]))]
        sync = threading.Thread(target=lambda: futures.append(scheduler.submit(request([5]))))
        sync.start()
        until(lambda: _stats(scheduler, "parked", "preparing") == (1, 2))
        tokenised.set()
        until(lambda: _stats(scheduler, "parked", "preparing") == (3, 0))
        for _ in range(5):
            forward.turns.release()
        sync.join(PATIENCE)
        wait(futures, PATIENCE)
    assert forward.order == [1, 2, 3, 4, 5]


def test_17_overload_ends_when_a_batch_is_taken(one_thread):
    """The next in line is let in while the batch runs that made room, not when it ends."""
    forward = Turns()
    with Scheduler([forward], max_queue_pairs=1) as scheduler:
        futures = [scheduler.submit(request([1]))]
        until(lambda: forward.order == [1])
        futures.append(scheduler.submit(request([2])))
        futures.append(scheduler.submit_call(lambda: request([3])))
        until(lambda: _stats(scheduler, "parked") == (1,))
        forward.turns.release()
        until(lambda: forward.order == [1, 2])
        assert _stats(scheduler, "parked", "queue_pairs") == (0, 1)
        forward.turns.release(2)
        wait(futures, PATIENCE)


@pytest.mark.parametrize("end", ["cancelled", "timed out"])
def test_17_overload_in_line_may_give_up(end, one_thread):
    """What gives up in line leaves it, and the next has its turn; its tokens are never computed."""
    forward = Turns()
    with Scheduler([forward], max_queue_pairs=1) as scheduler:
        futures = [scheduler.submit(request([1]))]
        until(lambda: forward.order == [1])
        futures.append(scheduler.submit(request([2])))
        timeout = 0.01 if end == "timed out" else None
        given_up = scheduler.submit_call(lambda: request([3]), timeout=timeout)
        futures.append(scheduler.submit_call(lambda: request([4])))
        if end == "cancelled":
            until(lambda: _stats(scheduler, "parked") == (2,))
            assert given_up.cancel()
        else:
            with pytest.raises(TimeoutError, match="no scores within the timeout"):
                given_up.result(PATIENCE)
        until(lambda: _stats(scheduler, "parked", "preparing") == (1, 0))
        for _ in range(3):
            forward.turns.release()
        wait(futures, PATIENCE)
    assert forward.order == [1, 2, 4]


def test_17_overload_a_blocked_caller_is_let_go_by_its_ticket():
    """Cancelled, late or closed meanwhile, a sync caller in line gets its ticket back."""
    held = Held()
    with Scheduler([held], max_queue_pairs=1) as scheduler:
        first = scheduler.submit(request([1]))
        assert held.entered.wait(PATIENCE)
        second = scheduler.submit(request([2]))
        admission = scheduler.admission
        tickets = [admission.reserve(1, None), admission.reserve(1, monotonic() + 0.05)]
        callers = [
            threading.Thread(target=lambda it=it: admission.submit(request([3]), ticket=it))
            for it in tickets
        ]
        for caller in callers:
            caller.start()
        callers[1].join(PATIENCE)
        assert isinstance(tickets[1].exception(PATIENCE), TimeoutError)
        until(lambda: _stats(scheduler, "parked") == (1,))
        assert tickets[0].cancel()
        callers[0].join(PATIENCE)
        assert not any(caller.is_alive() for caller in callers)
        held.release.set()
        wait([first, second], PATIENCE)
    assert held.sizes == [1, 1]


# -- refused requests -----------------------------------------------------------------------------


def test_17_overload_counts_what_is_not_tokenised_yet(monkeypatch):
    """A burst of async calls fills an idle queue before any of them is tokenised, and who was let
    in stays in: a sync call of the meantime does not take its room, a cancelled one gives it back.
    """
    release = threading.Event()
    ran = []

    def encode():
        ran.append(True)
        assert release.wait(PATIENCE)
        return request([5] * 20)

    monkeypatch.setattr(preparing, "PREPARING_THREADS", 1)
    with Scheduler([checksum], max_queue_pairs=60, block=False) as scheduler:
        accepted = [scheduler.submit_call(encode, pairs=20) for _ in range(3)]
        for _ in range(3):
            with pytest.raises(OverloadedError):
                scheduler.submit_call(encode, pairs=20)
            with pytest.raises(OverloadedError):
                scheduler.submit(request([5] * 20))
        assert len(ran) <= 1
        assert accepted.pop().cancel()
        accepted.append(scheduler.submit_call(encode, pairs=20))
        release.set()
        assert [future.result(PATIENCE).shape for future in accepted] == [(20,)] * 3
        assert scheduler.stats()["queue_pairs"] == 0


def test_17_overload_of_tokens_is_known_after_tokenising():
    """What turns out too long is refused in the preparing thread; its caller gets the error, and
    the ticket gives up its room.
    """
    held = Held()
    with Scheduler([held], max_queue_tokens=10, block=False) as scheduler:
        first = scheduler.submit(request([1]))
        assert held.entered.wait(PATIENCE)
        kept = scheduler.submit_call(lambda: request([6]), pairs=1)
        until(lambda: _stats(scheduler, "queue_tokens") == (6,))
        with pytest.raises(OverloadedError, match="max_queue_tokens 10"):
            scheduler.submit_call(lambda: request([6]), pairs=1).result(PATIENCE)
        assert _stats(scheduler, "rejected", "failed", "cancelled", "unfinished") == (1, 0, 0, 2)
        small = scheduler.submit_call(lambda: request([4]), pairs=1)
        held.release.set()
        wait([first, kept, small], PATIENCE)
    assert sum(held.sizes) == 3


def test_17_overload_counts_each_pair_once():
    """Reserved pairs are counted by the reservation until they are submitted, then by the queue,
    fewer if fewer came.
    """
    held = Held()
    with Scheduler([held], max_queue_pairs=10, block=False) as scheduler:
        first = scheduler.submit(request([1]))
        assert held.entered.wait(PATIENCE)
        ticket = scheduler.admission.reserve(8, None)
        with pytest.raises(OverloadedError):
            scheduler.admission.reserve(3, None)
        scheduler.admission.submit(request([1] * 5), ticket=ticket)  # three of them were the same
        rest = scheduler.submit(request([1] * 5))
        with pytest.raises(OverloadedError):
            scheduler.admission.reserve(1, None)
        held.release.set()
        wait([first, ticket, rest], PATIENCE)
    assert held.sizes == [1, 10]


def test_17_overload_in_a_worker_never_waits_for_itself():
    """A callback runs in the worker: what fits is taken there, what does not is refused."""
    held = Held()
    outcomes: list[object] = []
    asked = threading.Event()

    def callback(_: Future) -> None:
        for _ in range(2):
            try:
                outcomes.append(scheduler.submit(request([2])))
            except OverloadedError as error:
                outcomes.append(error)
        asked.set()

    with Scheduler([held], max_queue_pairs=1) as scheduler:
        scheduler.submit(request([1])).add_done_callback(callback)
        assert held.entered.wait(PATIENCE)
        held.release.set()
        assert asked.wait(PATIENCE)
        kept, refused = outcomes
        np.testing.assert_array_equal(kept.result(PATIENCE), checksum(request([2])))
    assert isinstance(refused, OverloadedError)


def test_17_overload_closed_lets_go_of_the_line(one_thread):
    """close() fails what is parked and wakes who waits in line."""
    held = Held()
    scheduler = Scheduler([held], max_queue_pairs=1)
    futures = [scheduler.submit(request([1]))]
    assert held.entered.wait(PATIENCE)
    futures.append(scheduler.submit(request([2])))
    futures.append(scheduler.submit_call(lambda: request([3])))
    until(lambda: _stats(scheduler, "parked") == (1,))
    errors: list[BaseException] = []

    def blocked() -> None:
        try:
            scheduler.score(lambda: request([4]))
        except ClosedError as error:
            errors.append(error)

    caller = threading.Thread(target=blocked)
    caller.start()
    until(lambda: _stats(scheduler, "parked") == (2,))
    closer = threading.Thread(target=scheduler.close)
    closer.start()
    caller.join(PATIENCE)
    for future in futures:
        with pytest.raises(ClosedError, match="the reranker is closed"):
            future.result(PATIENCE)
    assert len(errors) == 1
    held.release.set()
    closer.join(PATIENCE)
    assert held.sizes == [1]


def test_a_limit_is_what_the_queue_may_hold():
    """5 pairs and 10 tokens are full with 5 and 10, not before; where nothing waits, all fits."""
    line = Line(threading.RLock(), Limits(pairs=5, tokens=10), lambda request, load: None)
    assert line.fits(500, 1000)
    line.load.pairs, line.load.tokens = 2, 4
    assert line.fits(3, 6)
    assert not line.fits(4, 6)
    assert not line.fits(3, 7)
