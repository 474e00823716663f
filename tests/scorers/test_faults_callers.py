"""Faults 10, 11, 13 and 16: callers that give up, a worker that dies, event loops.

The numbers are those of fault_table.py.
"""

from __future__ import annotations

import asyncio
import gc
from concurrent.futures import ThreadPoolExecutor, wait

import anyio.to_thread
import numpy as np
import pytest
import uvloop

from rerank_adapters import RerankerConfig, sharing
from rerank_adapters.engine.plan import Waiting
from rerank_adapters.engine.requests import Request
from rerank_adapters.errors import (
    ClosedError,
)
from rerank_adapters.sharing import acquire
from tests.engine.traffic import PATIENCE, rerank_threads, until
from tests.fakes import queued_pairs
from tests.scorers.tapped import (
    POISON,
    QUERY,
    TOLERANCE,
    assert_serves,
    checkpoint,
    on,
    poisoned,
    tapped,
    texts,
)

# -- 10, 11: callers that give up -----------------------------------------------------------------


@on(10)
async def test_10_cancel_stops_the_work_within_one_batch(backend):
    """An awaited call of 2000 documents, cancelled in its first batch, runs no further batch."""
    reranker, tap = tapped(backend)
    with tap.held():
        task = asyncio.create_task(reranker.ascore(QUERY, texts(2000)))
        assert await asyncio.to_thread(tap.entered.wait, PATIENCE)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert reranker.stats()["queue_pairs"] == 0
    assert np.isfinite(await reranker.ascore(QUERY, texts(3))).all()
    assert tap.sizes[1:] == [3]
    assert reranker.stats()["cancelled"] == 1
    reranker.close()


@on(10)
def test_10_cancel_leaves_nothing_behind(backend):
    """After a thousand cancelled requests no token of them is in memory."""
    reranker, tap = tapped(backend)
    with tap.held():
        first = reranker.submit(QUERY, ["held"])
        assert tap.entered.wait(PATIENCE)
        futures = [reranker.submit(QUERY, texts(2, start=n)) for n in range(1000)]
        assert reranker.stats()["queue_requests"] == 1000
        assert all(future.cancel() for future in futures)
        assert reranker.stats()["queue_requests"] == 0
        done, _ = wait(futures, PATIENCE)
        assert len(done) == 1000
    first.result(PATIENCE)
    assert tap.sizes == [1]
    assert_serves(reranker)
    reranker.close()
    gc.collect()
    assert not [it for it in gc.get_objects() if type(it) in (Request, Waiting)]


@on(11)
def test_11_timeout_drops_the_request(backend):
    """Who waits too long gets TimeoutError; the request leaves the queue and is never scored."""
    reranker, tap = tapped(backend)
    with tap.held():
        first = reranker.submit(QUERY, ["held"])
        assert tap.entered.wait(PATIENCE)
        patient = reranker.submit(QUERY, texts(4), timeout=PATIENCE)
        with pytest.raises(TimeoutError, match="no scores within the timeout"):
            reranker.score(QUERY, texts(300), timeout=0.01)
        with pytest.raises(TimeoutError):
            asyncio.run(reranker.ascore(QUERY, texts(300), timeout=0.01))
        assert reranker.stats()["queue_pairs"] == 4
    assert len(patient.result(PATIENCE)) == 4
    assert len(first.result(PATIENCE)) == 1
    assert tap.sizes == [1, 4]
    assert reranker.stats()["timed_out"] == 2
    assert_serves(reranker)
    reranker.close()


@on(11)
def test_11_timeout_ends_a_wait_for_the_running_batch_too(backend):
    """The caller is let go while its pairs are in the forward; their scores are thrown away."""
    reranker, tap = tapped(backend)
    with tap.held(), pytest.raises(TimeoutError):
        reranker.score(QUERY, texts(2), timeout=0.05)
    assert_serves(reranker)
    reranker.close()


# -- 13: a worker that dies -----------------------------------------------------------------------


class Death(BaseException):
    """Not an Exception: no handler of errors catches it."""


@on(13)
@pytest.mark.parametrize("error", [Death, SystemExit, KeyboardInterrupt])
def test_13_base_exception_wakes_every_waiter(backend, error):
    """A dead worker fails all requests with the cause, refuses the next, and leaves no thread."""
    reranker, tap = tapped(backend)
    tap.rule = poisoned(lambda: error("gone"))
    with tap.held():
        first = reranker.submit(QUERY, ["held"])
        assert tap.entered.wait(PATIENCE)
        futures = [reranker.submit(QUERY, [POISON])]
        futures += [reranker.submit(QUERY, texts(3, start=n)) for n in range(5)]
    for future in futures:
        with pytest.raises(ClosedError, match="the engine broke") as caught:
            future.result(PATIENCE)
        assert isinstance(caught.value.__cause__, error)
        assert "in logits" in caught.value.__cause__.__notes__[0]  # where it happened, as words
    assert first.done()
    with pytest.raises(ClosedError, match="the engine broke") as caught:
        reranker.score(QUERY, texts(1))
    assert isinstance(caught.value.__cause__, error)
    reranker.close()
    assert rerank_threads() == []
    assert all(frame() is None for frame in tap.frames)


