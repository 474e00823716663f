"""Adapters over any ranker: one's own, a scorer of one's own, wrappers around wrappers.

And over shared models: what is loaded once, what is freed, what is an adapter's own.
"""

from __future__ import annotations

import asyncio
import contextvars
import copy
import gc
import inspect
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from blockbuster import blockbuster_ctx
from langchain_core.documents import Document
from llama_index.core.schema import MetadataMode, NodeWithScore, TextNode
from pydantic import model_validator

from rerank_adapters import (
    BackendError,
    ClosedError,
    ConfigError,
    InputError,
    RankedDocument,
    Ranking,
    Reranker,
    RerankError,
    sharing,
)
from rerank_adapters.backends import BACKENDS
from rerank_adapters.futures import done, then
from rerank_adapters.langchain import (
    CrossEncoderCompressor,
    LangChainCrossEncoder,
    RerankingMiddleware,
    RerankingRetriever,
)
from rerank_adapters.llama_index import CrossEncoderPostprocessor
from rerank_adapters.protocols import Call, ModelInfo, Pair, Ranker, RerankRequest, Scored
from rerank_adapters.scorers import Wrapper
from tests import own_backend
from tests.checkpoints import build
from tests.fakes import (
    CountingBackend,
    FaultyBackend,
    HeldBackend,
    encoded,
    scorer_over,
    token_logits,
)
from tests.langchain_adapter.samples import KEY, ListRetriever
from tests.langchain_adapter.test_middleware import calls, run

QUERY = "which is the longest?"
TEXTS = ["three", "a", "the longest of them", "seven ok"]
BY_LENGTH = [("d2", 19.0), ("d3", 8.0), ("d0", 5.0), ("d1", 1.0)]
"""(id, score) of TEXTS by their length."""

Scores = list[tuple[str, float]]


class LengthRanker:
    """A ranker of one's own, in ten lines: a document scores its length."""

    def rerank_many(
        self, requests, *, top_n=None, score_threshold=None, timeout=None, return_exceptions=False
    ):
        return [self.rank(one.documents).top(top_n) for one in requests]

    async def arerank_many(self, requests, **options):
        return self.rerank_many(requests, **options)

    def info(self):
        return ModelInfo(model="length")

    def close(self):
        self.closed = True

    def rank(self, documents: Sequence[str]) -> Ranking:
        order = sorted(range(len(documents)), key=lambda index: -len(documents[index]))
        return Ranking([RankedDocument(index, len(documents[index])) for index in order])


class LengthScorer:
    """A scorer of one's own, in ten lines: the same."""

    def submit_pairs(self, pairs: Sequence[Pair], call: Call) -> Future[Scored]:
        scores = np.array([len(document) for _, document in pairs], np.float32)
        return done(Scored(scores, None, np.zeros(len(pairs), np.bool_)))

    def info(self) -> ModelInfo:
        return ModelInfo(model="length")

    def close(self) -> None:
        self.closed = True


@pytest.fixture(params=[LengthRanker, lambda: Reranker.over(LengthScorer())], ids=["own", "over"])
def ranker(request: pytest.FixtureRequest) -> Ranker:
    """A ranker of one's own, and Reranker over a scorer of one's own."""
    return request.param()


def documents() -> list[Document]:
    return [Document(text, id=f"d{index}") for index, text in enumerate(TEXTS)]


def nodes() -> list[NodeWithScore]:
    return [
        NodeWithScore(node=TextNode(text=text, id_=f"d{index}")) for index, text in enumerate(TEXTS)
    ]


def of_documents(found: Sequence[Document]) -> Scores:
    return [(str(one.id), one.metadata[KEY]) for one in found]


def of_nodes(found: Sequence[NodeWithScore]) -> list[tuple[str, float | None]]:
    return [(one.node_id, one.score) for one in found]


