"""Forwards that fail, over stubs: each failure stays with the request that met it.

The numbers are those of tests/scorers/fault_table.py, where the same happens on real backends.
"""

from __future__ import annotations

import gc
from concurrent.futures import CancelledError, Future, wait

import numpy as np
import pytest

from rerank_adapters.engine import requests
from rerank_adapters.engine.requests import Request
from rerank_adapters.engine.worker import looks_out_of_memory
from rerank_adapters.errors import BackendError
from tests.engine.traffic import PATIENCE, Held, Scheduler, checksum, request

# -- out of memory --------------------------------------------------------------------------------

TORCH_CPU = "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"
ONNX = "RUNTIME_EXCEPTION : Failed to allocate memory for requested buffer of size 1073741824"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError(TORCH_CPU), True),
        (RuntimeError(ONNX), True),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (type("OutOfMemoryError", (RuntimeError,), {})("anything"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (ValueError("memory"), False),
    ],
)
def test_out_of_memory_is_distinguished_from_other_errors(error, expected):
    """MemoryError, torch's class by name, and the runtimes' wording; nothing else."""
    assert looks_out_of_memory(error) is expected


def test_03_oom_while_a_batch_is_put_together(monkeypatch):
    """Memory that runs out before the forward halves the batch like any other, and kills nobody."""
    whole = requests.together

    def together(views):
        if len(views) > 2:
            raise MemoryError
        return whole(views)

    monkeypatch.setattr(requests, "together", together)
    held = Held()
    with Scheduler([held]) as scheduler:
        first = scheduler.submit(request([9]))
        assert held.entered.wait(PATIENCE)
        waiting = [request([9], seed=n) for n in range(8)]
        futures = [scheduler.submit(encoded) for encoded in waiting]
        held.release.set()
        for future, encoded in zip(futures, waiting, strict=True):
            np.testing.assert_array_equal(future.result(PATIENCE), checksum(encoded))
        assert first.done()
        assert held.sizes == [1, 2, 2, 2, 2]
        assert scheduler.stats()["splits"] == 3


def test_02_oom_split_halves_what_is_cut_next():
    """A batch of 20 fails: it is run in halves, and the next that is cut has 10 at most."""

    def forward(batch):
        sizes.append(len(batch))
        if len(batch) > 10:
            raise MemoryError
        return checksum(batch)

    sizes: list[int] = []
    encoded = request([10] * 80)
    with Scheduler([forward], max_batch_tokens=200) as scheduler:
        np.testing.assert_array_equal(scheduler.submit(encoded).result(PATIENCE), checksum(encoded))
        assert scheduler.stats()["splits"] == 1
    assert sizes == [20, *[10] * 8]


def test_02_oom_split_budget_grows_back():
    """After eight forwards without an error the budget grows by a tenth, up to what it was."""

    def forward(batch):
        if len(batch) > 10 and not split:
            split.append(len(batch))
            raise MemoryError
        return checksum(batch)

    split: list[int] = []
    with Scheduler([forward], max_batch_tokens=200) as scheduler:
        scheduler.submit(request([10] * 20)).result(PATIENCE)
        budgets = [scheduler.stats()["max_batch_tokens"]]  # two of eight forwards were the halves
        for _ in range(80):
            scheduler.submit(request([10])).result(PATIENCE)
            budgets.append(scheduler.stats()["max_batch_tokens"])
    assert split == [20]
    assert budgets[:6] == [100] * 6
    assert budgets[6:14] == [110] * 8
    assert budgets[-1] == 200


# -- wrong answers --------------------------------------------------------------------------------


