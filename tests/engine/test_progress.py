"""on_progress: every row is reported once, from a worker, before the request has its end."""

from __future__ import annotations

import threading
from concurrent.futures import wait

import numpy as np
import pytest

from rerank_adapters.errors import BackendError
from tests.engine.traffic import PATIENCE, Held, Scheduler, checksum, request


def test_rows_are_reported_batch_by_batch_before_the_result():
    """A request cut into five batches hears of twenty rows five times, then it is done."""
    reported: list[tuple[int, bool, str]] = []

    def on_progress(rows: int) -> None:
        reported.append((rows, future_done(), threading.current_thread().name))

    def future_done() -> bool:
        return scheduler.stats()["done"] > 0

    with Scheduler([checksum], max_batch_tokens=200) as scheduler:
        future = scheduler.submit(request([10] * 100), on_progress=on_progress)
        future.result(PATIENCE)
    assert reported == [(20, False, "rerank-worker-0")] * 5


def test_progress_is_reported_without_the_lock():
    """Others may use the queue meanwhile: a thread that asks for statistics is answered."""
    answers: list[int] = []

    def on_progress(_: int) -> None:
        asking = threading.Thread(target=lambda: answers.append(scheduler.stats()["unfinished"]))
        asking.start()
        asking.join(PATIENCE)

    with Scheduler([checksum]) as scheduler:
        scheduler.submit(request([10]), on_progress=on_progress).result(PATIENCE)
    assert answers == [1]


def test_a_request_ends_after_the_last_call():
    """One worker is still reporting its rows when another brings the last: the request waits."""
    reporting, go_on, meeting = threading.Event(), threading.Event(), threading.Barrier(2)
    reported: list[int] = []

    def forward(batch):
        if len(batch) == 2:  # half of the request: both workers have their half before either ends
            meeting.wait(PATIENCE)
        return checksum(batch)

    def on_progress(rows: int) -> None:
        first = not reported
        reported.append(rows)
        if first:
            reporting.set()
            assert go_on.wait(PATIENCE)

    with Scheduler([forward, forward], max_batch_tokens=20) as scheduler:
        future = scheduler.submit(request([10] * 4), on_progress=on_progress)
        assert reporting.wait(PATIENCE)
        # The other worker takes this when it has reported its half and counted it.
        assert scheduler.submit(request([10])).result(PATIENCE).shape == (1,)
        assert reported == [2, 2]
        assert not future.done()
        go_on.set()
        assert future.result(PATIENCE).shape == (4,)
    assert reported == [2, 2]


def test_rows_tried_again_are_reported_once_and_failures_never():
    """A pair that is finite at the second try is reported then; one that never is, not at all."""
    poison = request([7])
    reported: dict[str, int] = {"good": 0, "bad": 0}

    def forward(batch):
        rows = checksum(batch)
        lonely = len(batch) == 1
        for pair in range(len(batch)):
            poisoned = np.array_equal(batch.take([pair]).input_ids, poison.input_ids)
            if poisoned or (pair == 0 and not lonely):
                rows[pair] = np.nan
        return rows

    def count(name):
        def on_progress(rows: int) -> None:
            reported[name] += rows

        return on_progress

    held = Held(forward)
    with Scheduler([held]) as scheduler:
        first = scheduler.submit(request([9]))
        assert held.entered.wait(PATIENCE)
        good = scheduler.submit(request([9, 9, 9], seed=1), on_progress=count("good"))
        mixed = type(poison).join([request([9], seed=2), poison])
        bad = scheduler.submit(mixed, on_progress=count("bad"))
        held.release.set()
        wait([first, good, bad], PATIENCE)
        assert good.result().shape == (3,)
        with pytest.raises(BackendError, match="pair 1 must be finite"):
            bad.result()
    assert reported == {"good": 3, "bad": 1}


@pytest.mark.parametrize("error", [ValueError("mine"), SystemExit("mine")])
def test_what_it_raises_fails_its_request_alone(error):
    """The engine goes on, a neighbour in the batch is answered, and no frame of ours is kept."""

    def on_progress(_: int) -> None:
        raise error

    held = Held()
    with Scheduler([held], max_batch_tokens=50) as scheduler:
        first = scheduler.submit(request([10]))
        assert held.entered.wait(PATIENCE)
        bad = scheduler.submit(request([10] * 20), on_progress=on_progress)
        good = scheduler.submit(request([10]))
        held.release.set()
        assert bad.exception(PATIENCE) is error
        assert good.result(PATIENCE).shape == (1,)
        assert first.done()
        assert scheduler.submit(request([10])).result(PATIENCE).shape == (1,)
        assert scheduler.stats()["failed"] == 1
        assert sum(held.sizes) < 23  # what it still had waiting was dropped
    assert error.__traceback__.tb_frame.f_code.co_name == "on_progress"
