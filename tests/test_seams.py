"""The seams hold: parts of one's own run through Reranker, and wrappers keep what they wrap."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import pytest
from blockbuster import blockbuster_ctx

from rerank_adapters import BackendError, ConfigError, InputError, Reranker, RerankerConfig
from rerank_adapters.backends import BACKENDS
from rerank_adapters.calls import LOOK_AHEAD_PAIRS, inside
from rerank_adapters.futures import done, then
from rerank_adapters.loading import load
from rerank_adapters.protocols import (
    BackendTraits,
    Call,
    ModelInfo,
    Pair,
    Queue,
    Ranker,
    RerankRequest,
    Scored,
    Scorer,
    TokenCounter,
)
from rerank_adapters.scorers import Wrapper
from tests import own_backend
from tests.checkpoints import build
from tests.fakes import (
    CountingBackend,
    FaultyBackend,
    HeldBackend,
    encoded,
    reranker_over,
    scorer_over,
    token_logits,
)

DOCUMENTS = ["a ferry", "the harbour at night", "rain", "a ferry"]


class LengthScorer:
    """A scorer of one's own, in ten lines: a document scores its length."""

    def submit_pairs(self, pairs: Sequence[Pair], call: Call) -> Future[Scored]:
        if call.prompts is not None:
            raise InputError("prompt must be None: lengths need no instruction")
        scores = np.array([len(document) for _, document in pairs], np.float32)
        return done(Scored(scores, None, np.zeros(len(pairs), np.bool_)))

    def info(self) -> ModelInfo:
        return ModelInfo(model="length")

    def close(self) -> None:
        """Holds nothing."""


class Negated(Wrapper):
    """A wrapper of one's own: the worst first."""

    def submit_pairs(self, pairs: Sequence[Pair], call: Call) -> Future[Scored]:
        inner = self.inner.submit_pairs(pairs, call)
        return then(inner, lambda it: replace(it, scores=-it.scores, logits=-it.keys))


class Seeing(Wrapper):
    """A wrapper that notes what passes: the context's name, the deadline, the groups."""

    name: contextvars.ContextVar[str] = contextvars.ContextVar("name", default="nobody")

    def __init__(self, inner: Scorer) -> None:
        super().__init__(inner)
        self.seen: list[tuple[str, str, Call]] = []

    def submit_pairs(self, pairs: Sequence[Pair], call: Call) -> Future[Scored]:
        self.seen.append((self.name.get(), threading.current_thread().name, call))
        return self.inner.submit_pairs(pairs, call)


def test_a_scorer_of_ones_own_ranks() -> None:
    """Ten lines are enough: scores, rankings, many requests, awaited twins, no queue needed."""
    with Reranker.over(LengthScorer()) as reranker:
        assert reranker.score("q", DOCUMENTS).tolist() == [7, 20, 4, 7]
        assert [it.index for it in reranker.rerank("q", DOCUMENTS)] == [1, 0, 3, 2]
        assert [it.score for it in asyncio.run(reranker.arerank("q", DOCUMENTS, top_n=2))] == [
            20,
            7,
        ]
        assert reranker.submit("q", DOCUMENTS, top_n=1).result()[0].index == 1
        assert [len(r) for r in reranker.rerank_many([("q", ["a"]), ("q", [])])] == [1, 0]
        assert reranker.info().model == "length"
        assert reranker.stats() == {}
        assert reranker.max_length == 2**30
        with pytest.raises(InputError, match="LengthScorer"):
            reranker.count_tokens(["a"])
        with pytest.raises(InputError, match="prompt must be None"):
            reranker.rerank("q", DOCUMENTS, prompt="Be kind.")


def test_what_is_no_scorer_is_refused() -> None:
    """The error names what a scorer has."""
    with pytest.raises(ConfigError, match="scorer must have submit_pairs, info and close: got 3"):
        Reranker.over(3)