async def answered(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """What *call* gives; where it is awaited, our code blocks no event loop."""
    if not inspect.iscoroutinefunction(call):
        return call(*arguments, **options)
    with blockbuster_ctx("rerank_adapters"):
        return await call(*arguments, **options)


# ---------------------------------------------------------------------- rankers of one's own


@pytest.mark.parametrize("way", ["compress_documents", "acompress_documents"])
async def test_a_compressor_over_any_ranker(ranker: Ranker, way: str) -> None:
    """Its order and scores, the threshold and the cut; the scores are Python floats."""
    compressor = CrossEncoderCompressor(reranker=ranker, top_n=None)
    call = getattr(compressor, way)
    found = await answered(call, documents(), QUERY)
    assert of_documents(found) == BY_LENGTH
    assert {type(score) for _, score in of_documents(found)} == {float}
    assert of_documents(await answered(call, documents(), QUERY, top_n=2)) == BY_LENGTH[:2]
    kept = await answered(call, documents(), QUERY, score_threshold=5.0)
    assert of_documents(kept) == BY_LENGTH[:3]


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
async def test_a_retriever_over_any_ranker(ranker: Ranker, way: str) -> None:
    """The candidates in its order; a batch of three queries likewise."""
    retriever = RerankingRetriever(base_retriever=ListRetriever(found=documents()), reranker=ranker)
    found = await answered(getattr(retriever, way), QUERY)
    assert of_documents(found) == BY_LENGTH[:3]
    batch = await answered(getattr(retriever, way.replace("invoke", "batch")), [QUERY] * 3)
    assert [of_documents(found) for found in batch] == [BY_LENGTH[:3]] * 3


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_middleware_over_any_ranker(ranker: Ranker, asynchronous: bool) -> None:
    """What a real agent's model reads of its tools' results is the ranker's choice."""
    script, middleware = [calls("news", "books")], RerankingMiddleware(reranker=ranker)
    if asynchronous:
        messages, _ = await answered(run, middleware, script, asynchronous=True)
    else:
        messages, _ = await run(middleware, script)
    left = [document for message in messages for document in message.artifact]
    assert len(left) == 3
    assert all(one.metadata[KEY] == len(one.page_content) for one in left)
    with pytest.raises(ConfigError, match="compressor has a reranker of its own"):
        RerankingMiddleware(CrossEncoderCompressor(), reranker=ranker)


def test_a_cross_encoder_over_any_ranker(ranker: Ranker) -> None:
    """Pairs of several queries, mixed, with repeats: each score stands where its pair stands."""
    pairs = [("one", "aaa"), ("two", "b"), ("one", "cc"), ("two", "b"), ("one", "aaa")]
    scores = LangChainCrossEncoder(reranker=ranker).score(pairs)
    assert scores == [3.0, 1.0, 2.0, 1.0, 3.0]
    assert {type(score) for score in scores} == {float}


@pytest.mark.parametrize("way", ["postprocess_nodes", "apostprocess_nodes"])
async def test_a_postprocessor_over_any_ranker(ranker: Ranker, way: str) -> None:
    """Its order and scores; without token counts long metadata stay where the node puts them."""
    postprocessor = CrossEncoderPostprocessor(reranker=ranker, top_n=None)
    call = getattr(postprocessor, way)
    assert of_nodes(await answered(call, nodes(), query_str=QUERY)) == BY_LENGTH
    long = TextNode(text="body", metadata={"summary": "word " * 500})
    (one,) = await answered(call, [NodeWithScore(node=long)], query_str=QUERY)
    assert one.score == len(long.get_content(MetadataMode.EMBED))
    batch = await answered(getattr(postprocessor, f"{way}_batch"), [(QUERY, nodes())] * 2)
    assert [of_nodes(found) for found in batch] == [BY_LENGTH] * 2


def test_a_given_ranker_is_left_open(ranker: Ranker) -> None:
    """A closed adapter is closed; the ranker that it was given is not."""
    for adapter in (
        CrossEncoderCompressor(reranker=ranker),
        LangChainCrossEncoder(reranker=ranker),
        CrossEncoderPostprocessor(reranker=ranker),
    ):
        adapter.close()
        with pytest.raises(ClosedError, match=f"the {type(adapter).__name__} is closed: make a"):
            adapter.warm()
    assert [len(it) for it in ranker.rerank_many([RerankRequest("q", ["a", "b"])])] == [2]


ADAPTERS: list[Callable[..., Any]] = [
    CrossEncoderCompressor,
    LangChainCrossEncoder,
    CrossEncoderPostprocessor,
    lambda **fields: RerankingRetriever(base_retriever=ListRetriever(found=[]), **fields),
]


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("wrong", [3, object(), Reranker, LengthScorer()])
def test_what_is_no_ranker_is_refused(adapter: Callable[..., Any], wrong: object) -> None:
    """The error names what a ranker has; a class is not one of its instances."""
    with pytest.raises(ConfigError, match="rerank_many, arerank_many, info and close: got"):
        adapter(reranker=wrong)


def test_a_ranker_and_a_name_are_not_mixed_up() -> None:
    """`model=` is a name and `reranker=` is a ranker; each error says where the other goes."""
    with pytest.raises(ConfigError, match="a name or a folder is given as model="):
        CrossEncoderCompressor(reranker="org/model")
    with pytest.raises(ConfigError, match="a ready ranker is given as reranker="):
        CrossEncoderCompressor(model=LengthRanker())


class Spoiled(LengthRanker):
    """A ranker whose answer is spoilt."""

    def __init__(self, spoil: Callable[[list[Ranking]], Any]) -> None:
        self.spoil = spoil

    def rerank_many(self, requests, **options):
        return self.spoil(super().rerank_many(requests, **options))


SPOILT = [
    (lambda found: found[:-1], "must return 1 rankings in a list"),
    (lambda found: None, "must return 1 rankings in a list"),
    (lambda found: [list(one) for one in found], "must return a Ranking per request"),
    (lambda found: [Ranking([*one, one[0]]) for one in found], "at most once: got index 2"),
    (lambda found: [Ranking([RankedDocument(9, 1.0)]) for _ in found], "at most once: got index 9"),
    (
        lambda found: [Ranking([RankedDocument(1, float("nan"))]) for _ in found],
        r"scores must be finite: got nan for documents\[1\]",
    ),
]


@pytest.mark.parametrize(("spoil", "message"), SPOILT)
async def test_an_answer_that_is_none_is_a_backend_error(spoil, message: str) -> None:
    """No adapter hands on a lost, repeated or unscored document."""
    ranker = Spoiled(spoil)
    compressor = CrossEncoderCompressor(reranker=ranker)
    with pytest.raises(BackendError, match=message):
        compressor.compress_documents(documents(), QUERY)
    with pytest.raises(BackendError, match=message):
        await compressor.acompress_documents(documents(), QUERY)
    with pytest.raises(BackendError, match=message):
        CrossEncoderPostprocessor(reranker=ranker).postprocess_nodes(nodes(), query_str=QUERY)
    with pytest.raises(BackendError, match=message):
        LangChainCrossEncoder(reranker=ranker).score([(QUERY, text) for text in TEXTS])


def test_a_cross_encoder_needs_every_score() -> None:
    """A ranker that cuts is fine for a compressor; a score that is missing is made up by nobody."""
    cutting = Spoiled(lambda found: [one.top(2) for one in found])
    found = CrossEncoderCompressor(reranker=cutting).compress_documents(documents(), QUERY)
    assert of_documents(found) == BY_LENGTH[:2]
    with pytest.raises(BackendError, match="must rank all 4 documents where top_n is None: got 2"):
        LangChainCrossEncoder(reranker=cutting).score([(QUERY, text) for text in TEXTS])


class Moody(LengthRanker):
    """A ranker that fails on some queries, as `return_exceptions` asks."""

    def rerank_many(self, requests, *, return_exceptions=False, **options):
        found = super().rerank_many(requests, **options)
        return [
            OSError("no route to host") if one.query == "bad" else ranking
            for one, ranking in zip(requests, found, strict=True)
        ]


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_ranker_s_errors_stay_with_their_inputs(asynchronous: bool) -> None:
    """One call of the ranker for all inputs; one that raises altogether fails them all."""
    given = [{"query": query, "documents": documents()} for query in ("good", "bad", " ", "fine")]
    compressor = CrossEncoderCompressor(reranker=Moody())
    batch = compressor.abatch if asynchronous else compressor.batch
    found = await answered(batch, given, return_exceptions=True)
    assert [type(one) for one in found] == [list, OSError, InputError, list]
    assert of_documents(found[0]) == of_documents(found[3]) == BY_LENGTH[:3]
    with pytest.raises(OSError, match="no route"):
        await answered(batch, given)
    broken = CrossEncoderCompressor(reranker=Spoiled(lambda _: _raise()))
    batch = broken.abatch if asynchronous else broken.batch
    found = await answered(batch, given, return_exceptions=True)
    assert [type(one) for one in found[:2]] == [ConnectionError] * 2
    assert [type(one) for one in found[2:]] == [InputError, ConnectionError]


def _raise() -> None:
    raise ConnectionError("gone")


# ------------------------------------------------------------------- wrappers around wrappers


class Doubled(Wrapper):
    """Twice the score."""

    def submit_pairs(self, pairs: Sequence[Pair], call: Call) -> Future[Scored]:
        inner = self.inner.submit_pairs(pairs, call)
        return then(inner, lambda scored: replace(scored, scores=2 * scored.scores))


USER: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="nobody")


