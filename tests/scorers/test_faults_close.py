"""Fault 22, the end: a Reranker is closed in every state. See fault_table.py."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import pytest

from rerank_adapters.errors import (
    ClosedError,
)
from tests.engine.traffic import PATIENCE, rerank_threads, until
from tests.scorers.tapped import (
    QUERY,
    TOLERANCE,
    in_order,
    on,
    tapped,
    texts,
)


@on(22)
def test_22_close_while_queued_and_while_a_forward_runs(backend):
    """Both the request in the forward and the one behind it fail with ClosedError, at once."""
    reranker, tap = tapped(backend)
    with tap.held():
        first = reranker.submit(QUERY, ["held"])
        assert tap.entered.wait(PATIENCE)
        second = reranker.submit(QUERY, texts(3))
        closer = threading.Thread(target=reranker.close)
        closer.start()
        for future in (first, second):  # while the forward is still held
            with pytest.raises(ClosedError, match="the reranker is closed"):
                future.result(PATIENCE)
    closer.join(PATIENCE)
    assert tap.sizes == [1]
    assert rerank_threads() == []


@on(22)
def test_22_close_twice_from_many_threads_and_in_with(backend):
    """Closing is idempotent, from anywhere; a closed reranker says so everywhere."""
    reranker, _ = tapped(backend)
    with reranker:
        reranker.score(QUERY, texts(2))
        with ThreadPoolExecutor(8) as pool:
            wait([pool.submit(reranker.close) for _ in range(8)], PATIENCE)
    reranker.close()
    for call in (reranker.score, reranker.rerank, reranker.submit):
        with pytest.raises(ClosedError, match="closed"):
            call(QUERY, texts(1))
    with pytest.raises(ClosedError):
        asyncio.run(reranker.ascore(QUERY, texts(1)))
    with pytest.raises(ClosedError), reranker:
        pass
    until(lambda: rerank_threads() == [])


@on(22)
def test_22_close_before_use(backend):
    """A reranker that never scored closes without ever starting a thread."""
    reranker, _ = tapped(backend)
    reranker.close()
    assert rerank_threads() == []


@on(22)
def test_22_close_from_a_done_callback(backend):
    """A callback that runs in the worker may close the reranker the worker belongs to."""
    reranker, tap = tapped(backend)
    closed = threading.Event()
    with tap.held():
        future = reranker.submit(QUERY, texts(2))
        future.add_done_callback(lambda _: (reranker.close(), closed.set()))
    assert len(future.result(PATIENCE)) == 2
    assert closed.wait(PATIENCE)
    until(lambda: rerank_threads() == [])


@on(22)
def test_22_close_is_not_needed_for_garbage_collection(backend):
    """Dropped without close(), a reranker ends its threads and frees its backend."""
    reranker, tap = tapped(backend)
    reranker.score(QUERY, texts(2))
    freed = weakref.ref(tap)
    del reranker, tap
    gc.collect()
    until(lambda: rerank_threads() == [])
    until(lambda: gc.collect() >= 0 and freed() is None)


@on(22)
def test_22_close_by_collection_answers_what_was_submitted(backend):
    """A reranker dropped while its Futures are kept scores them: nobody closed it."""
    reranker, tap = tapped(backend)
    expected = reranker.score(QUERY, texts(3))
    with tap.held():
        first = reranker.submit(QUERY, ["held"])
        assert tap.entered.wait(PATIENCE)
        second = reranker.submit(QUERY, texts(3))
        del reranker
        gc.collect()
    np.testing.assert_allclose(
        in_order(second.result(PATIENCE)), expected, atol=TOLERANCE[backend], rtol=0
    )
    assert len(first.result(PATIENCE)) == 1
    until(lambda: rerank_threads() == [])


@on(22)
def test_22_close_ends_a_search_for_the_culprit(backend):
    """Closed while a failed batch is being halved, the engine runs no further half."""
    reranker, tap = tapped(backend)
    halving = threading.Event()

    def fail(batch):
        if len(tap.sizes) == 2:  # the first half of 16
            halving.set()
            assert closed.wait(PATIENCE)
        return ValueError("never")

    closed = threading.Event()
    tap.rule = fail
    future = reranker.submit(QUERY, texts(16))
    assert halving.wait(PATIENCE)
    closer = threading.Thread(target=reranker.close)
    closer.start()
    with pytest.raises(ClosedError):
        future.result(PATIENCE)
    closed.set()
    closer.join(PATIENCE)
    assert tap.sizes == [16, 8]
    assert rerank_threads() == []
