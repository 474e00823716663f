"""Fault 17, too much work: who has no room is refused or waits its turn. See fault_table.py."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future, wait

import pytest

from rerank_adapters.errors import (
    ClosedError,
    OverloadedError,
    RerankError,
)
from tests.engine.traffic import PATIENCE, until
from tests.scorers.tapped import (
    QUERY,
    assert_serves,
    on,
    tapped,
    texts,
)


@on(17)
def test_17_overload_is_refused_at_once_with_a_hint(backend):
    """A queue of 50 pairs, 100 callers: who has room is served, the others know when to retry."""
    reranker, tap = tapped(backend, max_queue_pairs=50, when_full="error")
    reranker.score(QUERY, texts(3))  # so that there is a speed to estimate from
    outcomes: list[object] = []

    def caller(n: int) -> None:
        try:
            outcomes.append(reranker.submit(QUERY, texts(2, start=n)))
        except OverloadedError as error:
            outcomes.append(error)

    with tap.held():
        first = reranker.submit(QUERY, ["held"])
        assert tap.entered.wait(PATIENCE)
        threads = [threading.Thread(target=caller, args=(n,)) for n in range(100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)  # nobody was served meanwhile: each was answered at once
        assert len(outcomes) == 100
        accepted = [it for it in outcomes if isinstance(it, Future)]
        refused = [it for it in outcomes if isinstance(it, OverloadedError)]
        assert (len(accepted), len(refused)) == (25, 75)
        assert reranker.stats()["rejected"] == 75
    assert "it holds 50 pairs" in str(refused[0])
    assert "max_queue_pairs is 50" in str(refused[0])
    assert refused[0].retry_after > 0
    wait([first, *accepted], PATIENCE)
    assert all(len(future.result()) == 2 for future in accepted)
    assert_serves(reranker)
    reranker.close()


@on(17)
def test_17_overload_admits_one_request_larger_than_the_queue(backend):
    """When nothing waits, a request of 200 pairs is taken by a queue of 50; then it is full."""
    reranker, tap = tapped(backend, max_queue_pairs=50, when_full="error")
    with tap.held():
        first = reranker.submit(QUERY, ["held"])
        assert tap.entered.wait(PATIENCE)
        big = reranker.submit(QUERY, texts(200))
        with pytest.raises(OverloadedError):
            reranker.submit(QUERY, texts(1))
        with pytest.raises(OverloadedError):
            asyncio.run(reranker.ascore(QUERY, texts(1)))
    assert len(big.result(PATIENCE)) == 200
    assert first.done()
    assert_serves(reranker)
    reranker.close()


@on(17)
def test_17_overload_blocks_in_order_until_there_is_room(backend):
    """Blocked callers are let in first come, first served; none is lost, none is refused."""
    reranker, tap = tapped(backend, max_queue_pairs=1)
    lengths: list[int] = []
    tap.rule = lambda batch: lengths.extend(batch.lengths.tolist())
    futures: list[Future] = []

    def caller(words: int) -> None:
        futures.append(reranker.submit(QUERY, ["whale " * words]))

    with tap.held():
        caller(1)
        assert tap.entered.wait(PATIENCE)
        caller(2)  # fills the queue
        threads = [threading.Thread(target=caller, args=(words,)) for words in range(3, 11)]
        for number, thread in enumerate(threads):
            thread.start()
            until(lambda parked=number + 1: reranker.stats()["parked"] == parked)
        assert len(futures) == 2
        assert reranker.stats()["unfinished"] == 10
    for thread in threads:
        thread.join(PATIENCE)
    wait(futures, PATIENCE)
    assert all(len(future.result()) == 1 for future in futures)
    assert len(lengths) == 10
    assert lengths == sorted(lengths)
    assert reranker.stats()["rejected"] == 0
    reranker.close()


@on(17)
def test_17_overload_blocked_callers_can_time_out_and_be_closed(backend):
    """Who waits for room is let go by its timeout, and by close()."""
    reranker, tap = tapped(backend, max_queue_pairs=10)
    with tap.held():
        first = reranker.submit(QUERY, ["held"])
        assert tap.entered.wait(PATIENCE)
        full = reranker.submit(QUERY, texts(10))
        with pytest.raises(TimeoutError):
            reranker.score(QUERY, texts(5), timeout=0.01)
        outcome: list[BaseException] = []

        def blocked() -> None:
            try:
                reranker.score(QUERY, texts(5))
            except ClosedError as error:
                outcome.append(error)

        thread = threading.Thread(target=blocked)
        thread.start()
        until(lambda: reranker.stats()["unfinished"] == 3)
        closer = threading.Thread(target=reranker.close)
        closer.start()
        thread.join(PATIENCE)
        assert len(outcome) == 1
    closer.join(PATIENCE)
    for future in (first, full):
        with pytest.raises(ClosedError):
            future.result(PATIENCE)


@on(17)
def test_17_overload_in_a_callback_never_waits_for_itself(backend):
    """A Future's callback runs in the worker: there score() raises, a full queue refuses."""
    reranker, tap = tapped(backend, max_queue_pairs=1)
    outcomes: list[object] = []
    asked = threading.Event()

    def callback(_: Future) -> None:
        kept = [reranker.submit(QUERY, texts(1, start=8))]
        for call in (reranker.submit, reranker.score, reranker.rerank):
            try:
                outcomes.append(call(QUERY, texts(1, start=9)))
            except RerankError as error:
                outcomes.append(error)
        outcomes.extend(kept)
        asked.set()

    with tap.held():
        reranker.submit(QUERY, ["held"]).add_done_callback(callback)
        assert tap.entered.wait(PATIENCE)
    assert asked.wait(PATIENCE)
    refused, *waited, kept = outcomes
    assert isinstance(refused, OverloadedError)
    assert all("must not be called in a callback" in str(error) for error in waited)
    assert len(kept.result(PATIENCE)) == 1
    assert_serves(reranker)
    reranker.close()
