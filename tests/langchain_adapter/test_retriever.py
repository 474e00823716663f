"""RerankingRetriever: any retriever and any compressor, on langchain-core alone."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import ConfigurableField, RunnableLambda
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_tests.integration_tests import RetrieversIntegrationTests
from pydantic import ValidationError

from rerank_adapters import ConfigError, InputError, ModelError, Reranker
from rerank_adapters.langchain import CrossEncoderCompressor, RerankingRetriever
from tests.fakes import CountingBackend, reranker_over
from tests.langchain_adapter.samples import (
    QUERIES,
    QUERY,
    TEXTS,
    ListRetriever,
    best,
    documents,
    ids,
    invoked,
    oracle,
    planned,
    scores,
)


class TestStandard(RetrieversIntegrationTests):
    """The five tests that langchain-tests asks of every retriever."""

    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return RerankingRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        from tests.exported import exported

        return {
            "base_retriever": ListRetriever(found=documents()),
            "model": str(exported("bert")),
            "backend": "onnx",
            "device": "cpu",
        }

    @property
    def retriever_query_example(self) -> str:
        return QUERY

    @property
    def num_results_arg_name(self) -> str:
        return "top_n"


@pytest.fixture
def compressor(ready: Reranker) -> CrossEncoderCompressor:
    return CrossEncoderCompressor(reranker=ready)


@pytest.fixture
def base() -> ListRetriever:
    return ListRetriever(found=documents())


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_the_best_candidates_come_back(
    ready: Reranker, base: ListRetriever, asynchronous: bool
) -> None:
    """The oracle's order; three by default, as from the compressor."""
    retriever = RerankingRetriever(base_retriever=base, reranker=ready)
    found = await invoked(retriever, QUERY, asynchronous=asynchronous)
    assert ids(found) == best(oracle(QUERY), 3)


def test_top_n(compressor: CrossEncoderCompressor, ready: Reranker, base: ListRetriever) -> None:
    """Its own, else the compressor's; None is all; the call's wins."""
    bound = CrossEncoderCompressor(reranker=ready, top_n=5)
    assert len(RerankingRetriever(base_retriever=base, compressor=bound).invoke(QUERY)) == 5
    own = RerankingRetriever(base_retriever=base, compressor=bound, top_n=2)
    assert len(own.invoke(QUERY)) == 2
    assert len(own.invoke(QUERY, top_n=4)) == 4
    configs: Any = [{"configurable": {"top_n": 6}}, {}]
    assert [len(found) for found in own.batch([QUERY, QUERY], configs)] == [6, 2]
    every = RerankingRetriever(base_retriever=base, compressor=compressor, top_n=None)
    assert len(every.invoke(QUERY)) == len(TEXTS)
    own.top_n = 1
    assert len(own.invoke(QUERY)) == 1
    with pytest.raises(ConfigError, match="top_n"):
        RerankingRetriever(base_retriever=base, reranker=ready, top_n=0)
    with pytest.raises(ConfigError, match="top_n"):
        own.top_n = 0
    assert own.top_n == 1


def test_settings_of_the_call_reach_the_compressor(ready: Reranker, base: ListRetriever) -> None:
    """Arguments of invoke and config["configurable"], through to the rerank."""
    retriever = RerankingRetriever(base_retriever=base, reranker=ready)
    assert len(retriever.invoke(QUERY, {"configurable": {"top_n": 2}})) == 2
    floor = scores(retriever.invoke(QUERY))[1]
    assert len(retriever.invoke(QUERY, score_threshold=floor)) == 2
    assert len(retriever.bind(top_n=1).invoke(QUERY)) == 1
    with pytest.raises(InputError, match="got top_k"):
        retriever.invoke(QUERY, top_k=1)