@pytest.mark.parametrize("max_batch_tokens", [100, 9], ids=["in one batch", "in five"])
def test_a_forward_error_names_the_pair_and_keeps_the_cause(max_batch_tokens):
    """The caller reads which pair of its request failed, and finds the original exception."""
    poison = request([7])

    def forward(batch):
        for pair in range(len(batch)):
            if np.array_equal(batch.take([pair]).input_ids, poison.input_ids):
                raise KeyError("poison")
        return checksum(batch)

    encoded = type(poison).join([request([9, 9, 9], seed=1), poison, request([9], seed=2)])
    with (
        Scheduler([forward], max_batch_tokens=max_batch_tokens) as scheduler,
        pytest.raises(BackendError, match=r"pair 3 failed: KeyError\('poison'\)") as caught,
    ):
        scheduler.submit(encoded).result(PATIENCE)
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize("extra", [-1, 1])
def test_05_wrong_length_from_a_bare_forward(extra):
    """The scheduler itself checks the number of scores, by any forward."""
    held = Held(lambda batch: np.zeros(len(batch) + extra, np.float32))
    with Scheduler([held]) as scheduler:
        futures = [scheduler.submit(request([9, 9]))]
        assert held.entered.wait(PATIENCE)
        futures += [scheduler.submit(request([9, 9])) for _ in range(3)]
        held.release.set()
        for future in futures:
            with pytest.raises(BackendError, match="the model returned scores of shape"):
                future.result(PATIENCE)


SHAPES = {
    "no shape": lambda batch: np.float32(1),
    "three axes": lambda batch: np.zeros((len(batch), 1, 1), np.float32),
    "no label": lambda batch: np.zeros((len(batch), 0), np.float32),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_05_wrong_length_has_other_shapes(shape):
    """Rows are numbers or vectors; anything else is the model's error."""
    with (
        Scheduler([SHAPES[shape]]) as scheduler,
        pytest.raises(BackendError, match="the model returned scores of shape"),
    ):
        scheduler.submit(request([9, 9])).result(PATIENCE)


def test_05_wrong_length_that_changes_between_batches():
    """Rows of 2 labels after rows of 3 fail the request they belong to, and nobody else."""
    labels = iter([3, 2, 2])
    held = Held(lambda batch: np.repeat(checksum(batch)[:, None], next(labels), axis=1))
    with Scheduler([held], max_batch_tokens=20) as scheduler:
        changing = scheduler.submit(request([9, 9, 9]))
        assert held.entered.wait(PATIENCE)
        steady = scheduler.submit(request([9]))
        held.release.set()
        with pytest.raises(BackendError, match=r"scores of shape \(\d, 2\)"):
            changing.result(PATIENCE)
        assert steady.result(PATIENCE).shape == (1, 2)


def test_04_nan_in_one_of_two_labels_is_tried_again_alone():
    """A row is finite if all its numbers are; the shape of rows is the forward's."""

    def forward(batch):
        rows = np.stack([checksum(batch), np.zeros(len(batch), np.float32)], axis=1)
        if len(batch) > 1:
            rows[1, 1] = np.nan
        return rows

    encoded = request([9, 9, 9])
    with Scheduler([forward]) as scheduler:
        rows = scheduler.submit(encoded).result(PATIENCE)
        assert scheduler.stats()["retries"] == 1
    assert rows.shape == (3, 2)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows[:, 0], checksum(encoded))
    np.testing.assert_array_equal(rows[:, 1], 0)


@pytest.mark.parametrize(
    ("row", "words"), [([np.nan], "got nan"), ([1.0, np.inf], r"got \[ ?1. inf\]")]
)
def test_04_nan_alone_names_the_pair(row, words):
    """One number is shown as a number, several as they are."""
    held = Held(lambda batch: np.array([row] * len(batch), np.float32))
    held.release.set()
    with (
        Scheduler([held]) as scheduler,
        pytest.raises(BackendError, match=f"the score of pair 0 must be finite: {words}"),
    ):
        scheduler.submit(request([9])).result(PATIENCE)


# -- callers that give up -------------------------------------------------------------------------


