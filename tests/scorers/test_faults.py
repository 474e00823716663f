"""Faults 1 to 23 (the table is in fault_table.py): each stays with the request that met it.

A forward is held with an Event while others queue, and forwards are counted; no test races a clock.
Fork, exit and Ctrl-C, which happen to whole processes, are in test_process_faults.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import shutil
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from pathlib import Path

import anyio.to_thread
import numpy as np
import pytest
import uvloop

from rerank_adapters import Reranker, RerankerConfig
from rerank_adapters.adapter_fields import LazyReranker
from rerank_adapters.engine.requests import Request
from rerank_adapters.engine.scheduler import Scheduler
from rerank_adapters.errors import (
    BackendError,
    ClosedError,
    InputError,
    ModelError,
    OverloadedError,
    RerankError,
)
from rerank_adapters.tokens import TokenBatch
from tests.checkpoints import PAIRS, build
from tests.fakes import queued_pairs
from tests.scorers.fault_table import BACKENDS, FAULTS, backends_for
from tests.scorers.tap import Tap
from tests.scorers.tapped import TOLERANCE, checkpoint, has_row, tapped, until
from tests.scorers.traffic import PATIENCE, Held, checksum, request, rerank_threads

HERE = Path(__file__).parent
QUERY = "how do whales breathe"
POISON = "the poisoned document"


def on(number: int) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("backend", backends_for(number))


def texts(count: int, *, start: int = 0) -> list[str]:
    """Distinct short documents."""
    return [f"document {n} about whales and the sea" for n in range(start, start + count)]


def queued(reranker: Reranker) -> int:
    return reranker.stats()["queue_requests"]


def poison_row(reranker: Reranker):
    return reranker._scorer.encode([(QUERY, POISON)]).batch


def poisoned(reranker: Reranker, error: Callable[[], BaseException]):
    """A rule that raises whenever the poisoned document is in the batch."""
    row = poison_row(reranker)
    return lambda batch: error() if has_row(batch, row).any() else None


def behind_a_held_forward(reranker: Reranker, tap: Tap, requests: list[list[str]]) -> list[Future]:
    """Submits all *requests* while a first one is being scored, so that they share what follows."""
    with tap.held():
        first = reranker.submit(QUERY, ["held"])
        assert tap.entered.wait(PATIENCE)
        futures = [reranker.submit(QUERY, documents) for documents in requests]
    wait([first, *futures], PATIENCE)
    return futures


def assert_serves(reranker: Reranker) -> None:
    """Whatever happened before, a new request is answered, and nothing is left over."""
    assert np.isfinite(reranker.score(QUERY, texts(3))).all()
    stats = reranker.stats()
    assert (stats["queue_pairs"], stats["queue_tokens"], stats["unfinished"]) == (0, 0, 0)


def test_every_fault_has_a_test_and_every_cell_a_word():
    """The table is whole: rows 1 to 23, each with tests of its name, each cell with its reason."""
    sources = "".join(path.read_text("utf-8") for path in HERE.glob("test_*faults.py"))
    assert list(FAULTS) == list(range(1, 24))
    for number, fault in FAULTS.items():
        assert f"def test_{number:02}_{fault.tests}" in sources
        assert all(getattr(fault, backend) for backend in BACKENDS)
        assert backends_for(number)


# -- 1 to 5: forwards that fail -------------------------------------------------------------------


@on(1)
def test_01_poison_fails_its_own_request_alone(backend):
    """Sixteen threads share a batch; one gets the error with its pair, fifteen their scores."""
    reranker, tap = tapped(backend)
    requests = [texts(2, start=10 * n) for n in range(16)]
    alone = [reranker.score(QUERY, documents) for documents in requests]
    requests[3][1] = POISON
    tap.rule = poisoned(reranker, lambda: ValueError("cannot score this"))
    outcomes: dict[int, object] = {}

    def caller(n: int) -> None:
        try:
            outcomes[n] = reranker.score(QUERY, requests[n])
        except RerankError as error:
            outcomes[n] = error

    threads = [threading.Thread(target=caller, args=(n,)) for n in range(16)]
    with tap.held():
        first = reranker.submit(QUERY, ["held"])
        assert tap.entered.wait(PATIENCE)
        for thread in threads:
            thread.start()
        until(lambda: queued(reranker) == 16)
    for thread in threads:
        thread.join(PATIENCE)
    error = outcomes.pop(3)
    assert isinstance(error, BackendError)
    assert "pair 1 failed: ValueError('cannot score this')" in str(error)
    for n, scores in outcomes.items():
        np.testing.assert_allclose(scores, alone[n], atol=TOLERANCE[backend], rtol=0)
    assert first.result(PATIENCE).shape == (1,)
    assert reranker.stats()["failed"] == 1
    assert reranker.stats()["retries"] <= 5  # halvings from 32 pairs to one
    assert_serves(reranker)
    reranker.close()


def out_of_memory(backend: str) -> Exception:
    """The error this backend raises in earnest."""
    if backend == "torch":
        import torch

        return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    if backend == "onnx":
        from onnxruntime.capi.onnxruntime_pybind11_state import RuntimeException

        return RuntimeException(
            "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while "
            "running MatMul node. Failed to allocate memory for requested buffer of size 1073741824"
        )
    return MemoryError()


@on(2)
def test_02_oom_split_scores_everything_in_order(backend):
    """A device takes 40 pairs: 1000 documents are scored, the budget shrinks and comes back."""
    reranker, tap = tapped(backend)
    documents = texts(1000)
    expected = reranker.score(QUERY, documents)
    full_budget = reranker.stats()["max_batch_tokens"]
    tap.rule = lambda batch: out_of_memory(backend) if len(batch) > 40 else None
    scores = reranker.score(QUERY, documents)
    np.testing.assert_allclose(scores, expected, atol=TOLERANCE[backend], rtol=0)
    stats = reranker.stats()
    assert stats["splits"] > 0
    assert stats["retries"] == stats["failed"] == 0
    assert stats["max_batch_tokens"] < full_budget
    # The errors' frames were gone when the halves ran: they would have held device memory.
    assert tap.pinned == 0
    tap.rule = lambda batch: None
    for _ in range(400):
        reranker.score(QUERY, ["recovering"])
        if reranker.stats()["max_batch_tokens"] == full_budget:
            break
    assert reranker.stats()["max_batch_tokens"] == full_budget
    assert_serves(reranker)
    reranker.close()


@on(3)
def test_03_oom_at_one_pair_fails_only_its_request(backend):
    """A pair that never fits fails its request by name; its neighbours and the queue go on."""
    reranker, tap = tapped(backend)
    tap.rule = poisoned(reranker, lambda: out_of_memory(backend))
    before, bad, after = behind_a_held_forward(
        reranker, tap, [texts(5), [*texts(3, start=10), POISON], texts(5, start=20)]
    )
    with pytest.raises(BackendError, match="pair 3 ran out of memory, even alone, with"):
        bad.result(PATIENCE)
    assert before.result(PATIENCE).shape == after.result(PATIENCE).shape == (5,)
    assert tap.pinned == 0
    assert_serves(reranker)
    reranker.close()


def test_03_oom_while_a_batch_is_put_together(monkeypatch):
    """Memory that runs out before the forward halves the batch like any other, and kills nobody."""
    whole = TokenBatch.join

    def join(batches):
        if len(batches) > 2:
            raise MemoryError
        return whole(batches)

    monkeypatch.setattr(TokenBatch, "join", staticmethod(join))
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


@on(4)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_04_nan_is_tried_again_alone(backend, value):
    """A row that is not finite in a shared batch but is alone costs one forward and no request."""
    reranker, tap = tapped(backend)
    row = poison_row(reranker)
    expected = reranker.score(QUERY, [POISON, *texts(3)])

    def edit(batch, logits):
        spoilt = has_row(batch, row) if len(batch) > 1 else np.zeros(1, bool)
        return np.where(spoilt[:, None], np.float32(value), logits)

    tap.edit = edit
    tap.sizes.clear()
    scores = reranker.score(QUERY, [POISON, *texts(3)])
    np.testing.assert_allclose(scores, expected, atol=TOLERANCE[backend], rtol=0)
    assert tap.sizes[-1] == 1
    assert reranker.stats()["retries"] == 1
    assert_serves(reranker)
    reranker.close()


@on(4)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_04_nan_alone_fails_its_request_alone(backend, value):
    """A pair that never has a finite score fails its request; it is not sorted among the others."""
    reranker, tap = tapped(backend)
    row = poison_row(reranker)
    tap.edit = lambda batch, logits: np.where(
        has_row(batch, row)[:, None], np.float32(value), logits
    )
    good, bad = behind_a_held_forward(reranker, tap, [texts(5), [texts(1)[0], POISON]])
    with pytest.raises(BackendError, match=r"the score of pair 1 must be finite: got (nan|inf)"):
        bad.result(PATIENCE)
    assert np.isfinite(good.result(PATIENCE)).all()
    assert_serves(reranker)
    reranker.close()


WRONG = {
    "one row short": lambda logits: logits[:-1],
    "one row more": lambda logits: np.concatenate([logits, logits[:1]]),
    "two labels": lambda logits: np.repeat(logits, 2, axis=1),
    "no label axis": lambda logits: logits[:, 0],
    "nothing": lambda logits: logits[:0],
}


@on(5)
@pytest.mark.parametrize("wrong", WRONG)
def test_05_wrong_length_is_an_error_for_every_caller(backend, wrong):
    """Logits that do not match the batch are never handed out: each caller gets a BackendError."""
    reranker, tap = tapped(backend)
    with tap.held():
        first = reranker.submit(QUERY, texts(1))
        assert tap.entered.wait(PATIENCE)
        tap.edit = lambda batch, logits: WRONG[wrong](logits)
        futures = [reranker.submit(QUERY, texts(2, start=n)) for n in range(4)]
    for future in [first, *futures]:
        with pytest.raises(BackendError, match=r"the model returned logits of shape"):
            future.result(PATIENCE)
    tap.edit = lambda batch, logits: logits
    assert_serves(reranker)
    reranker.close()


@pytest.mark.parametrize("extra", [-1, 1])
def test_05_wrong_length_from_a_bare_forward(extra):
    """The scheduler itself checks the number of scores, whoever computed them."""
    held = Held(lambda batch: np.zeros(len(batch) + extra, np.float32))
    with Scheduler([held]) as scheduler:
        futures = [scheduler.submit(request([9, 9]))]
        assert held.entered.wait(PATIENCE)
        futures += [scheduler.submit(request([9, 9])) for _ in range(3)]
        held.release.set()
        for future in futures:
            with pytest.raises(BackendError, match="the model returned scores of shape"):
                future.result(PATIENCE)


# -- 6 to 9: hostile input ------------------------------------------------------------------------

MILLION = {
    "words": "the whale breathes air ",
    "Chinese": "鲸鱼用肺呼吸",
    "emoji": "🐋",
    "no space": "abcdefgh",
}


@on(6)
@pytest.mark.parametrize("kind", MILLION)
def test_06_million_characters_score_as_their_truncated_prefix(backend, kind):
    """A document of 10⁶ characters beside 50 short ones: its score is its prefix's, theirs too."""
    if backend != "stub" and kind in ("emoji", "no space"):
        pytest.skip("they cost seconds of tokenising, which is the same for every backend")
    reranker, tap = tapped(backend)
    piece = MILLION[kind]
    prefix = piece * (20_000 // len(piece))
    document = piece * (1_000_000 // len(piece))
    short = reranker.score(QUERY, texts(50))
    expected = reranker.score(QUERY, [prefix])
    long_scores, short_scores = behind_a_held_forward(reranker, tap, [[document], texts(50)])
    tolerance = TOLERANCE[backend]
    np.testing.assert_allclose(long_scores.result(PATIENCE), expected, atol=tolerance, rtol=0)
    np.testing.assert_allclose(short_scores.result(PATIENCE), short, atol=tolerance, rtol=0)
    if kind in ("words", "Chinese"):  # WordPiece takes an endless word for one unknown token
        assert reranker.rerank(QUERY, [document])[0].truncated
    reranker.close()


@on(7)
def test_07_empty_texts_have_scores_and_blank_queries_an_error(backend):
    """Empty and blank documents score as on the other runtime; no documents are no scores."""
    reranker, _ = tapped(backend)
    other, _ = tapped("torch" if backend == "onnx" else "onnx")
    documents = ["", " ", "\n\t", "whales"]
    scores = reranker.score(QUERY, documents)
    np.testing.assert_allclose(scores, other.score(QUERY, documents), atol=1e-4, rtol=0)  # law 1
    assert scores[0] == pytest.approx(scores[1], abs=TOLERANCE[backend])
    assert reranker.score(QUERY, []).shape == (0,)
    assert len(reranker.rerank(QUERY, [])) == 0
    for blank in ("", "  ", "\n"):
        with pytest.raises(InputError, match="query must not be blank"):
            reranker.score(blank, documents)
    reranker.close()
    other.close()


class Text(str):
    """A str of another class, as web frameworks and pandas make them."""

    __slots__ = ()


@on(8)
@pytest.mark.parametrize("value", [None, 3, b"bytes", {"page_content": "text"}, ["text"]])
def test_08_wrong_types_are_named_and_disturb_nobody(backend, value):
    """The error says which text; a request already queued gets its scores."""
    reranker, tap = tapped(backend)
    with tap.held():
        first = reranker.submit(QUERY, ["held"])
        assert tap.entered.wait(PATIENCE)
        good = reranker.submit(QUERY, [Text("whales"), "sea"])
        with pytest.raises(InputError, match=r"texts\[1\] must be a str: got"):
            reranker.submit(QUERY, ["whales", value])
        with pytest.raises(InputError, match="query must be a str: got"):
            reranker.submit(value, ["whales"])
    wait([first, good], PATIENCE)
    expected = reranker.score(QUERY, ["whales", "sea"])
    np.testing.assert_allclose(good.result(), expected, atol=TOLERANCE[backend], rtol=0)
    reranker.close()


UNICODE = {
    "lone surrogate": ("a whale \ud800 surfaces", "a whale ? surfaces"),
    "both halves apart": ("\udc00 whale \ud83d", "? whale ?"),
    "NUL": ("a\x00whale", None),
    "right to left": ("\u202ea whale\u202c \u200f", None),
    "combining marks": ("e" + "\u0301" * 200_000, None),
    "unassigned": ("\U000e0fff\uffff whale", None),
}


@on(9)
@pytest.mark.parametrize("case", UNICODE)
def test_09_unicode_of_any_kind_is_scored(backend, case):
    """Hostile text scores finitely, alone as beside others; a lone surrogate scores as "?"."""
    reranker, _ = tapped(backend)
    text, same_as = UNICODE[case]
    alone = reranker.score(QUERY, [text])
    assert np.isfinite(alone).all()
    beside = reranker.score(QUERY, [*texts(3), text])
    np.testing.assert_allclose(beside[3:], alone, atol=TOLERANCE[backend], rtol=0)
    assert np.isfinite(reranker.score(text, ["whales"])).all()
    if same_as is not None:
        assert reranker.score(QUERY, [same_as]) == alone
    reranker.close()


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
        assert queued(reranker) == 1000
        assert all(future.cancel() for future in futures)
        assert queued(reranker) == 0
        done, _ = wait(futures, PATIENCE)
        assert len(done) == 1000
    first.result(PATIENCE)
    assert tap.sizes == [1]
    assert_serves(reranker)
    reranker.close()
    gc.collect()
    assert not [it for it in gc.get_objects() if type(it) is Request]


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
    assert patient.result(PATIENCE).shape == (4,)
    assert first.result(PATIENCE).shape == (1,)
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


# -- 13: a worker that dies -----------------------------------------------------------------------


class Death(BaseException):
    """Not an Exception: no handler of errors catches it."""


@on(13)
@pytest.mark.parametrize("error", [Death, SystemExit, KeyboardInterrupt])
def test_13_base_exception_wakes_every_waiter(backend, error):
    """A dead worker fails all requests with the cause, refuses the next, and leaves no thread."""
    reranker, tap = tapped(backend)
    tap.rule = poisoned(reranker, lambda: error("gone"))
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
def test_13_base_exception_is_got_over_by_loading_again(backend):
    """As the error says: the next to ask for the broken reranker's configuration loads it anew."""
    if backend == "stub":
        pytest.skip("a stub has no configuration to share")
    config = RerankerConfig(model=str(checkpoint(backend)), backend=backend, device="cpu")
    adapter = LazyReranker()
    broken = adapter.get(config)
    expected = broken.score(QUERY, texts(3))

    def die(batch):
        raise Death("gone")

    for worker in broken._scheduler._engine._workers:
        worker.forward = die
    with pytest.raises(ClosedError, match="load the model again"):
        broken.score(QUERY, texts(3))
    again, more = Reranker.shared(config), adapter.get(config)
    assert broken.closed
    assert adapter.get(config) is more  # an adapter drops what broke, and keeps what it loaded
    broken.close()  # a share of the broken one alone
    more.close()
    np.testing.assert_array_equal(again.score(QUERY, texts(3)), expected)
    again.close()
    assert rerank_threads() == []


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


# -- 17, 18: too much work ------------------------------------------------------------------------


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
    assert all(future.result().shape == (2,) for future in accepted)
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
    assert big.result(PATIENCE).shape == (200,)
    assert first.done()
    assert_serves(reranker)
    reranker.close()


@on(17)
def test_17_overload_blocks_in_order_until_there_is_room(backend):
    """Blocked callers are let in first come, first served; none is lost, none is refused."""
    reranker, tap = tapped(backend, max_queue_tokens=200)
    with tap.held():
        first = reranker.submit(QUERY, ["held"])
        assert tap.entered.wait(PATIENCE)
        full = reranker.submit(QUERY, texts(20))
        futures: dict[int, Future] = {}
        threads = []
        for n in range(8):
            thread = threading.Thread(
                target=lambda n=n: futures.update({n: reranker.submit(QUERY, texts(3, start=n))})
            )
            thread.start()
            threads.append(thread)
            until(lambda n=n: reranker.stats()["unfinished"] == 3 + n)
        assert futures == {}
        cancelled = reranker.stats()["unfinished"]
        assert cancelled == 10
    for thread in threads:
        thread.join(PATIENCE)
    wait([first, full, *futures.values()], PATIENCE)
    assert list(futures) == sorted(futures)
    assert all(future.result().shape == (3,) for future in futures.values())
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


def test_17_overload_lets_callers_in_by_when_they_asked():
    """An async call that waited to be tokenised goes before a sync one that asked after it."""
    turns = threading.Semaphore(0)
    order: list[int] = []

    def forward(batch):
        order.extend(batch.lengths.tolist())
        assert turns.acquire(timeout=PATIENCE)
        return checksum(batch)

    with Scheduler([forward], max_queue_pairs=1, tokenise_threads=1) as scheduler:
        engine = scheduler._engine
        futures = [scheduler.submit(request([1]))]
        until(lambda: order == [1])
        futures.append(scheduler.submit(request([2])))  # fills the queue
        futures += [scheduler.submit_call(lambda n=n: request([n])) for n in (3, 4)]
        until(lambda: len(engine._blocked) == 1)  # 3 is tokenised and waits; 4 is neither
        sync = threading.Thread(target=lambda: futures.append(scheduler.submit(request([5]))))
        sync.start()
        until(lambda: len(engine._blocked) == 2)
        turns.release()
        until(lambda: not engine._calls and len(engine._blocked) == 2)  # 3 is in, 4 tokenised
        for _ in range(4):
            turns.release()
        sync.join(PATIENCE)
        wait(futures, PATIENCE)
    assert order == [1, 2, 3, 4, 5]


def test_17_overload_counts_what_is_not_tokenised_yet():
    """A burst of async calls fills an idle queue before any of them is tokenised, and who was let
    in stays in: a sync call of the meantime does not take the place, a cancelled one gives it back.
    """
    release = threading.Event()
    ran = []

    def encode():
        ran.append(True)
        assert release.wait(PATIENCE)
        return request([5] * 20)

    limits = {"max_queue_pairs": 60, "when_full": "error", "tokenise_threads": 1}
    with Scheduler([checksum], **limits) as scheduler:
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
    assert kept.result(PATIENCE).shape == (1,)
    assert_serves(reranker)
    reranker.close()


@on(18)
def test_18_starvation_of_a_large_request(backend):
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
    with Scheduler([Held(forward)], max_batch_tokens=1000) as scheduler:
        held = scheduler._engine._workers[0].forward
        scheduler.submit(request([100]))
        assert held.entered.wait(PATIENCE)
        encoded = request([100] * 500)
        big = scheduler.submit(encoded)
        done_at: list[int] = []
        big.add_done_callback(lambda _: done_at.append(forwards))
        held.release.set()
        np.testing.assert_array_equal(big.result(PATIENCE), checksum(encoded))
    assert done_at[0] <= 3 * 50


@on(18)
def test_18_starvation_of_a_small_request(backend):
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


# -- 19 to 21: files and tokenizers ---------------------------------------------------------------


@on(19)
def test_19_tokeniser_is_shared_by_sixteen_threads(backend):
    """One tokenizer, sixteen threads, texts of all lengths: ids bit for bit as one by one."""
    reranker, _ = tapped(backend)
    chunks = [PAIRS[n % 7 :: 7] for n in range(16)]
    expected = [reranker._scorer.encode(chunk).batch for chunk in chunks]
    scores = [reranker.score_pairs(chunk) for chunk in _askable(chunks)]
    failures: list[object] = []

    def caller(n: int) -> None:
        for _ in range(20):
            batch = reranker._scorer.encode(chunks[n]).batch
            if not (
                np.array_equal(batch.input_ids, expected[n].input_ids)
                and np.array_equal(batch.lengths, expected[n].lengths)
            ):
                failures.append(n)

    with ThreadPoolExecutor(16) as pool:
        wait([pool.submit(caller, n) for n in range(16)], PATIENCE)
        again = [pool.submit(reranker.score_pairs, chunk) for chunk in _askable(chunks)]
        for future, alone in zip(again, scores, strict=True):
            np.testing.assert_allclose(
                future.result(PATIENCE), alone, atol=TOLERANCE[backend], rtol=0
            )
    assert failures == []
    reranker.close()


def _askable(chunks):
    """Without the pairs whose query is blank, which a Reranker refuses."""
    return [[pair for pair in chunk if pair[0].strip()] for chunk in chunks]


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _weights(folder: Path) -> Path:
    (file,) = [*folder.rglob("*.onnx"), *folder.rglob("*.safetensors")]
    return file


def _set_labels(folder: Path) -> None:
    (folder / "rerank_adapters.json").unlink(missing_ok=True)  # which speaks for our own exports
    path = folder / "config.json"
    settings = json.loads(path.read_text("utf-8"))
    settings["id2label"] = {str(n): f"LABEL_{n}" for n in range(3)}
    settings["label2id"] = {f"LABEL_{n}": n for n in range(3)}
    path.write_text(json.dumps(settings), "utf-8")


def _newer_opset(folder: Path) -> None:
    import onnx

    model = onnx.load(_weights(folder))
    model.opset_import[0].version = 999
    onnx.save(model, _weights(folder))


DAMAGE = {
    # what: (the damage, a word of the error, the only backend it concerns)
    # safetensors does not say which file it was reading, so torch's error names the folder.
    "weights cut in half": (
        lambda f: _truncate(_weights(f)),
        r"model\.onnx|cannot load \S*checkpoint: ",
        None,
    ),
    "no weights": (lambda f: _weights(f).unlink(), r"model\.(onnx|safetensors)|weights", None),
    "config is not JSON": (
        lambda f: (f / "config.json").write_text('{"model_type": '),
        r"config\.json",
        None,
    ),
    "no config": (lambda f: (f / "config.json").unlink(), r"config\.json", None),
    "no tokenizer": (lambda f: [p.unlink() for p in f.glob("tokenizer*")], r"tokenizer", None),
    "tokenizer is not JSON": (
        lambda f: (f / "tokenizer.json").write_text("{"),
        r"tokenizer\.json",
        None,
    ),
    "three labels": (_set_labels, r"3", None),
    "opset of the future": (_newer_opset, r"model\.onnx", "onnx"),
    "empty folder": (lambda f: [shutil.rmtree(f), f.mkdir()], r"checkpoint", None),
}


@on(20)
@pytest.mark.parametrize("damage", DAMAGE)
def test_20_damaged_checkpoints_name_the_file(backend, damage, tmp_path):
    """A ModelError says which file is wrong; no thread is left; a good folder still loads."""
    inflict, words, only = DAMAGE[damage]
    if only not in (None, backend):
        pytest.skip(f"only {only} reads that file")
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint(backend), folder)
    inflict(folder)
    before = threading.active_count()
    with pytest.raises(ModelError, match=words):
        Reranker.from_pretrained(str(folder), backend=backend, device="cpu")
    assert threading.active_count() == before
    if damage == "weights cut in half":
        with tapped(backend)[0] as good:
            assert_serves(good)


@on(20)
def test_20_damaged_after_load_does_not_matter(backend, tmp_path):
    """A folder deleted after loading is no longer needed."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint(backend), folder)
    with Reranker.from_pretrained(str(folder), backend=backend, device="cpu") as reranker:
        expected = reranker.score(QUERY, texts(3))
        shutil.rmtree(folder)
        np.testing.assert_array_equal(reranker.score(QUERY, texts(3)), expected)


FULL_DISK = """
    import pathlib, resource, signal, subprocess, sys
    folder = pathlib.Path(sys.argv[1])
    if sys.argv[3] == "mount":
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=True)
        (folder / "other").write_bytes(bytes(900_000))
    else:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        (folder / "other").write_bytes(b"")
    from rerank_adapters import bundled
    from rerank_adapters.errors import RerankError
    from rerank_adapters.export import export_onnx
    if sys.argv[3] == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        if sys.argv[4] == "onnx":
            export_onnx(pathlib.Path(sys.argv[2]), folder / "out", dtype="float32")
        else:
            bundled.unpack(folder)
    except (RerankError, OSError) as error:
        print("failed:", type(error).__name__, error)
    print("left:", sorted(str(it.relative_to(folder)) for it in folder.rglob("*")))