@on(13)
def test_13_base_exception_is_got_over_by_loading_again(backend, monkeypatch):
    """As the error says: the next use of a lease on the broken model loads it anew."""
    if backend == "stub":
        pytest.skip("a stub has no configuration to share")
    config = RerankerConfig(model=str(checkpoint(backend)), backend=backend, device="cpu")
    lease, other = acquire(config), acquire(config)
    broken = lease.get()
    expected = broken.score(QUERY, texts(3))

    def die(self, batch):
        raise Death("gone")

    with monkeypatch.context() as broken_backend:
        broken_backend.setattr(_backend_class(backend), "logits", die)
        with pytest.raises(ClosedError, match="load the model again"):
            broken.score(QUERY, texts(3))
    assert broken.closed
    again = lease.get()
    assert again is not broken
    assert lease.get() is again  # a lease drops what broke, and keeps what it loaded
    assert other.get() is again
    lease.close()
    np.testing.assert_array_equal(again.score(QUERY, texts(3)), expected)
    other.close()
    sharing.close_all()
    until(lambda: [it for it in rerank_threads() if "worker" in it] == [])


def _backend_class(backend: str) -> type:
    if backend == "onnx":
        from rerank_adapters.backends.onnx import OnnxBackend

        return OnnxBackend
    from rerank_adapters.backends.torch import TorchBackend

    return TorchBackend


# -- 16: event loops ------------------------------------------------------------------------------


@on(16)
def test_16_loops_one_after_the_other(backend):
    """Three event loops in a row use one reranker; so does uvloop."""
    reranker, _ = tapped(backend)
    expected = reranker.score(QUERY, texts(3))
    runs = [asyncio.run] * 3 + [uvloop.run]
    for run in runs:
        scores = run(reranker.ascore(QUERY, texts(3)))
        np.testing.assert_allclose(scores, expected, atol=TOLERANCE[backend], rtol=0)
    reranker.close()


@on(16)
def test_16_loops_at_once_share_a_batch(backend):
    """Two loops in two threads, uvloop in one, queue behind one forward and share the next."""
    reranker, tap = tapped(backend)
    expected = reranker.score(QUERY, texts(3))

    async def many():
        return await asyncio.gather(*(reranker.ascore(QUERY, texts(3)) for _ in range(4)))

    with ThreadPoolExecutor(2) as pool:
        with tap.held():
            first = reranker.submit(QUERY, ["held"])
            assert tap.entered.wait(PATIENCE)
            tap.sizes.clear()
            loops = [pool.submit(asyncio.run, many()), pool.submit(uvloop.run, many())]
            until(lambda: queued_pairs(reranker) == 2 * 4 * 3)
        results = [scores for loop in loops for scores in loop.result(PATIENCE)]
    assert tap.sizes == [24]
    assert first.done()
    for scores in results:
        np.testing.assert_allclose(scores, expected, atol=TOLERANCE[backend], rtol=0)
    reranker.close()


@on(16)
def test_16_loops_closed_while_pending(backend, caplog):
    """A loop that ends with a request in flight cancels it; the forward's end disturbs nobody."""
    reranker, tap = tapped(backend)

    async def leave_behind():
        asyncio.create_task(reranker.ascore(QUERY, texts(3)))  # noqa: RUF006 - left behind, as said
        assert await asyncio.to_thread(tap.entered.wait, PATIENCE)

    with tap.held():
        asyncio.run(leave_behind())
    until(lambda: reranker.stats()["cancelled"] == 1)
    assert_serves(reranker)
    reranker.close()
    assert caplog.records == []  # "exception was never retrieved", "exception calling callback"


@on(16)
async def test_16_loops_of_anyio_call_from_its_worker_threads(backend):
    """The sync methods work in anyio's threads, as a trio program would call them."""
    reranker, _ = tapped(backend)
    scores = await anyio.to_thread.run_sync(reranker.score, QUERY, texts(3))
    expected = await reranker.ascore(QUERY, texts(3))
    np.testing.assert_allclose(scores, expected, atol=TOLERANCE[backend], rtol=0)
    reranker.close()