class Noting(Wrapper):
    """Notes what passes, and in whose context."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.seen: list[tuple[str, Call]] = []

    def submit_pairs(self, pairs: Sequence[Pair], call: Call) -> Future[Scored]:
        self.seen.append((USER.get(), call))
        return self.inner.submit_pairs(pairs, call)


def nested(backend: CountingBackend) -> tuple[Reranker, Noting]:
    """A wrapper around a wrapper over the real queue: each score is twice that of the backend."""
    noting = Noting(scorer_over(backend))
    return Reranker.over(Doubled(noting)), noting


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_wrapped_scorer_under_an_adapter(asynchronous: bool) -> None:
    """Twice the scores that the core alone gives, in its order, in the caller's context."""
    plain = Reranker.over(scorer_over(CountingBackend()))
    wanted = [(f"d{one.index}", 2 * one.score) for one in plain.rerank(QUERY, TEXTS)]
    reranker, noting = nested(CountingBackend())
    compressor = CrossEncoderCompressor(reranker=reranker, top_n=None)
    USER.set("ada")
    call = compressor.acompress_documents if asynchronous else compressor.compress_documents
    assert of_documents(await answered(call, documents(), QUERY)) == wanted
    assert [user for user, _ in noting.seen] == ["ada"]
    assert noting.seen[0][1].groups.tolist() == [0, 4]
    postprocessor = CrossEncoderPostprocessor(reranker=reranker, top_n=None)
    assert of_nodes(postprocessor.postprocess_nodes(nodes(), query_str=QUERY)) == wanted
    reranker.close()
    plain.close()


