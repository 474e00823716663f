"""Where a call's arguments go, what may rerank, and what is loaded once."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever, MultiQueryRetriever
from langchain_classic.retrievers.document_compressors import (
    CrossEncoderReranker,
    DocumentCompressorPipeline,
)
from langchain_core.documents import BaseDocumentTransformer, Document
from langchain_core.language_models import FakeListLLM
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import (
    ConfigurableField,
    RunnableLambda,
    RunnableParallel,
    RunnablePassthrough,
)
from numpy import int64

from rerank_adapters import ConfigError, InputError, Reranker, sharing
from rerank_adapters.langchain import (
    CrossEncoderCompressor,
    LangChainCrossEncoder,
    RerankingRetriever,
)
from rerank_adapters.protocols import ModelInfo
from rerank_adapters.ranking import RankedDocument, Ranking
from tests.langchain_adapter.samples import QUERY, ListRetriever, best, documents, ids, oracle
from tests.langchain_adapter.test_hooks import WAYS, ask


class Tenants(BaseRetriever):
    """Finds what belongs to a tenant, and remembers what it was asked."""

    seen: list[Any]

    def _get_relevant_documents(self, query, *, run_manager, tenant=None):
        self.seen.append(tenant)
        return documents()


class Everything(BaseRetriever):
    """Takes any argument."""

    seen: list[Any]

    def _get_relevant_documents(self, query, *, run_manager, **arguments):
        self.seen.append(arguments)
        return documents()


class Reversed(BaseDocumentTransformer):
    """The worst first, as LongContextReorder would have some of them."""

    def transform_documents(self, documents, **kwargs):
        return list(documents)[::-1]


@pytest.mark.parametrize("way", WAYS)
async def test_arguments_reach_who_takes_them(ready: Reranker, way: str) -> None:
    """Our own names the compressor, the base's names it, base_kwargs it alone; others raise."""
    tenants = Tenants(seen=[])
    retriever = RerankingRetriever(base_retriever=tenants, reranker=ready)
    assert len(await ask(retriever, QUERY, way, tenant="a", top_n=2)) == 2
    await ask(retriever, QUERY, way, base_kwargs={"tenant": "b"})
    assert set(tenants.seen) == {"a", "b"}
    for wrong in ({"bogus": 1}, {"base_kwargs": {"bogus": 1}}, {"base_kwargs": 3}):
        with pytest.raises(InputError, match=r"bogus|base_kwargs"):
            await ask(retriever, QUERY, way, **wrong)
    anything = Everything(seen=[])
    retriever = RerankingRetriever(base_retriever=anything, reranker=ready)
    own = {"score_threshold": 0.5}
    await ask(retriever, QUERY, way, top_n=1, k=9, base_kwargs=own)
    assert anything.seen[0] == {"k": 9, **own}


@pytest.mark.parametrize("way", WAYS)
async def test_any_compressor_reranks(ready: Reranker, model: str, way: str) -> None:
    """A pipeline in its own order, classic's reranker, fallbacks that take no argument."""
    base, wanted = ListRetriever(found=documents()), best(oracle(QUERY), 3)
    ours = CrossEncoderCompressor(reranker=ready)
    pipeline = DocumentCompressorPipeline(transformers=[ours, Reversed()])
    retriever = RerankingRetriever(base_retriever=base, compressor=pipeline)
    assert ids(await ask(retriever, QUERY, way)) == wanted[::-1]
    assert ids(await ask(retriever, QUERY, way, top_n=2)) == wanted[:2][::-1]
    encoder = LangChainCrossEncoder(model=model, backend="onnx", device="cpu")
    classic = CrossEncoderReranker(model=encoder, top_n=5)
    retriever = RerankingRetriever(base_retriever=base, compressor=classic, top_n=3)
    assert ids(await ask(retriever, QUERY, way)) == wanted
    assert ids(await ask(retriever, QUERY, way, top_n=int64(1))) == wanted[:1]
    with pytest.raises(InputError, match="compressor takes no score_threshold"):
        await ask(retriever, QUERY, way, score_threshold=0.5)
    broken = CrossEncoderCompressor(model="/no/such/folder")
    first = RunnableLambda(lambda given: given["documents"])
    for fallback, order in ((ours, wanted), (first, [f"d{index}" for index in range(3)])):
        several = broken.with_fallbacks([fallback])
        retriever = RerankingRetriever(base_retriever=base, compressor=several)
        assert ids(await ask(retriever, QUERY, way, top_n=2)) == order[:2]
    plain = RerankingRetriever(base_retriever=base, compressor=broken)
    saved = plain.with_fallbacks([RerankingRetriever(base_retriever=base, compressor=ours)])
    assert ids(await ask(saved, QUERY, way, top_n=2)) == wanted[:2]


def test_what_is_no_compressor_is_refused() -> None:
    """When it is made, by name."""
    for wrong in ("BAAI/bge-reranker-base", 3, lambda given: given):
        with pytest.raises(ConfigError, match="compressor must be a document compressor"):
            RerankingRetriever(base_retriever=ListRetriever(found=[]), compressor=wrong)


def test_without_a_score_a_union_holds_each_document_once(ready: Reranker) -> None:
    """MultiQueryRetriever compares whole documents: score_key=None leaves them as they came."""

    def union(retriever: Any) -> list[str | None]:
        llm = FakeListLLM(responses=[f"{QUERY}\nwhy is the sky blue, then"])
        return ids(MultiQueryRetriever.from_llm(retriever, llm).invoke(QUERY))

    base = ListRetriever(found=documents())
    quiet = CrossEncoderCompressor(reranker=ready, score_key=None, top_n=None)
    found = union(RerankingRetriever(base_retriever=base, compressor=quiet))
    assert sorted(map(str, found)) == sorted(str(one.id) for one in documents())
    classic = ContextualCompressionRetriever(base_retriever=base, base_compressor=quiet)
    assert union(classic) == found
    assert all(one in documents() for one in quiet.compress_documents(documents(), QUERY))