def test_configurable_fields_of_the_retriever(ready: Reranker, base: ListRetriever) -> None:
    """A field made configurable, on both ways to say what reranks."""
    spec = {"top_n": ConfigurableField(id="how_many")}
    config = {"configurable": {"how_many": 4}}
    mine = RerankingRetriever(base_retriever=base, reranker=ready).configurable_fields(**spec)
    assert (len(mine.invoke(QUERY, config)), len(mine.invoke(QUERY))) == (4, 3)
    five = CrossEncoderCompressor(reranker=ready, top_n=5)
    given = RerankingRetriever(base_retriever=base, compressor=five).configurable_fields(**spec)
    assert (len(given.invoke(QUERY, config)), len(given.invoke(QUERY))) == (4, 5)


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_rerank_count_bounds_what_is_scored(asynchronous: bool) -> None:
    """The first rerank_count candidates are scored, no others, whatever the retriever found."""
    backend = CountingBackend()
    with reranker_over(backend) as reranker:
        retriever = RerankingRetriever(
            base_retriever=RunnableLambda(lambda _: (d for d in documents())),
            reranker=reranker,
            rerank_count=5,
            top_n=None,
        )
        found = await invoked(retriever, QUERY, asynchronous=asynchronous)
    assert backend.rows == 5
    assert sorted(map(str, ids(found))) == [f"d{index}" for index in range(5)]


def test_rerank_count_is_what_a_vector_store_is_asked_for(ready: Reranker) -> None:
    """VectorStoreRetriever finds 4 unless told: with rerank_count=9 it finds and we score 9."""
    store = InMemoryVectorStore(DeterministicFakeEmbedding(size=8))
    store.add_documents(documents())
    wide = RerankingRetriever(
        base_retriever=store.as_retriever(), reranker=ready, rerank_count=9, top_n=None
    )
    assert len(wide.invoke(QUERY)) == 9
    narrow = RerankingRetriever(base_retriever=store.as_retriever(), reranker=ready, top_n=None)
    assert len(narrow.invoke(QUERY)) == 4


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_derived_compressors(
    compressor: CrossEncoderCompressor, base: ListRetriever, asynchronous: bool
) -> None:
    """All that a compressor can be made into, which classic's retriever refuses."""
    broken = CrossEncoderCompressor(model="/no/such/folder")
    field = ConfigurableField(id="how_many")
    config = {"configurable": {"how_many": 2}}
    wanted = compressor.compress_documents(documents(), QUERY)
    for derived, count in (
        (compressor.bind(top_n=1), 1),
        (compressor.with_retry(stop_after_attempt=2), 3),
        (broken.with_fallbacks([compressor]), 3),
        (compressor.configurable_fields(top_n=field), 2),
        (compressor.with_config(configurable={"top_n": 1}), 1),
    ):
        retriever = RerankingRetriever(base_retriever=base, compressor=derived)
        found = await invoked(retriever, QUERY, config, asynchronous=asynchronous)
        assert found == wanted[:count]


def test_a_batch_through_derived_compressors_is_still_one_pool() -> None:
    """Bind and with_retry hand a batch on as a batch."""
    backend = CountingBackend()
    pairs = [(query, text) for query in QUERIES for text in TEXTS]
    with reranker_over(backend) as reranker:
        compressor = CrossEncoderCompressor(reranker=reranker)
        for rounds, derived in enumerate((compressor.bind(top_n=1), compressor.with_retry()), 1):
            retriever = RerankingRetriever(
                base_retriever=ListRetriever(found=documents()), compressor=derived
            )
            retriever.batch(QUERIES)
            assert backend.forwards == rounds * planned(pairs)


def test_a_retriever_of_retrievers(ready: Reranker, base: ListRetriever) -> None:
    """Any Runnable from a query to documents will do, a reranking retriever included."""
    inner = RerankingRetriever(base_retriever=base, reranker=ready, top_n=5)
    outer = RerankingRetriever(base_retriever=inner, reranker=ready, top_n=5)
    assert outer.invoke(QUERY) == inner.invoke(QUERY)