def test_a_backend_of_ones_own_is_one_file_and_one_entry(monkeypatch) -> None:
    """Loaded by its name, with its own traits; an unknown name and dtype are refused by name."""
    with pytest.raises(
        ConfigError, match='backend must be one of "auto", "onnx", "openvino", "torch": got'
    ):
        RerankerConfig(backend="own")
    monkeypatch.setitem(BACKENDS, "own", own_backend.ENTRY)
    folder = str(build("bert"))
    with pytest.raises(ConfigError, match='dtype "int8" needs backend "onnx": got backend="own"'):
        RerankerConfig(backend="own", dtype="int8")
    with Reranker(folder, backend="own", device="npu:1", activation="identity") as reranker:
        info = reranker.info()
        assert (info.backend, info.device, info.workers) == ("own", "npu:1", 2)
        assert info.max_batch_tokens == 128
        assert info.details["colour"] == "blue"
        batch = encoded([("q", document) for document in DOCUMENTS], max_length=512)
        expected = token_logits(batch)[:, 0]
        np.testing.assert_array_equal(reranker.score("q", DOCUMENTS), expected)
        got = asyncio.run(reranker.ascore("q", DOCUMENTS))
        np.testing.assert_array_equal(got, expected)


def test_two_devices_have_each_their_own_budget() -> None:
    """A batch of one device is cut by that device's traits, not by the first one's."""
    meeting = threading.Barrier(2)

    class Meeting(CountingBackend):
        """Its first forward waits for the other's: both have one."""

        def logits(self, batch):
            if not self.forwards:
                meeting.wait(30)
            return super().logits(batch)

    small = Meeting(traits=BackendTraits(batch_tokens=64))
    large = Meeting(traits=BackendTraits(batch_tokens=4096))
    with reranker_over(small, large) as reranker:
        reranker.score("q", [f"word {number}" for number in range(100, 900)])
    sizes = [
        max(len(batch) * int(batch.lengths.max()) for batch in backend.batches)
        for backend in (small, large)
    ]
    assert sizes[0] <= 64 < 1000 < sizes[1] <= 4096


def test_the_seams_are_what_real_parts_have() -> None:
    """The chain that is loaded, its queue and tokens, a Reranker: each fits its protocol."""
    scorer = scorer_over(CountingBackend())
    assert isinstance(scorer, Scorer)
    assert isinstance(inside(scorer, Queue), Queue)
    assert inside(scorer, TokenCounter).max_length == 64
    assert inside(LengthScorer(), Queue) is None
    wrapped = Negated(Seeing(scorer))
    assert inside(wrapped, Queue) is inside(scorer, Queue)
    with Reranker.over(wrapped) as reranker:
        assert isinstance(reranker, Ranker)
        assert isinstance(reranker, TokenCounter)
        assert reranker.max_length == 64
        assert reranker.count_tokens(["a ferry"]) == [len(encoded([("", "a ferry")]).input_ids) - 3]


def test_a_wrapper_around_a_wrapper_gives_what_it_should() -> None:
    """Twice negated is as before, once is the other way round; the queue is found through both."""
    backend = CountingBackend()
    plain = reranker_over(CountingBackend())
    order = [it.index for it in plain.rerank("q", DOCUMENTS[:3])]
    with Reranker.over(Negated(Negated(scorer_over(backend)))) as twice:
        assert [it.index for it in twice.rerank("q", DOCUMENTS[:3])] == order
        assert twice.stats()["pairs"] == 3
    with Reranker.over(Negated(scorer_over(CountingBackend()))) as once:
        assert [it.index for it in once.rerank("q", DOCUMENTS[:3])] == order[::-1]
    plain.close()


def nested(backend: CountingBackend) -> tuple[Reranker, Seeing]:
    seeing = Seeing(Negated(scorer_over(backend)))
    return Reranker.over(Negated(seeing)), seeing