"""


OWN_MOUNTS = ("unshare", "--user", "--map-root-user", "--mount")


def may_mount(folder: Path) -> bool:
    """Whether this system lets a test mount a small file system where nobody else sees it."""
    command = [*OWN_MOUNTS, "mount", "-t", "tmpfs", "tmpfs", folder]
    try:
        return not subprocess.run(command, capture_output=True, check=False).returncode
    except FileNotFoundError:
        return False


@on(21)
@pytest.mark.parametrize("disk", ["mount", "limit"])
def test_21_full_disk_leaves_no_half_checkpoint(backend, disk, tmp_path):
    """Exporting, or unpacking for torch, onto a full disk is an error, and nothing half stays.

    The file system of 1 MB is the real thing; where none may be mounted, the kernel's limit on the
    size of files stands in: writes fail half-way through a file as they do on a full disk.
    """
    if disk == "mount" and not may_mount(tmp_path):
        pytest.skip("this system lets no test mount a small file system: `limit` stands in")
    child = [
        sys.executable,
        "-c",
        textwrap.dedent(FULL_DISK),
        tmp_path,
        build("bert"),
        disk,
        backend,
    ]
    done = subprocess.run(
        [*(OWN_MOUNTS if disk == "mount" else ()), *child],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "failed:" in done.stdout
    assert "left: ['other']" in done.stdout


# -- 22: the end ----------------------------------------------------------------------------------


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
    assert rerank_threads() == []


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
    assert future.result(PATIENCE).shape == (2,)
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
    np.testing.assert_allclose(second.result(PATIENCE), expected, atol=TOLERANCE[backend], rtol=0)
    assert first.result(PATIENCE).shape == (1,)
    until(lambda: rerank_threads() == [])


def test_22_close_while_a_request_is_tokenised():
    """Who is being tokenised, and who waits for it, fail at once; nothing reaches the forward."""
    entered, release = threading.Event(), threading.Event()
    held = Held()

    def encode():
        entered.set()
        assert release.wait(PATIENCE)
        return request([5])

    scheduler = Scheduler([held], tokenise_threads=1)
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
    assert rerank_threads() == []


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


# -- 23: for a long time --------------------------------------------------------------------------


@on(23)
def test_23_soak_keeps_nothing(backend):
    """20,000 requests of random length: no thread, descriptor or request more than at the start."""
    from tests.benchmarks.soak import soak

    report = soak(20_000, samples=4)
    assert report.requests == 20_000
    assert report.faults() == []
    # One request kept with its Future is over 1 kB: all of them would be 15 MB and more.
    assert report.memory[-1] - report.memory[1] < 10
    gc.collect()
    assert not [it for it in gc.get_objects() if type(it) is Request]


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
        with contextlib.suppress(ClosedError):
            first.result(PATIENCE)
