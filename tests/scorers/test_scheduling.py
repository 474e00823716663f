"""The scheduler over stub forwards: who shares a batch, whose turn it is, what comes back."""

from __future__ import annotations

import contextvars
import threading
from concurrent.futures import Future, wait

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank_adapters.engine.queue import RequestQueue
from rerank_adapters.engine.requests import Batch, Request
from rerank_adapters.engine.scheduler import Scheduler, looks_out_of_memory
from rerank_adapters.errors import BackendError, ClosedError, ConfigError, InputError
from tests.scorers.traffic import PATIENCE, Held, checksum, request, requests, rerank_threads

untimed = settings(deadline=None, max_examples=50)
LENGTHS = st.lists(st.lists(st.integers(1, 80), min_size=1, max_size=20), min_size=1, max_size=20)


def _queue(*sizes: list[int], **options: int) -> tuple[RequestQueue, list[Request]]:
    settings = {
        "window_tokens": 10_000,
        "max_padding": 0.10,
        "free_padding": 0,
        "max_passes": 8,
    } | options
    queue = RequestQueue(**settings)
    waiting = [Request(Future(), request(lengths, seed=at)) for at, lengths in enumerate(sizes)]
    for entry in waiting:
        queue.add(entry)
    return queue, waiting


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


# -- whose turn it is -----------------------------------------------------------------------------


@untimed
@given(sizes=LENGTHS, budget=st.integers(1, 400), window=st.integers(1, 2000))
def test_the_queue_deals_every_row_once_within_the_budget(sizes, budget, window):
    """Batches hold the budget (but for one long pair), and the counts end at zero."""
    queue, waiting = _queue(*sizes, window_tokens=window)
    dealt = {entry: [] for entry in waiting}
    while queue:
        batch = queue.take(budget)
        lengths = batch.tokens().lengths
        assert len(batch) == 1 or len(batch) * lengths.max() <= budget
        for entry, places in batch.parts:
            rows = entry.order[places]
            assert lengths.max() >= entry.encoded.lengths[rows].max()
            dealt[entry] += rows.tolist()
    assert all(sorted(rows) == list(range(len(e.encoded))) for e, rows in dealt.items())
    assert (queue.pairs, queue.tokens) == (0, 0)


@untimed
@given(data=st.data(), window=st.integers(1, 2000), free_padding=st.integers(0, 200))
def test_the_queue_deals_every_row_once_whatever_happens_in_between(data, window, free_padding):
    """Requests come and are dropped, and budgets change, between one batch and the next."""
    queue, _ = _queue(window_tokens=window, free_padding=free_padding)
    dealt: dict[Request, list[int]] = {}
    for step in range(data.draw(st.integers(1, 40))):
        waiting = [entry for entry in dealt if entry.left]
        do = data.draw(st.sampled_from(["add", "take", "take", "drop"]))
        if do == "add" or not waiting:
            lengths = data.draw(st.lists(st.integers(1, 80), min_size=1, max_size=20))
            entry = Request(Future(), request(lengths, seed=step))
            dealt[entry] = []
            queue.add(entry)
        elif do == "drop":
            entry = data.draw(st.sampled_from(waiting))
            queue.drop(entry.future)
            del dealt[entry]
        else:
            _deal(queue.take(data.draw(st.integers(1, 500))), dealt)
        assert queue.pairs == sum(len(e.encoded) - len(rows) for e, rows in dealt.items())
        lengths = [e.encoded.lengths for e in dealt]
        given = [e.encoded.lengths[rows] for e, rows in dealt.items()]
        assert queue.tokens == sum(map(np.sum, lengths)) - sum(map(np.sum, given))
    while queue:
        _deal(queue.take(200), dealt)
    assert all(sorted(rows) == list(range(len(e.encoded))) for e, rows in dealt.items())


def _deal(batch: Batch, dealt: dict[Request, list[int]]) -> None:
    """Notes whose rows a batch took; its tokens are theirs."""
    tokens, start = batch.tokens(), 0
    for entry, places in batch.parts:
        rows = entry.order[places].tolist()
        dealt[entry] += rows
        own = tokens.take(range(start, start + len(rows)))
        np.testing.assert_array_equal(own.input_ids, entry.encoded.take(rows).input_ids)
        start += len(rows)


def test_the_oldest_request_is_in_the_first_batch():
    """A long-waiting request of one odd length is not starved by a crowd of another length."""
    queue, waiting = _queue([7], *[[50] * 10] * 20)
    assert waiting[0] in [entry for entry, _ in queue.take(500).parts]


def test_a_small_request_behind_a_large_one_waits_for_one_batch():
    """A newcomer of one pair runs in the second batch, not after the five hundred before it."""
    queue, waiting = _queue([100] * 500, [90], window_tokens=131_072)
    queue.take(1000)
    assert waiting[1] in [entry for entry, _ in queue.take(1000).parts]


@pytest.mark.parametrize("small", [1, 12], ids=["fewer than its half", "more than its half"])
def test_a_large_request_has_half_of_the_tokens(small):
    """A stream of small ones beside it takes what it needs, and at most the other half."""
    queue, waiting = _queue([100] * 500)
    big, others = waiting[0], 0
    while big.tokens:
        for _ in range(small):
            queue.add(Request(Future(), request([60])))
        before = big.tokens
        others += int(queue.take(1000).tokens().lengths.sum()) - (before - big.tokens)
        assert others <= 1.1 * (50_000 - big.tokens) + 1000
    if small == 1:
        assert len(queue) <= 2, "60 tokens a batch are less than half: they waited for one batch"
    else:
        assert others > 48_000