def test_the_deadline_is_set_once_and_holds_through_wrappers() -> None:
    """Each layer sees the same moment; a held backend's late caller gets TimeoutError, no other."""
    backend = HeldBackend()
    reranker, seeing = nested(backend)
    with reranker:
        first = reranker.submit("q", ["a"])
        assert backend.entered.wait(30)
        before = time.monotonic()
        with pytest.raises(TimeoutError):
            reranker.score("q", ["b"], timeout=0.02)
        assert before < seeing.seen[1][2].deadline < before + 1
        with pytest.raises(TimeoutError):
            asyncio.run(reranker.ascore("q", ["c"], timeout=0.02))
        backend.release.set()
        assert len(first.result(30)) == 1
        assert reranker.stats()["timed_out"] == 2
    assert backend.rows == 1, "what timed out in the queue never ran"


async def test_cancelling_reaches_the_queue_through_wrappers() -> None:
    """A cancelled task's pairs never run, and the loop is never blocked."""
    backend = HeldBackend()
    reranker, _ = nested(backend)
    with blockbuster_ctx():
        first = asyncio.create_task(reranker.ascore("q", ["a"]))
        while not backend.entered.is_set():
            await asyncio.sleep(0.005)
        second = asyncio.create_task(reranker.ascore("q", ["b", "c"]))
        while reranker.stats()["queue_pairs"] < 2:
            await asyncio.sleep(0.005)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        assert reranker.stats()["queue_pairs"] == 0
        backend.release.set()
        assert (await first).shape == (1,)
    assert backend.rows == 1
    await reranker.aclose()


async def test_wrappers_run_in_the_callers_context_off_the_loop() -> None:
    """Async calls prepare in a thread of the pool, and see the caller's context variables."""
    reranker, seeing = nested(CountingBackend())
    seeing.name.set("ada")
    await reranker.arerank_many([("q", ["a", "b"]), ("r", ["c"])])
    name, thread, call = seeing.seen[0]
    assert (name, thread) == ("ada", "rerank-prepare")
    assert call.groups.tolist() == [0, 2, 3]
    await asyncio.to_thread(reranker.rerank, "q", ["a"])
    assert seeing.seen[1][1] != "rerank-prepare"
    reranker.close()


POISON = "supercalifragilistic"


@pytest.fixture
def poisoned() -> Iterator[tuple[Reranker, FaultyBackend]]:
    """Wrappers around a wrapper over a backend that fails on one document."""
    row = encoded([("two", POISON)]).input_ids.tolist()

    def rule(batch):
        rows = [batch.take([at]).input_ids.tolist() for at in range(len(batch))]
        return RuntimeError("kernel fault") if row in rows else None

    backend = FaultyBackend(rule)
    with nested(backend)[0] as reranker:
        yield reranker, backend


REQUESTS = [
    ("one", ["a", "b"]),
    ("two", ["c", POISON]),
    ("", ["d"]),
    ("three", []),
    ("four", ["e"]),
]


@pytest.mark.parametrize("awaited", [False, True])
def test_a_request_fails_alone_with_return_exceptions(poisoned, awaited: bool) -> None:
    """Bad input and a failing forward stand where they belong; the others have their rankings."""
    reranker, _ = poisoned
    ask: Callable[..., list] = reranker.rerank_many
    if awaited:

        def ask(*args, **kwargs):
            return asyncio.run(reranker.arerank_many(*args, **kwargs))

    found = ask(REQUESTS, return_exceptions=True)
    assert isinstance(found[1], BackendError)
    assert "kernel fault" in str(found[1])
    assert isinstance(found[2], InputError)
    assert str(found[2]) == "requests[2]: query must not be blank: got ''"
    for index in (0, 3, 4):
        assert found[index] == reranker.rerank(*REQUESTS[index])
    with pytest.raises(InputError, match=r"requests\[2\]"):
        ask(REQUESTS)
    with pytest.raises(BackendError, match="kernel fault"):
        ask(REQUESTS[:2])


