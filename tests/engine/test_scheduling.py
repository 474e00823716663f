"""The engine over stub forwards: who shares a batch, what comes back, what is counted."""

from __future__ import annotations

import contextvars
import threading
from concurrent.futures import wait

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank_adapters import futures
from rerank_adapters.engine.admission import Admission, Limits
from rerank_adapters.engine.batching import BatchRule
from rerank_adapters.engine.engine import Engine
from rerank_adapters.errors import ConfigError, InputError
from tests.engine.traffic import (
    PATIENCE,
    Held,
    Scheduler,
    checksum,
    request,
    requests,
    rerank_threads,
)

untimed = settings(deadline=None, max_examples=50)
LENGTHS = st.lists(st.lists(st.integers(1, 80), min_size=1, max_size=20), min_size=1, max_size=20)


# -- scores ---------------------------------------------------------------------------------------


@untimed
@given(sizes=LENGTHS, budget=st.integers(1, 500), workers=st.integers(1, 3))
def test_scores_come_back_to_their_request_in_its_order(sizes, budget, workers):
    """Whatever shares a batch, however requests are cut: every pair has its own score, once."""
    waiting = [request(lengths, seed=at) for at, lengths in enumerate(sizes)]
    with Scheduler([checksum] * workers, max_batch_tokens=budget) as scheduler:
        futures = [scheduler.submit(encoded) for encoded in waiting]
        for future, encoded in zip(futures, waiting, strict=True):
            scores = future.result(PATIENCE)
            assert scores.dtype == np.float32
            np.testing.assert_array_equal(scores, checksum(encoded))
        assert scheduler.stats()["pairs"] == sum(map(len, sizes))


def test_sixteen_threads_share_one_scheduler():
    """Sync callers from many threads each get their own scores back."""
    failures = []
    with Scheduler([checksum, checksum], max_batch_tokens=256) as scheduler:

        def caller(seed: int) -> None:
            failures.extend(
                seed
                for encoded in requests(40, seed=seed)
                if not np.array_equal(scheduler.score(lambda it=encoded: it), checksum(encoded))
            )

        threads = [threading.Thread(target=caller, args=(1000 * n,)) for n in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []


def test_no_pairs_are_no_scores():
    """An empty request gets an empty float32 array."""
    with Scheduler([checksum]) as scheduler:
        scores = scheduler.submit(request([])).result(PATIENCE)
    assert scores.shape == (0,)
    assert scores.dtype == np.float32


# -- who shares a batch ---------------------------------------------------------------------------


def test_what_arrives_during_a_batch_shares_the_next():
    """Work-conserving: the first request goes alone at once, the fifty behind it go together."""
    held = Held()
    with Scheduler([held], max_batch_tokens=1000) as scheduler:
        first = scheduler.submit(request([10]))
        assert held.entered.wait(PATIENCE)
        others = [scheduler.submit(request([10], seed=n)) for n in range(50)]
        held.release.set()
        wait([first, *others], PATIENCE)
    assert held.sizes == [1, 50]


def test_a_request_larger_than_the_budget_is_cut_and_put_back_together():
    """100 pairs of 10 tokens under a budget of 200 are five batches and one answer."""
    held = Held()
    held.release.set()
    encoded = request([10] * 100)
    with Scheduler([held], max_batch_tokens=200) as scheduler:
        np.testing.assert_array_equal(scheduler.submit(encoded).result(PATIENCE), checksum(encoded))
    assert held.sizes == [20] * 5


def test_each_forward_has_its_worker():
    """Two forwards run at once: each waits for the other inside its call."""
    both = threading.Barrier(2)

    def forward(batch):
        both.wait(PATIENCE)
        return checksum(batch)

    encoded = request([10, 10])
    with Scheduler([forward, forward], max_batch_tokens=10) as scheduler:
        np.testing.assert_array_equal(scheduler.submit(encoded).result(PATIENCE), checksum(encoded))


# -- the call seam --------------------------------------------------------------------------------


def test_an_async_call_encodes_elsewhere_in_the_callers_context():
    """`encode` runs in a preparing thread and sees its submitter's context."""
    name = contextvars.ContextVar("name", default="nobody")
    seen = []

    def encode():
        seen.append((name.get(), threading.current_thread().name))
        return request([3, 4])

    with Scheduler([checksum]) as scheduler:
        name.set("ada")
        scores = scheduler.submit_call(encode).result(PATIENCE)
        assert scheduler.stats()["tokenise_seconds"] > 0
    np.testing.assert_array_equal(scores, checksum(request([3, 4])))
    assert seen == [("ada", "rerank-prepare")]


def test_what_encode_raises_reaches_its_caller_alone(monkeypatch):
    """A request that cannot be tokenised fails; the next one is served."""

    def encode():
        raise InputError("texts[1] must be a str: got None")

    monkeypatch.setattr(futures, "PREPARING_THREADS", 1)
    with Scheduler([checksum]) as scheduler:
        bad, good = scheduler.submit_call(encode), scheduler.submit_call(lambda: request([5]))
        with pytest.raises(InputError, match=r"texts\[1\]"):
            bad.result(PATIENCE)
        np.testing.assert_array_equal(good.result(PATIENCE), checksum(request([5])))


def test_a_cancelled_call_is_not_tokenised(monkeypatch):
    """What is cancelled behind a busy preparing thread never runs."""
    monkeypatch.setattr(futures, "PREPARING_THREADS", 1)
    entered, release, ran = threading.Event(), threading.Event(), []

    def slow():
        entered.set()
        release.wait(PATIENCE)
        return request([5])

    def encode():
        ran.append(True)
        return request([5])

    with Scheduler([checksum]) as scheduler:
        first = scheduler.submit_call(slow)
        assert entered.wait(PATIENCE)
        second, third = scheduler.submit_call(encode), scheduler.submit_call(encode)
        assert second.cancel()
        release.set()
        wait([first, third], PATIENCE)
        assert third.done()
    assert ran == [True]


# -- threads, arguments, numbers ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("workers", "free_padding", "sizes"),
    [(1, 0, [12]), (2, 0, [6, 6]), (4, 0, [3, 3, 3, 3]), (4, 10, [4, 4, 4]), (2, 30, [12])],
)
def test_idle_workers_share_what_one_could_take(workers, free_padding, sizes):
    """Twelve pairs of 10 tokens, one budget: a batch for each, of 4 free paddings at least."""
    meeting, taken = threading.Barrier(len(sizes)), []

    def forward(batch):
        taken.append(len(batch))
        meeting.wait(PATIENCE)
        return checksum(batch)

    encoded = request([10] * 12)
    with Scheduler([forward] * workers, free_padding=free_padding) as scheduler:
        scores = scheduler.submit(encoded).result(PATIENCE)
    np.testing.assert_array_equal(scores, checksum(encoded))
    assert sorted(taken) == sizes