def test_unknown_and_conflicting_arguments_are_refused(
    compressor: CrossEncoderCompressor, base: ListRetriever
) -> None:
    """What would be ignored is refused by name."""
    with pytest.raises(TypeError, match="bogus"):
        RerankingRetriever(base_retriever=base, bogus=3)
    with pytest.raises(ValidationError, match="base_retriever"):
        RerankingRetriever(compressor=compressor)
    with pytest.raises(ConfigError, match="give it max_length, score_key, or leave it out"):
        RerankingRetriever(base_retriever=base, compressor=compressor, max_length=9, score_key="s")
    with pytest.raises(ConfigError, match="rerank_count"):
        RerankingRetriever(base_retriever=base, compressor=compressor, rerank_count=0)


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_errors_are_raised_never_swallowed(base: ListRetriever, asynchronous: bool) -> None:
    """A model that is not there, a retriever that fails, one that finds no documents."""
    broken = RerankingRetriever(base_retriever=base, model="/no/such/folder")
    with pytest.raises(ModelError, match="/no/such/folder"):
        await invoked(broken, QUERY, asynchronous=asynchronous)
    base.fails_on = QUERY
    with pytest.raises(LookupError):
        await invoked(broken, QUERY, asynchronous=asynchronous)
    odd = RerankingRetriever(base_retriever=RunnableLambda(lambda _: 3), model="/no/such/folder")
    with pytest.raises(InputError, match="documents must be an iterable of Document: got 3"):
        await invoked(odd, QUERY, asynchronous=asynchronous)


def test_what_the_base_retriever_holds_is_left_alone(ready: Reranker, base: ListRetriever) -> None:
    """An in-memory retriever's own documents carry no score afterwards."""
    RerankingRetriever(base_retriever=base, reranker=ready).invoke(QUERY)
    assert base.found == documents()


async def test_subclass_hooks_of_base_retriever(ready: Reranker, base: ListRetriever) -> None:
    """_get_relevant_documents and its async twin answer as invoke does."""
    from langchain_core.callbacks import (
        AsyncCallbackManagerForRetrieverRun,
        CallbackManagerForRetrieverRun,
    )

    retriever = RerankingRetriever(base_retriever=base, reranker=ready)
    wanted = retriever.invoke(QUERY, top_n=2)
    run = CallbackManagerForRetrieverRun.get_noop_manager()
    arun = AsyncCallbackManagerForRetrieverRun.get_noop_manager()
    assert retriever._get_relevant_documents(QUERY, run_manager=run, top_n=2) == wanted
    assert await retriever._aget_relevant_documents(QUERY, run_manager=arun, top_n=2) == wanted


def test_close_closes_its_own_model_and_no_other(
    compressor: CrossEncoderCompressor, base: ListRetriever, model: str
) -> None:
    """A compressor that was given works on; one of its own is closed."""
    from rerank_adapters import ClosedError

    with RerankingRetriever(base_retriever=base, compressor=compressor) as given:
        wanted = given.invoke(QUERY)
    assert compressor.compress_documents(documents(), QUERY) == wanted
    with RerankingRetriever(base_retriever=base, model=model, backend="onnx") as own:
        assert ids(own.invoke(QUERY)) == ids(wanted)
    with pytest.raises(ClosedError, match="make a new one"):
        own.invoke(QUERY)


def test_no_candidates_need_no_model() -> None:
    """Nothing found, nothing loaded: this model does not exist."""
    retriever = RerankingRetriever(base_retriever=ListRetriever(found=[]), model="/no/such/folder")
    assert retriever.invoke(QUERY) == []
    assert retriever.batch(QUERIES) == [[]] * len(QUERIES)
    empty = RunnableLambda(lambda _: [Document("")])
    assert RerankingRetriever(base_retriever=empty, on_empty_text="drop").invoke(QUERY) == []
