"""What a subclass overrides of LangChain's base classes is obeyed on every way in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_classic.retrievers.document_compressors import DocumentCompressorPipeline
from langchain_core.documents import Document
from langchain_core.tracers.base import BaseTracer
from langchain_core.tracers.schemas import Run
from pydantic import PrivateAttr, field_validator

from rerank_adapters import InputError, Reranker
from rerank_adapters.langchain import CrossEncoderCompressor, RerankingRetriever
from tests.fakes import CountingBackend, reranker_over
from tests.langchain_adapter.samples import (
    KEY,
    QUERIES,
    QUERY,
    ListRetriever,
    best,
    documents,
    ids,
    oracle,
)

WAYS = ["invoke", "ainvoke", "batch", "abatch"]


async def ask(runnable: Any, given: Any, way: str, config: Any = None, **arguments: Any) -> Any:
    """The answer to one input, by each of a Runnable's ways in."""
    if way == "invoke":
        return runnable.invoke(given, config, **arguments)
    if way == "ainvoke":
        return await runnable.ainvoke(given, config, **arguments)
    if way == "batch":
        return runnable.batch([given, given], config, **arguments)[1]
    return (await runnable.abatch([given, given], config, **arguments))[1]


class SyncRetriever(RerankingRetriever):
    """Leaves the best out."""

    def _get_relevant_documents(self, query, *, run_manager, **arguments):
        return super()._get_relevant_documents(query, run_manager=run_manager, **arguments)[1:]


class BothRetriever(SyncRetriever):
    """Has an async twin of its own."""

    async def _aget_relevant_documents(self, query, *, run_manager, **arguments):
        found = await super()._aget_relevant_documents(query, run_manager=run_manager, **arguments)
        return [*found, Document("async")]


class ShortRetriever(RerankingRetriever):
    """An override that hands no arguments on, as BaseRetriever's documentation shows it."""

    def _get_relevant_documents(self, query, *, run_manager):
        return super()._get_relevant_documents(query, run_manager=run_manager)[1:]


class SyncCompressor(CrossEncoderCompressor):
    """Leaves the best out."""

    def compress_documents(self, documents, query, callbacks=None, **arguments):
        return super().compress_documents(documents, query, callbacks, **arguments)[1:]


class BothCompressor(SyncCompressor):
    """Has an async twin of its own."""

    async def acompress_documents(self, documents, query, callbacks=None, **arguments):
        found = await super().acompress_documents(documents, query, callbacks, **arguments)
        return [*found, Document("async")]


class ShortCompressor(CrossEncoderCompressor):
    """An override with the signature of BaseDocumentCompressor."""

    def compress_documents(self, documents, query, callbacks=None):
        return super().compress_documents(documents, query, callbacks)[1:]


@pytest.fixture
def base() -> ListRetriever:
    return ListRetriever(found=documents())


def wanted(count: int) -> list[str]:
    """The oracle's best but the first."""
    return best(oracle(QUERY), count)[1:]


@pytest.mark.parametrize("way", WAYS)
async def test_a_retriever_s_override_is_asked(
    ready: Reranker, base: ListRetriever, way: str
) -> None:
    """Sync alone, with an async twin, and without **arguments: each with a call's top_n."""
    extra = [None] if way.startswith("a") else []
    for kind, tail in ((SyncRetriever, []), (BothRetriever, extra), (ShortRetriever, [])):
        retriever = kind(base_retriever=base, reranker=ready)
        assert ids(await ask(retriever, QUERY, way)) == [*wanted(3), *tail]
        assert ids(await ask(retriever, QUERY, way, top_n=5)) == [*wanted(5), *tail]
        config = {"configurable": {"top_n": 4}}
        assert ids(await ask(retriever, QUERY, way, config)) == [*wanted(4), *tail]


@pytest.mark.parametrize("way", WAYS)
async def test_a_compressor_s_override_is_asked(
    ready: Reranker, base: ListRetriever, way: str
) -> None:
    """By itself and under a retriever of ours, whose top_n goes through the override."""
    given = {"query": QUERY, "documents": documents()}
    extra = [None] if way.startswith("a") else []
    for kind, tail in ((SyncCompressor, []), (BothCompressor, extra), (ShortCompressor, [])):
        compressor = kind(reranker=ready)
        assert ids(await ask(compressor, given, way)) == [*wanted(3), *tail]
        assert ids(await ask(compressor, given, way, top_n=5)) == [*wanted(5), *tail]
        under = RerankingRetriever(base_retriever=base, compressor=compressor, top_n=4)
        assert ids(await ask(under, QUERY, way)) == [*wanted(4), *tail]