async def test_deadlines_and_cancelling_reach_the_queue_through_both() -> None:
    """A late caller's pairs and a cancelled task's never run; the held one and the next do."""
    backend = HeldBackend()
    reranker, noting = nested(backend)
    compressor = CrossEncoderCompressor(reranker=reranker)
    with blockbuster_ctx("rerank_adapters"):
        held = asyncio.create_task(compressor.acompress_documents(documents()[:1], QUERY))
        await until(backend.entered.is_set)
        before = time.monotonic()
        with pytest.raises(TimeoutError):
            await reranker.arerank_many([("late", TEXTS)], timeout=0.02)
        assert before < noting.seen[1][1].deadline < before + 1
        cancelled = asyncio.create_task(compressor.acompress_documents(documents(), "cancelled"))
        await until(lambda: reranker.stats()["queue_pairs"] == len(TEXTS))
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        waiting = asyncio.create_task(compressor.acompress_documents(documents(), "waits"))
        await until(lambda: reranker.stats()["queue_pairs"] == len(TEXTS))
        backend.release.set()
        assert len(await held) == 1
        assert len(await waiting) == 3
    assert backend.rows == 1 + len(TEXTS)
    await reranker.aclose()


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_failing_forward_fails_its_input_alone_through_both(asynchronous: bool) -> None:
    """One of three queries holds the poison: it gets the error, the others what they get alone."""
    row = encoded([("two", "poison")]).input_ids.tolist()

    def rule(batch):
        rows = [batch.take([at]).input_ids.tolist() for at in range(len(batch))]
        return RuntimeError("kernel fault") if row in rows else None

    reranker, _ = nested(FaultyBackend(rule))
    compressor = CrossEncoderCompressor(reranker=reranker, top_n=None)
    given = [{"query": query, "documents": documents()} for query in ("one", "two", "three")]
    given[1]["documents"] = [*documents(), Document("poison")]
    batch = compressor.abatch if asynchronous else compressor.batch
    found = await answered(batch, given, return_exceptions=True)
    assert isinstance(found[1], BackendError)
    assert "kernel fault" in str(found[1])
    for index in (0, 2):
        alone = compressor.invoke(given[index])
        assert of_documents(found[index]) == of_documents(alone)
    reranker.close()