def test_a_forward_counts_beside_its_tokens():
    """100 + 600 tokens do not share a batch. A large one has as many tokens as small ones have, or,
    where a forward costs as much as 900 tokens, (1000 + 900) / (600 + 900) turns for one of theirs.
    """
    turns = {}
    for free_padding in (0, 900):
        queue, waiting = _queue([100] * 500, free_padding=free_padding, window_tokens=400_000)
        turns[free_padding] = -50  # the large one's
        while waiting[0].tokens:
            queue.add(Request(Future(), request([600])))
            queue.take(1000)
            turns[free_padding] += 1
    assert turns[0] == pytest.approx(50 * 1000 / 600, abs=2)
    assert turns[900] == pytest.approx(50 * 1900 / 1500, abs=2)


def test_a_huge_request_does_not_hide_those_behind_it():
    """A request that would fill the whole window leaves room for a newcomer to be seen."""
    queue, waiting = _queue([10] * 5000, [10], window_tokens=1000)
    queue.take(100)
    assert waiting[1] in [entry for entry, _ in queue.take(100).parts]


def test_whoever_was_passed_over_often_enough_goes_next():
    """Three batches served someone younger than the middle request; the fourth is its own."""
    queue, waiting = _queue([200] * 50, [50, 50], max_passes=3)
    middle = waiting[1]
    served_at = None
    for batch in range(20):
        queue.add(Request(Future(), request([20], seed=batch)))  # ever smaller, ever younger
        if middle in [entry for entry, _ in queue.take(200).parts]:
            served_at = batch
            break
        assert middle.passes <= 3
    assert served_at is not None
    assert served_at <= 6  # three passes, each beside one batch of the oldest request


# -- the call seam --------------------------------------------------------------------------------


def test_submit_call_encodes_elsewhere_in_the_callers_context():
    """`encode` runs in one of the scheduler's threads and sees its submitter's context."""
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
    assert seen == [("ada", "rerank-tokenise")]


def test_what_encode_raises_reaches_its_caller_alone():
    """A request that cannot be tokenised fails; the next one is served."""

    def encode():
        raise InputError("texts[1] must be a str: got None")

    with Scheduler([checksum], tokenise_threads=1) as scheduler:
        bad, good = scheduler.submit_call(encode), scheduler.submit_call(lambda: request([5]))
        with pytest.raises(InputError, match=r"texts\[1\]"):
            bad.result(PATIENCE)
        np.testing.assert_array_equal(good.result(PATIENCE), checksum(request([5])))


def test_a_cancelled_call_is_not_tokenised():
    """What is cancelled behind a busy tokeniser thread never runs."""
    entered, release, ran = threading.Event(), threading.Event(), []

    def slow():
        entered.set()
        release.wait(PATIENCE)
        return request([5])

    def encode():
        ran.append(True)
        return request([5])

    with Scheduler([checksum], tokenise_threads=1) as scheduler:
        first = scheduler.submit_call(slow)
        assert entered.wait(PATIENCE)
        second, third = scheduler.submit_call(encode), scheduler.submit_call(encode)
        assert second.cancel()
        release.set()
        wait([first, second, third], PATIENCE)
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
    """A scheduler that serves nobody has no thread; a closed one has none left."""
    scheduler = Scheduler([checksum, checksum])
    assert rerank_threads() == []
    scheduler.submit(request([5])).result(PATIENCE)
    assert sorted(rerank_threads()) == ["rerank-worker-0", "rerank-worker-1"]
    scheduler.submit_call(lambda: request([5]), timeout=PATIENCE).result(PATIENCE)
    assert len(rerank_threads()) == 4
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


@pytest.mark.parametrize(
    "option",
    ["max_batch_tokens", "window_tokens", "max_queue_pairs", "max_queue_tokens", "max_passes"],
)
def test_a_limit_below_one_is_refused(option):
    """The error names the argument, the rule and the value."""
    with pytest.raises(ConfigError, match=f"{option} must be at least 1: got 0"):
        Scheduler([checksum], **{option: 0})


def test_when_full_has_two_words():
    """Anything else is refused."""
    with pytest.raises(ConfigError, match='when_full must be "block" or "error"'):
        Scheduler([checksum], when_full="drop")


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan")])
def test_a_timeout_is_a_positive_number(timeout):
    """Zero, negative and NaN seconds are refused at the call."""
    with (
        Scheduler([checksum]) as scheduler,
        pytest.raises(InputError, match="timeout must be above 0"),
    ):
        scheduler.submit(request([5]), timeout=timeout)


def test_an_infinite_timeout_never_comes():
    """float("inf") and numbers beyond what threads can wait for mean no limit."""
    with Scheduler([checksum]) as scheduler:
        for timeout in (float("inf"), 1e300):
            scheduler.submit(request([5]), timeout=timeout).result(PATIENCE)


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
def test_out_of_memory_is_told_from_other_errors(error, expected):
    """MemoryError, torch's class by name, and the runtimes' wording; nothing else."""
    assert looks_out_of_memory(error) is expected


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


def test_a_forward_error_names_the_pair_and_keeps_the_cause():
    """The caller reads which pair of its request failed, and finds the original exception."""
    poison = request([7])

    def forward(batch):
        for pair in range(len(batch)):
            if np.array_equal(batch.take([pair]).input_ids, poison.input_ids):
                raise KeyError("poison")
        return checksum(batch)

    encoded = type(poison).join([request([9, 9, 9], seed=1), poison, request([9], seed=2)])
    with (
        Scheduler([forward]) as scheduler,
        pytest.raises(BackendError, match=r"pair 3 failed: KeyError\('poison'\)") as caught,
    ):
        scheduler.submit(encoded).result(PATIENCE)
    assert isinstance(caught.value.__cause__, KeyError)