def test_11_timeout_counts_from_when_the_caller_began():
    """Tokenising that took longer than the timeout leaves none of it to wait."""
    held = Held()
    with Scheduler([held]) as scheduler:
        first = scheduler.submit(request([5]))
        assert held.entered.wait(PATIENCE)
        late = scheduler.submit(request([6]), timeout=PATIENCE, tokenise_seconds=2 * PATIENCE)
        with pytest.raises(TimeoutError, match="no scores within the timeout"):
            late.result(PATIENCE / 2)
        early = scheduler.submit(request([7]), timeout=2 * PATIENCE, tokenise_seconds=1.0)
        held.release.set()
        wait([first, early], PATIENCE)
    assert held.sizes == [1, 1]
    assert early.result().shape == (1,)


def test_cancelled_errors_are_the_futures_own():
    """A caller of `result()` on a request it cancelled gets CancelledError, as from any Future."""
    held = Held()
    with Scheduler([held]) as scheduler:
        first = scheduler.submit(request([5]))
        assert held.entered.wait(PATIENCE)
        second = scheduler.submit(request([5]))
        second.cancel()
        with pytest.raises(CancelledError):
            second.result(PATIENCE)
        held.release.set()
        assert first.result(PATIENCE).shape == (1,)


def test_10_cancel_drops_what_waits_and_wakes_who_waits():
    """Its pairs leave the queue, and `concurrent.futures.wait` returns."""
    held = Held()
    with Scheduler([held]) as scheduler:
        first = scheduler.submit(request([5]))
        assert held.entered.wait(PATIENCE)
        second = scheduler.submit(request([5]))
        assert second.cancel()
        assert wait([second], 0).done == {second}
        assert scheduler.stats()["queue_pairs"] == 0
        held.release.set()
        wait([first], PATIENCE)
    assert held.sizes == [1]


# -- starvation -----------------------------------------------------------------------------------


def test_18_starvation_of_a_large_request():
    """In an endless stream of single documents, 500 take under 3x the batches they need alone."""
    forwards = 0

    def forward(batch):
        nonlocal forwards
        forwards += 1
        if not big.done():
            for n in range(8):  # 80 % of a batch of ten arrives during each batch
                scheduler.submit(request([100], seed=forwards * 8 + n))
        return checksum(batch)

    big: Future = Future()
    held = Held(forward)
    with Scheduler([held], max_batch_tokens=1000) as scheduler:
        scheduler.submit(request([100]))
        assert held.entered.wait(PATIENCE)
        encoded = request([100] * 500)
        big = scheduler.submit(encoded)
        done_at: list[int] = []
        big.add_done_callback(lambda _: done_at.append(forwards))
        held.release.set()
        np.testing.assert_array_equal(big.result(PATIENCE), checksum(encoded))
    assert done_at[0] <= 3 * 50


def test_18_starvation_of_a_small_request():
    """Single documents that arrive while 500 are scored are answered within two batches each."""
    waits: list[int] = []
    forwards = 0

    def forward(batch):
        nonlocal forwards
        forwards += 1
        if forwards % 3 == 0:
            began = forwards
            small = scheduler.submit(request([90], seed=forwards))
            small.add_done_callback(lambda _: waits.append(forwards - began))
        return checksum(batch)

    with Scheduler([forward], max_batch_tokens=1000) as scheduler:
        scheduler.submit(request([100] * 500)).result(PATIENCE)
    assert len(waits) >= 15
    assert max(waits) <= 2


# -- for a long time ------------------------------------------------------------------------------


def test_23_soak_keeps_nothing():
    """20,000 requests of random length: no thread, descriptor or request more than at the start."""
    from tests.benchmarks.soak import soak

    report = soak(20_000, samples=4)
    assert report.requests == 20_000
    assert report.faults() == []
    # One request kept with its Future is over 1 kB: all of them would be 15 MB and more.
    assert report.memory[-1] - report.memory[1] < 10
    gc.collect()
    assert not [it for it in gc.get_objects() if type(it) is Request]