async def until(true: Callable[[], bool]) -> None:
    """Wait for a state that is bound to come; 60 s only bound a failing test."""
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.002)


# ------------------------------------------------------------------------------ shared models


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[own_backend.OwnBackend]]:
    """The networks that the own backend loaded, in order; nothing is shared from before."""
    monkeypatch.setitem(BACKENDS, "own", own_backend.ENTRY)
    sharing.close_all()
    own_backend.LOADED.clear()
    yield own_backend.LOADED
    sharing.close_all()


def fields(**options: Any) -> dict[str, Any]:
    return {"model": str(build("bert")), "backend": "own", "activation": "identity", **options}


def test_nothing_is_loaded_by_making_or_copying(loaded) -> None:
    """Construction, assignment, copies and pickles take no model; neither do no documents."""
    compressor = CrossEncoderCompressor(**fields())
    compressor.max_length = 9
    for one in (copy.copy(compressor), copy.deepcopy(compressor), compressor.model_copy()):
        assert one == compressor
    assert pickle.loads(pickle.dumps(compressor)) == compressor
    assert compressor.compress_documents([], QUERY) == []
    assert loaded == []


def test_options_that_leave_the_weights_alone_load_once(loaded) -> None:
    """Seven adapters, one network; each scores by its own options."""
    scores = {}
    for name, changes in {
        "plain": {},
        "shorter": {"max_length": 7},
        "sigmoid": {"activation": "sigmoid"},
        "prompted": {"prompt": "boats: "},
        "cut": {"top_n": 2},
        "truncated": {"truncation": "only_second", "query_max_tokens": 1},
    }.items():
        compressor = CrossEncoderCompressor(**fields(**{"top_n": None, **changes}))
        found = compressor.compress_documents(documents(), QUERY)
        scores[name] = of_documents(found)
        apart = Reranker(**{k: v for k, v in fields(**changes).items() if k != "top_n"})
        alone = apart.rerank(QUERY, TEXTS, top_n=changes.get("top_n"))
        assert scores[name] == [(f"d{one.index}", one.score) for one in alone]
        apart.close()
        loaded.pop()
    assert len(loaded) == 1
    assert scores["cut"] == scores["plain"][:2]
    assert scores["sigmoid"] == [
        (name, pytest.approx(1 / (1 + np.exp(-score)))) for name, score in scores["plain"]
    ]
    assert len({str(scores[name]) for name in ("plain", "shorter", "prompted", "truncated")}) == 4
    found = CrossEncoderPostprocessor(**fields(top_n=None)).postprocess_nodes(
        nodes(), query_str=QUERY
    )
    assert of_nodes(found) == scores["plain"]
    assert len(loaded) == 1


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_an_adapter_per_request_loads_once(loaded, asynchronous: bool) -> None:
    """Made, used and dropped twenty times: the idle model is kept for the next."""
    answers = []
    for _ in range(20):
        compressor = CrossEncoderCompressor(**fields())
        call = compressor.acompress_documents if asynchronous else compressor.compress_documents
        answers.append(of_documents(await answered(call, documents(), QUERY)))
        del compressor, call
        gc.collect()
    assert len(loaded) == 1
    assert answers == [answers[0]] * 20
    assert len(answers[0]) == 3


def test_a_closed_adapter_s_model_is_freed_by_close_all(loaded) -> None:
    """Closed, it is idle; freed, the next adapter loads afresh and the closed one stays closed."""
    compressor = CrossEncoderCompressor(**fields())
    compressor.compress_documents(documents(), QUERY)
    compressor.close()
    compressor.close()
    assert not loaded[0].closed
    sharing.close_all()
    assert loaded[0].closed
    with pytest.raises(ClosedError, match="the CrossEncoderCompressor is closed: make a new one"):
        compressor.compress_documents(documents(), QUERY)
    with CrossEncoderCompressor(**fields()) as another:
        assert len(another.compress_documents(documents(), QUERY)) == 3
    assert len(loaded) == 2


