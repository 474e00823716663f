"""The end of an engine, over stub forwards: close in every state, collection, threads that die.

The numbers are those of tests/scorers/fault_table.py.
"""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest

from rerank_adapters import futures as preparing
from rerank_adapters.errors import ClosedError
from tests.engine.traffic import (
    PATIENCE,
    Held,
    Scheduler,
    checksum,
    request,
    rerank_threads,
    until,
)


def test_closed_is_closed():
    """submit, submit_call and score raise ClosedError at once, whether or not it ever ran."""
    for scheduler in (Scheduler([checksum]), Scheduler([checksum])):
        if scheduler.stats()["requests"] == 0:
            scheduler.submit(request([5])).result(PATIENCE)
        scheduler.close()
        for call in (
            lambda it=scheduler: it.submit(request([5])),
            lambda it=scheduler: it.submit_call(lambda: request([5])),
            lambda it=scheduler: it.score(lambda: request([5])),
        ):
            with pytest.raises(ClosedError, match="the reranker is closed"):
                call()


def test_22_close_by_collection_lets_pending_requests_finish():
    """A scheduler dropped with requests in flight finishes them, then ends."""
    ended = threading.Event()
    held = Held()
    scheduler = Scheduler([held], on_close=ended.set)
    first = scheduler.submit(request([5]))
    assert held.entered.wait(PATIENCE)
    others = [scheduler.submit(request([5], seed=n)) for n in range(5)]
    others.append(scheduler.submit_call(lambda: request([6])))
    del scheduler
    gc.collect()
    assert not ended.is_set()
    held.release.set()
    for future in [first, *others]:
        assert future.result(PATIENCE).shape == (1,)
    assert ended.wait(PATIENCE)
    until(lambda: rerank_threads() == [])


def test_22_close_while_a_request_is_tokenised(monkeypatch):
    """Who is being tokenised, and who waits for it, fail at once; nothing reaches the forward."""
    entered, release = threading.Event(), threading.Event()
    held = Held()

    def encode():
        entered.set()
        assert release.wait(PATIENCE)
        return request([5])

    monkeypatch.setattr(preparing, "PREPARING_THREADS", 1)
    scheduler = Scheduler([held])
    futures = [scheduler.submit_call(encode), scheduler.submit_call(encode)]
    assert entered.wait(PATIENCE)
    closer = threading.Thread(target=scheduler.close)
    closer.start()
    for future in futures:  # while `encode` is still held
        with pytest.raises(ClosedError, match="the reranker is closed"):
            future.result(PATIENCE)
    release.set()
    closer.join(PATIENCE)
    assert held.sizes == []
    until(lambda: rerank_threads() == [])  # the preparing thread ends when it is idle


def test_22_close_without_waiting_is_for_finalizers():
    """wait=False returns while the forward is held, takes no more, and what waits is answered."""
    ended = threading.Event()
    held = Held()
    scheduler = Scheduler([held], on_close=ended.set)
    first = scheduler.submit(request([5]))
    assert held.entered.wait(PATIENCE)
    second = scheduler.submit(request([5]))
    scheduler.close(wait=False)
    assert not first.done()
    assert scheduler.closed
    for call in (scheduler.submit, lambda it: scheduler.submit_call(lambda: it)):
        with pytest.raises(ClosedError, match="the reranker is closed"):
            call(request([5]))
    held.release.set()
    np.testing.assert_array_equal(second.result(PATIENCE), checksum(request([5])))
    assert first.done()
    assert ended.wait(PATIENCE)


@pytest.mark.parametrize("calls", [0, 1])
def test_22_close_frees_the_forwards_once(calls):
    """`on_close` runs once, after the last thread, whether or not there ever was one."""
    ended = []
    scheduler = Scheduler([checksum], on_close=lambda: ended.append(rerank_threads()))
    for _ in range(calls):
        scheduler.submit(request([5])).result(PATIENCE)
    scheduler.close()
    scheduler.close()
    assert len(ended) == 1
    assert len(ended[0]) <= 1  # the last thread itself may be the one that calls


class Death(BaseException):
    """Not an Exception: no handler of errors catches it."""


def test_13_base_exception_fails_those_in_line_too():
    """A dead worker fails what runs, waits and is parked, and what is being prepared."""
    entered, release = threading.Event(), threading.Event()

    def forward(batch):
        entered.set()
        assert release.wait(PATIENCE)
        raise Death("gone")

    scheduler = Scheduler([forward], max_queue_pairs=1)
    running = [scheduler.submit(request([5]))]
    assert entered.wait(PATIENCE)
    running.append(scheduler.submit(request([5])))
    running.append(scheduler.submit_call(lambda: request([5])))
    until(lambda: scheduler.stats()["parked"] == 1)
    reserved = scheduler.admission.reserve(1, None)
    release.set()
    for future in (*running, reserved):
        with pytest.raises(ClosedError, match="the engine broke, Death") as caught:
            future.result(PATIENCE)
        assert isinstance(caught.value.__cause__, Death)
    with pytest.raises(ClosedError, match="the engine broke, Death"):
        scheduler.submit(request([5]))
    assert scheduler.admission.submit(request([5]), ticket=reserved) is reserved
    until(lambda: rerank_threads() == [])
    scheduler.close()