def test_a_closed_queue_is_every_requests_fate(poisoned) -> None:
    """Nothing is asked again where the reason is not one request's own."""
    reranker, backend = poisoned
    inside(reranker._caller.scorer, Queue)._admission.close()
    found = reranker.rerank_many([("one", ["a"]), ("two", ["b"])], return_exceptions=True)
    assert [type(it).__name__ for it in found] == ["ClosedError", "ClosedError"]
    assert backend.forwards == 0


def test_what_a_scorer_must_not_answer_is_refused() -> None:
    """NaN never sorts, a missing row is never filled: BackendError, whoever wrote the scorer."""

    class Wrong(LengthScorer):
        answer = np.array([1.0, np.nan], np.float32)

        def submit_pairs(self, pairs, call):
            return done(Scored(self.answer, None, np.zeros(len(self.answer), np.bool_)))

    reranker = Reranker.over(Wrong())
    with pytest.raises(BackendError, match="scores must be finite: got nan for pair 1"):
        reranker.rerank("q", ["a", "b"])
    with pytest.raises(BackendError, match=r"scores of shape \(2,\) for 3 pairs"):
        reranker.rerank("q", ["a", "b", "c"])


def test_logits_rank_and_scores_are_shown() -> None:
    """Where a scorer answers both, the order is the logits', spans travel along."""

    class Saturated(LengthScorer):
        def submit_pairs(self, pairs, call):
            logits = np.array([20.0, 30.0, 25.0], np.float32)
            spans = np.array([[0, 1], [2, 5], [3, 9]])
            return done(Scored(np.ones(3, np.float32), logits, np.zeros(3, np.bool_), spans))

    ranking = Reranker.over(Saturated()).rerank("q", ["a", "b", "c"])
    assert [(it.index, it.score, it.span) for it in ranking] == [
        (1, 1.0, (2, 5)),
        (2, 1.0, (3, 9)),
        (0, 1.0, (0, 1)),
    ]


def test_the_core_is_one_chain_whatever_loads_it() -> None:
    """`load` gives a Scorer that `over` takes; closing the Reranker closes it."""
    scorer = load(RerankerConfig(model=str(build("bert")), backend="torch", device="cpu"))
    with Reranker.over(scorer) as reranker:
        expected = reranker.score("q", DOCUMENTS)
    with Reranker(build("bert"), backend="torch", device="cpu") as same:
        np.testing.assert_array_equal(same.score("q", DOCUMENTS), expected)
    assert inside(scorer, Queue).closed


@pytest.mark.parametrize("awaited", [False, True])
def test_what_cannot_be_tokenised_is_its_callers_error_in_every_way(monkeypatch, awaited) -> None:
    """An error of tokenising is raised as it is, sync, async and through a Future."""
    monkeypatch.setitem(BACKENDS, "own", own_backend.ENTRY)
    options = {"backend": "own", "max_length": 16, "truncation": "only_second"}
    with Reranker(str(build("bert")), **options) as reranker:

        def ask(requests: list, **options: bool) -> list:
            if awaited:
                return asyncio.run(reranker.arerank_many(requests, **options))
            return reranker.rerank_many(requests, **options)

        query = "a ferry " * 40
        with pytest.raises(InputError, match="truncation='only_second' keeps the query whole"):
            ask([(query, DOCUMENTS)])
        outcome = ask([("q", ["a"]), (query, DOCUMENTS)], return_exceptions=True)
        assert len(outcome[0]) == 1
        assert isinstance(outcome[1], InputError)
        assert reranker.stats()["unfinished"] == 0
        assert reranker.stats()["failed"] >= 2


# -- streams ------------------------------------------------------------------------------------