@pytest.mark.parametrize("way", WAYS)
async def test_where_langchain_calls_the_compressor(
    ready: Reranker, base: ListRetriever, way: str
) -> None:
    """ContextualCompressionRetriever and a pipeline call compress_documents or its async twin."""
    pipeline = DocumentCompressorPipeline(transformers=[SyncCompressor(reranker=ready)])
    for compressor in (SyncCompressor(reranker=ready), pipeline):
        classic = ContextualCompressionRetriever(base_retriever=base, base_compressor=compressor)
        assert ids(await ask(classic, QUERY, way)) == wanted(3)


async def test_an_async_override_over_a_sync_one_sees_it(ready: Reranker) -> None:
    """super() of the async override answers as the sync override below it does."""
    found = await BothCompressor(reranker=ready).acompress_documents(documents(), QUERY)
    assert ids(found) == [*wanted(3), None]
    assert ids(BothCompressor(reranker=ready).compress_documents(documents(), QUERY)) == wanted(3)


async def test_an_overridden_invoke_is_what_batch_goes_through(ready: Reranker) -> None:
    """As Runnable's own batch: each input by invoke, which may call super()."""

    class Loud(CrossEncoderCompressor):
        def invoke(self, input, config=None, **overrides):  # noqa: A002
            return super().invoke(input, config, **overrides)[:1]

        async def ainvoke(self, input, config=None, **overrides):  # noqa: A002
            return (await super().ainvoke(input, config, **overrides))[:2]

    given = [{"query": QUERY, "documents": documents()}] * 2
    loud = Loud(reranker=ready)
    assert [len(found) for found in loud.batch(given)] == [1, 1]
    assert [len(found) for found in await loud.abatch(given)] == [2, 2]


def test_only_pooling_is_lost(base: ListRetriever) -> None:
    """Without an override one pool; with one a pool per query: the same forwards one by one."""
    backend = CountingBackend()
    with reranker_over(backend) as reranker:
        RerankingRetriever(base_retriever=base, reranker=reranker).batch(QUERIES)
        pooled = backend.forwards
        overridden = SyncRetriever(base_retriever=base, reranker=reranker)
        for query in QUERIES:
            overridden.invoke(query)
        apart = backend.forwards - pooled
        overridden.batch(QUERIES, {"max_concurrency": 1})
    assert backend.forwards == pooled + 2 * apart
    assert pooled < apart


def test_an_argument_that_an_override_cannot_hand_on_is_refused(
    ready: Reranker, base: ListRetriever
) -> None:
    """BaseRetriever would drop it in silence; an argument of the base retriever cannot travel."""
    with pytest.raises(InputError, match=r"ShortRetriever\._get_relevant.* takes no tenant"):
        ShortRetriever(base_retriever=base, reranker=ready).invoke(QUERY, tenant="a")


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
async def test_an_override_is_one_run(ready: Reranker, base: ListRetriever, way: str) -> None:
    """The retriever's run holds the base retriever's and the rerank, each once, and its name."""
    roots: list[Run] = []

    class Recorder(BaseTracer):
        run_inline = True

        def _persist_run(self, run: Run) -> None:
            roots.append(run)

    config = {"callbacks": [Recorder()], "run_name": "search"}
    found = await ask(SyncRetriever(base_retriever=base, reranker=ready), QUERY, way, config)
    (run,) = roots
    assert (run.name, run.outputs) == ("search", {"documents": found})
    names = ["ListRetriever", "CrossEncoderCompressor"]
    assert [(child.name, child.child_runs) for child in run.child_runs] == [
        (name, []) for name in names
    ]


class Tagged(CrossEncoderCompressor):
    """A field, a validator and a private attribute of its own; it is warm once it is made."""

    badge: str = "plain"
    _warm: list[Document] = PrivateAttr(default_factory=list)

    @field_validator("badge")
    @classmethod
    def _lower(cls, value: str) -> str:
        return value.lower()

    def model_post_init(self, context: Any) -> None:
        super().model_post_init(context)
        self._warm = self.compress_documents(documents(), QUERY)

    def compress_documents(self, documents, query, callbacks=None, **arguments):
        found = super().compress_documents(documents, query, callbacks, **arguments)
        return [
            document.model_copy(update={"metadata": {**document.metadata, "badge": self.badge}})
            for document in found
        ]


def in_own_way(kind: Callable[..., Any], ready: Reranker) -> Any:
    return kind(reranker=ready, badge="FAQ", top_n=2)


def test_a_subclass_s_own_fields_and_model_post_init(ready: Reranker) -> None:
    """The override runs with them, also while the object is being made."""
    tagged = in_own_way(Tagged, ready)
    assert [one.metadata["badge"] for one in tagged._warm] == ["faq", "faq"]
    assert all(KEY in one.metadata for one in tagged._warm)
    (found,) = tagged.batch([{"query": QUERY, "documents": documents()}])
    assert found == tagged._warm
    tagged.badge = "NEWS"
    assert tagged.invoke({"query": QUERY, "documents": documents()})[0].metadata["badge"] == "news"