def test_a_model_is_loaded_once(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By configurable_fields per call, and by an adapter made for each request."""
    sharing.close_all()
    started: list[Any] = []
    start = sharing.start
    monkeypatch.setattr(sharing, "start", lambda *args: started.append(args) or start(*args))
    given = {"query": QUERY, "documents": documents()}
    fields: Any = {"model": model, "backend": "onnx", "device": "cpu"}
    chosen = CrossEncoderCompressor(**fields).configurable_fields(
        max_length=ConfigurableField(id="max_length")
    )
    for length in (32, 48, 32, 48):
        chosen.invoke(given, {"configurable": {"max_length": length}})
    for _ in range(3):
        CrossEncoderCompressor(**fields, max_length=40).invoke(given)
    assert len(started) == 1
    sharing.close_all()


class Prompted:
    """A ranker that remembers the prompts it was given."""

    def __init__(self) -> None:
        self.prompts: list[str | None] = []

    def rerank_many(self, requests, **options):
        self.prompts += [one.prompt for one in requests]
        return [
            Ranking([RankedDocument(index, 0.0) for index in range(len(one.documents))])
            for one in requests
        ]

    async def arerank_many(self, requests, **options):
        return self.rerank_many(requests, **options)

    def info(self):
        return ModelInfo(model="prompted")

    def close(self):
        pass


@pytest.mark.parametrize("way", WAYS)
async def test_a_prompt_per_call(way: str) -> None:
    """As an argument and in configurable, through both adapters, one for each input."""
    ranker = Prompted()
    base = ListRetriever(found=documents())
    given = {"query": QUERY, "documents": documents()}
    retriever = RerankingRetriever(base_retriever=base, reranker=ranker)
    for adapter, one in ((CrossEncoderCompressor(reranker=ranker), given), (retriever, QUERY)):
        ranker.prompts.clear()
        await ask(adapter, one, way, prompt="said")
        await ask(adapter, one, way, {"configurable": {"prompt": "configured"}})
        await ask(adapter, one, way)
        assert list(dict.fromkeys(ranker.prompts)) == ["said", "configured", None]
        with pytest.raises(InputError, match="prompt must be a str or None: got 3"):
            await ask(adapter, one, way, prompt=3)


def test_config_specs_show_what_configurable_obeys(ready: Reranker) -> None:
    """Every setting of a call, of either adapter; a chain with two that differ has a schema."""
    compressor = CrossEncoderCompressor(reranker=ready)
    retriever = RerankingRetriever(base_retriever=ListRetriever(found=[]), reranker=ready)
    for adapter in (compressor, retriever):
        shown = {spec.id for spec in adapter.config_specs}
        assert {"top_n", "score_threshold", "prompt", "on_error", "dedupe"} <= shown
        properties = adapter.get_config_jsonschema()["$defs"]["Configurable"]["properties"]
        assert shown == set(properties)
    query = RunnablePassthrough()
    chain = (
        RunnableParallel(documents=retriever, query=query)
        | CrossEncoderCompressor(reranker=ready, top_n=9)
        | (lambda found: {"query": QUERY, "documents": found})
        | compressor
    )
    assert "top_n" in chain.get_config_jsonschema()["$defs"]["Configurable"]["properties"]


def test_a_setting_may_be_made_configurable_by_its_own_name(ready: Reranker) -> None:
    """Somebody's own description of a name of ours is shown in its place, and both are obeyed."""
    base = ListRetriever(found=documents()).configurable_fields(
        found=ConfigurableField(id="found", name="What is found")
    )
    compressor = CrossEncoderCompressor(reranker=ready)
    retriever = RerankingRetriever(base_retriever=base, reranker=ready)
    field = ConfigurableField(id="top_n", name="How many")
    query = RunnablePassthrough()
    for adapter, given in (
        (compressor.configurable_fields(top_n=field), {"query": QUERY, "documents": documents()}),
        (retriever.configurable_fields(top_n=field), QUERY),
        (RunnableParallel(documents=retriever, query=query)
         | compressor.configurable_fields(top_n=field), QUERY),
    ):  # fmt: skip
        specs = {spec.id: spec.name for spec in adapter.config_specs}
        assert specs["top_n"] in ("How many", "top_n")
        assert "top_n" in adapter.get_config_jsonschema()["$defs"]["Configurable"]["properties"]
        assert len(adapter.invoke(given, {"configurable": {"top_n": 2}})) == 2
    shown = {spec.id for spec in retriever.config_specs}
    assert {"found", "top_n", "prompt"} <= shown
    config: Any = {"configurable": {"found": documents()[:1]}}
    assert ids(retriever.invoke(QUERY, config)) == ["d0"]


def test_settings_are_those_of_the_call_s_start(ready: Reranker) -> None:
    """What changes while the base retriever searches is the next call's."""
    holder: dict[str, RerankingRetriever] = {}

    def search(_: str) -> list[Document]:
        holder["it"].top_n = 1
        return documents()

    base = RunnableLambda(search)
    holder["it"] = RerankingRetriever(base_retriever=base, reranker=ready, top_n=4)
    assert len(holder["it"].invoke(QUERY)) == 4
    assert len(holder["it"].invoke(QUERY)) == 1