def test_a_stream_is_ranked_in_order_with_a_bounded_look_ahead() -> None:
    """Equal to rerank_many; requests are read while at most LOOK_AHEAD_PAIRS are in flight."""
    documents = [f"document {number}" for number in range(256)]
    requests = [(f"query {number}", documents) for number in range(64)]
    read = []

    def stream():
        for request in requests:
            read.append(request)
            yield request

    with reranker_over(CountingBackend()) as reranker:
        rankings = []
        for ranking in reranker.rerank_iter(stream(), top_n=3):
            ahead = (len(read) - len(rankings)) * len(documents)
            assert ahead <= LOOK_AHEAD_PAIRS + len(documents)
            rankings.append(ranking)
        assert rankings == reranker.rerank_many(requests, top_n=3)


def test_a_streams_results_do_not_pile_up() -> None:
    """What was handed over is not kept: of 300 requests few are alive at any time."""
    refs: list[weakref.ref] = []

    class Kept(list):
        """A list that weak references can watch."""

    def tracked():
        for number in range(300):
            documents = Kept([f"document {number} {at}" for at in range(64)])
            refs.append(weakref.ref(documents))
            yield f"query {number}", documents
            del documents

    most = 0
    with reranker_over(CountingBackend()) as reranker:
        for _ in reranker.rerank_iter(tracked(), top_n=1):
            gc.collect(0)
            most = max(most, sum(ref() is not None for ref in refs))
    assert most <= LOOK_AHEAD_PAIRS // 64 + 2


def test_a_stream_raises_in_its_turn_and_drops_what_is_in_flight() -> None:
    """The third request is bad: two rankings come first; then nothing is left in the queue."""
    backend = CountingBackend()
    with reranker_over(backend) as reranker:
        requests = [("a", ["x"]), ("b", ["y"]), ("", ["z"]), ("d", ["w"])]
        rankings = reranker.rerank_iter(requests)
        with pytest.raises(InputError, match="query must not be blank"):
            list(rankings)
        held = reranker.rerank_iter([("a", ["x"])] * 5)
        next(held)
        held.close()
        assert reranker.stats()["unfinished"] == 0


# -- progress -----------------------------------------------------------------------------------


@pytest.mark.parametrize("awaited", [False, True])
def test_progress_counts_every_pair_once(awaited: bool) -> None:
    """Repeated pairs too, whether one batch does them or many."""
    counts: list[int] = []
    documents = [f"document {number}" for number in range(300)] + ["document 0"] * 5
    with reranker_over(CountingBackend()) as reranker:
        if awaited:
            asyncio.run(reranker.arerank_many([("q", documents)], on_progress=counts.append))
        else:
            reranker.rerank_many([("q", documents)], on_progress=counts.append)
        list(reranker.rerank_iter([("q", documents[:10])] * 3, on_progress=counts.append))
    assert sum(counts) == 305 + 30
    assert len(counts) > 3


def test_progress_shows_a_bar(capsys) -> None:
    """progress=True writes tqdm's bar to stderr, with the total; without it nothing."""
    with reranker_over(CountingBackend()) as reranker:
        reranker.rerank_many([("q", DOCUMENTS)])
        assert capsys.readouterr().err == ""
        reranker.rerank_many([("q", DOCUMENTS)], progress=True)
        assert "4/4" in capsys.readouterr().err
        list(reranker.rerank_iter([("q", DOCUMENTS)], progress=True))
        assert "4pair" in capsys.readouterr().err.replace(" ", "")


def test_requests_may_be_values() -> None:
    """A RerankRequest is what a tuple stands for; what goes with documents must fit them."""
    with reranker_over(CountingBackend()) as reranker:
        request = RerankRequest("q", DOCUMENTS, ids=["a", "b", "c", "d"])
        assert reranker.rerank_many([request]) == [reranker.rerank("q", DOCUMENTS)]
        with pytest.raises(InputError, match="ids must hold one value per document: got 1 for 4"):
            reranker.rerank_many([replace(request, ids=["a"])])