async def test_a_dropped_adapter_s_model_is_freed_when_it_was_idle_long_enough(
    loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of an adapter in use stays."""
    monkeypatch.setattr(sharing, "IDLE_SECONDS", 0.05)
    used = CrossEncoderCompressor(**fields(num_threads=1))
    dropped = CrossEncoderCompressor(**fields(num_threads=2))
    for compressor in (used, dropped):
        compressor.compress_documents(documents(), QUERY)
    del compressor, dropped
    gc.collect()
    await until(lambda: loaded[1].closed)
    assert not loaded[0].closed
    assert len(used.compress_documents(documents(), QUERY)) == 3
    assert len(loaded) == 2


def test_two_idle_models_are_kept_and_no_third(loaded) -> None:
    """The one idle longest is freed; the two others answer again without loading."""
    for threads in (1, 2, 3):
        with CrossEncoderCompressor(**fields(num_threads=threads)) as compressor:
            compressor.compress_documents(documents(), QUERY)
    assert [backend.closed for backend in loaded] == [True, False, False]
    for threads in (2, 3):
        with CrossEncoderPostprocessor(**fields(num_threads=threads)) as postprocessor:
            postprocessor.postprocess_nodes(nodes(), query_str=QUERY)
    assert len(loaded) == 3


def test_two_configurations_from_sixteen_threads_load_once(loaded) -> None:
    """All start together; each gets the answer of its own configuration."""
    kinds = [{}, {"activation": "sigmoid"}]
    together = threading.Barrier(16)

    def ask(number: int) -> Scores:
        compressor = CrossEncoderCompressor(**fields(**kinds[number % 2]))
        together.wait()
        return of_documents(compressor.compress_documents(documents(), QUERY))

    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(ask, range(16)))
    assert len(loaded) == 1
    assert found == [found[0], found[1]] * 8
    assert found[0] != found[1]


COPIES: list[Callable[[Any], Any]] = [
    copy.copy,
    copy.deepcopy,
    lambda it: it.model_copy(),
    lambda it: it.model_copy(deep=True),
    lambda it: pickle.loads(pickle.dumps(it)),
]


@pytest.mark.parametrize("copied", COPIES)
def test_a_copy_has_a_lease_of_its_own(loaded, copied: Callable[[Any], Any]) -> None:
    """Closing either of the two leaves the other open, of a retriever's compressor as well."""
    base = ListRetriever(found=documents())
    for first in (
        CrossEncoderCompressor(**fields()),
        RerankingRetriever(base_retriever=base, **fields()),
    ):
        given: Any = {"query": QUERY, "documents": documents()}
        given = QUERY if isinstance(first, RerankingRetriever) else given
        wanted = first.invoke(given)
        second, third = copied(first), copied(first)
        second.close()
        assert first.invoke(given) == wanted
        first.close()
        assert third.invoke(given) == wanted
        for closed in (first, second):
            with pytest.raises(ClosedError, match=f"the {type(first).__name__} is closed"):
                closed.invoke(given)
    assert len(loaded) == 1


async def test_warming_loads_before_the_first_call(loaded) -> None:
    """Of every adapter; what a given ranker does to warm up is its own affair."""
    retriever = RerankingRetriever(base_retriever=ListRetriever(found=[]), **fields(num_threads=1))
    retriever.warm()
    assert len(loaded) == 1
    await answered(CrossEncoderPostprocessor(**fields(num_threads=2)).awarm)
    assert len(loaded) == 2
    await answered(RerankingMiddleware(CrossEncoderCompressor(**fields(num_threads=3))).awarm)
    assert len(loaded) == 3
    CrossEncoderCompressor(reranker=LengthRanker()).warm()
    backend = CountingBackend()
    with Reranker.over(scorer_over(backend)) as reranker:
        RerankingMiddleware(reranker=reranker).warm()
        await answered(LangChainCrossEncoder(reranker=reranker).awarm)
    assert backend.rows == 2


def test_an_assignment_takes_another_model_and_reopens_nothing(loaded) -> None:
    """A changed option is a new lease; a refused one leaves field and model; closed is closed."""
    compressor = CrossEncoderCompressor(**fields(top_n=None))
    before = of_documents(compressor.compress_documents(documents(), QUERY))
    compressor.activation = "sigmoid"
    squashed = of_documents(compressor.compress_documents(documents(), QUERY))
    assert squashed == [(name, pytest.approx(1 / (1 + np.exp(-score)))) for name, score in before]
    with pytest.raises(ConfigError, match="activation"):
        compressor.activation = "relu"
    assert of_documents(compressor.compress_documents(documents(), QUERY)) == squashed
    compressor.close()
    compressor.top_n = 1
    compressor.activation = "identity"
    with pytest.raises(ClosedError):
        compressor.compress_documents(documents(), QUERY)
    assert len(loaded) == 1


# ------------------------------------------------------------- not prepared yet is not closed


class Eager(CrossEncoderCompressor):
    """Uses its model before its fields have been checked."""

    def model_post_init(self, context: Any) -> None:
        super().model_post_init(context)
        self.warm()


class Checking(RerankingRetriever):
    """Uses its model in a validator of its own."""

    @model_validator(mode="after")
    def _try_it(self) -> Checking:
        assert len(self.invoke(QUERY)) == 3
        return self


class Early(CrossEncoderCompressor):
    """Uses its model before it has any field."""

    def __init__(self, **given: Any) -> None:
        self.warm()
        super().__init__(**given)


def test_a_subclass_may_use_the_model_before_the_fields_are_checked(loaded) -> None:
    """They are checked then, and a wrong one is the error; the model is loaded once."""
    assert len(Eager(**fields()).compress_documents(documents(), QUERY)) == 3
    base = ListRetriever(found=documents())
    assert len(Checking(base_retriever=base, **fields()).invoke(QUERY)) == 3
    assert len(loaded) == 1
    with pytest.raises(ConfigError, match="num_threads"):
        Eager(num_threads=0)
    constructed = CrossEncoderCompressor.model_construct(**fields(top_n=2))
    assert len(constructed.compress_documents(documents(), QUERY)) == 2


def test_without_fields_the_error_says_what_has_not_run(loaded) -> None:
    """Not a ClosedError, for nothing was closed."""
    for unprepared in (lambda: Early(**fields()), lambda: Eager.__new__(Eager).warm()):
        with pytest.raises(RerankError, match=r"not prepared yet: .*super\(\).__init__") as caught:
            unprepared()
        assert not isinstance(caught.value, ClosedError)
    assert loaded == []


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_backend_of_ones_own_under_every_adapter(loaded, asynchronous: bool) -> None:
    """One file and one registry entry: each adapter loads it by its name, once for all of them."""
    options = {"model": str(build("bert")), "backend": "own", "activation": "identity"}
    numbers = token_logits(encoded([(QUERY, text) for text in TEXTS], max_length=256))[:, 0]
    order = sorted(range(len(TEXTS)), key=lambda index: -numbers[index])
    expected = [(f"d{index}", float(numbers[index])) for index in order]
    way = "a" if asynchronous else ""

    compressor = CrossEncoderCompressor(**options, top_n=None)
    compress = getattr(compressor, f"{way}compress_documents")
    assert of_documents(await answered(compress, documents(), QUERY)) == expected
    retriever = RerankingRetriever(base_retriever=ListRetriever(found=documents()), **options)
    assert of_documents(await answered(getattr(retriever, f"{way}invoke"), QUERY)) == expected[:3]
    postprocessor = CrossEncoderPostprocessor(**options, top_n=None)
    postprocess = getattr(postprocessor, f"{way}postprocess_nodes")
    assert of_nodes(await answered(postprocess, nodes(), query_str=QUERY)) == expected
    scores = LangChainCrossEncoder(**options).score([(QUERY, text) for text in TEXTS])
    assert scores == [float(number) for number in numbers]
    middleware = RerankingMiddleware(CrossEncoderCompressor(**options))
    messages, _ = await run(middleware, [calls("news", "books")], asynchronous=asynchronous)
    assert sum(len(message.artifact) for message in messages) == 3
    assert len(loaded) == 1