@pytest.mark.parametrize(("length", "together"), [(10, 4), (30, 3), (100, 1)])
def test_pairs_beyond_the_budget_run_few_at_a_time(length, together):
    """Four workers and a budget of 10: none starts while 80 tokens or more are computed."""
    lock, meeting, running, peak = threading.Lock(), threading.Barrier(together), 0, 0

    def forward(batch):
        nonlocal running, peak
        with lock:
            running += len(batch.input_ids)
            peak = max(peak, running)
        meeting.wait(PATIENCE)
        with lock:
            running -= len(batch.input_ids)
        return checksum(batch)

    encoded = request([length] * 12)
    with Scheduler([forward] * 4, max_batch_tokens=10) as scheduler:
        scores = scheduler.submit(encoded).result(PATIENCE)
    np.testing.assert_array_equal(scores, checksum(encoded))
    assert peak == together * length


def test_threads_start_with_the_first_request_and_end_with_close():
    """An engine that serves nobody has no thread; a closed one has none left."""
    scheduler = Scheduler([checksum, checksum])
    assert rerank_threads() == []
    scheduler.submit(request([5])).result(PATIENCE)
    assert sorted(rerank_threads()) == ["rerank-worker-0", "rerank-worker-1"]
    scheduler.submit(request([5]), timeout=PATIENCE).result(PATIENCE)
    assert len(rerank_threads()) == 3
    scheduler.close()
    assert rerank_threads() == []


def test_stats_count_what_happened():
    """Two batches of known lengths: pairs, tokens, padding and sizes add up."""
    held = Held()
    with Scheduler([held], max_batch_tokens=100, max_padding=0.5) as scheduler:
        first = scheduler.submit(request([10]), tokenise_seconds=0.25)
        assert held.entered.wait(PATIENCE)
        second = scheduler.submit(request([20, 15, 15]))
        before = scheduler.stats()
        assert (before["queue_requests"], before["queue_pairs"], before["queue_tokens"]) == (
            1,
            3,
            50,
        )
        assert before["unfinished"] == 2
        held.release.set()
        wait([first, second], PATIENCE)
        after = scheduler.stats()
    assert {name: after[name] for name in ("requests", "done", "pairs", "batches")} == {
        "requests": 2,
        "done": 2,
        "pairs": 4,
        "batches": 2,
    }
    assert (after["queue_pairs"], after["queue_tokens"], after["unfinished"]) == (0, 0, 0)
    assert after["batch_tokens"] == 60
    assert after["padding_waste"] == pytest.approx(1 - 60 / 70)
    assert after["batch_sizes"] == {1: 1, 4: 1}
    assert after["tokenise_seconds"] == 0.25
    assert after["wait_seconds"] > 0
    assert after["forward_seconds"] > 0


def test_stats_are_a_plain_snapshot():
    """What was returned does not change when work goes on."""
    with Scheduler([checksum]) as scheduler:
        scheduler.submit(request([5])).result(PATIENCE)
        before = scheduler.stats()
        copy = {name: dict(it) if isinstance(it, dict) else it for name, it in before.items()}
        scheduler.submit(request([5])).result(PATIENCE)
    assert before == copy


RULE = BatchRule(max_tokens=16_384)


@pytest.mark.parametrize(
    ("option", "make"),
    [
        ("max_batch_tokens", lambda: BatchRule(max_tokens=0)),
        ("max_batch_tokens", lambda: Admission(Engine([(checksum, RULE)]), max_batch_tokens=0)),
        ("window_tokens", lambda: Engine([(checksum, RULE)], window_tokens=0)),
        ("max_skipped", lambda: Engine([(checksum, RULE)], max_skipped=0)),
        ("max_queue_pairs", lambda: Limits(pairs=0)),
        ("max_queue_tokens", lambda: Limits(tokens=0)),
        (r"len\(forwards\)", lambda: Engine([])),
    ],
)
def test_a_limit_below_one_is_refused(option, make):
    """The error names the argument, the rule and the value."""
    with pytest.raises(ConfigError, match=f"{option} must be at least 1: got 0"):
        make()


def test_an_infinite_timeout_never_comes():
    """float("inf") and numbers beyond what threads can wait for mean no limit."""
    with Scheduler([checksum]) as scheduler:
        for timeout in (float("inf"), 1e300):
            scheduler.submit(request([5]), timeout=timeout).result(PATIENCE)
