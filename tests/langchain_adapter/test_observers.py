"""Real observers: what OpenInference and Langfuse export of a rerank, offline."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from rerank_adapters import BackendError
from rerank_adapters.langchain import (
    CrossEncoderCompressor,
    RerankingMiddleware,
    RerankingRetriever,
)
from tests.fakes import CountingBackend, reranker_over
from tests.langchain_adapter.samples import KEY, QUERIES, TEXTS, ListRetriever, documents
from tests.langchain_adapter.test_agents import ASKED, agent_of
from tests.langchain_adapter.test_fallback import BrokenRanker

pytestmark = pytest.mark.long("observers")

NAME = "CrossEncoderCompressor"
Spans = dict[str, list[Any]]


def memory() -> Any:
    """OpenTelemetry's exporter that keeps spans."""
    found = pytest.importorskip(
        "opentelemetry.sdk.trace.export.in_memory_span_exporter",
        reason="OpenTelemetry's SDK is not installed: make test-neighbours",
    )
    return found.InMemorySpanExporter()


def by_name(exporter: Any) -> Spans:
    """The finished spans by their names, oldest first."""
    spans: Spans = {}
    for span in sorted(exporter.get_finished_spans(), key=lambda it: it.start_time):
        spans.setdefault(span.name, []).append(span)
    return spans


@pytest.fixture
def openinference() -> Iterator[Any]:
    """Its instrumentor at work, exporting to memory."""
    found = pytest.importorskip(
        "openinference.instrumentation.langchain",
        reason="openinference-instrumentation-langchain is not installed: make test-neighbours",
    )
    trace = pytest.importorskip("opentelemetry.sdk.trace")
    export = pytest.importorskip("opentelemetry.sdk.trace.export")
    exporter = memory()
    provider = trace.TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(exporter))
    instrumentor = found.LangChainInstrumentor()
    instrumentor.instrument(tracer_provider=provider, skip_dep_check=True)
    yield exporter
    instrumentor.uninstrument()


@pytest.fixture
def langfuse() -> Iterator[tuple[Any, Any, Any]]:
    """Its callback handler, its client, and the exporter in memory that this sends to."""
    found = pytest.importorskip(
        "langfuse", reason="langfuse is not installed: make test-neighbours"
    )
    exporter = memory()
    keys = {"public_key": "pk-lf-langchain", "secret_key": "sk-lf-langchain"}
    client = found.Langfuse(**keys, base_url="http://127.0.0.1:1", span_exporter=exporter)
    handlers = pytest.importorskip("langfuse.langchain")
    yield handlers.CallbackHandler(public_key=keys["public_key"]), client, exporter
    client.shutdown()


async def batch_of_two(config: Any = None) -> dict[str, list[dict[str, Any]]]:
    """The documents that come back for each of two queries, as JSON has them."""
    with reranker_over(CountingBackend()) as reranker:
        retriever = RerankingRetriever(
            base_retriever=ListRetriever(found=documents()), reranker=reranker
        )
        results = await retriever.abatch(QUERIES[:2], config)
    dumped = [
        [{"id": it.id, "metadata": it.metadata, "page_content": it.page_content} for it in found]
        for found in results
    ]
    return dict(zip(QUERIES[:2], dumped, strict=True))


def check_tree(spans: Spans) -> None:
    """Search and rerank lie under the retriever's own span, for each query."""
    assert {name: len(own) for name, own in spans.items()} == {
        "RerankingRetriever": 2, "ListRetriever": 2, NAME: 2,
    }  # fmt: skip
    roots = [span.context.span_id for span in spans["RerankingRetriever"]]
    for name in ("ListRetriever", NAME):
        assert sorted(span.parent.span_id for span in spans[name]) == sorted(roots)


async def test_openinference_shows_each_query_with_its_documents(openinference: Any) -> None:
    """RETRIEVER spans: documents in order with their scores, the model and how many came in."""
    wanted = await batch_of_two()
    spans = by_name(openinference)
    check_tree(spans)
    assert {span.attributes["input.value"] for span in spans[NAME]} == set(wanted)
    for span in spans[NAME]:
        shown, found = dict(span.attributes), wanted[span.attributes["input.value"]]
        assert shown["openinference.span.kind"] == "RETRIEVER"
        for index, one in enumerate(found):
            prefix = f"retrieval.documents.{index}.document"
            assert shown[f"{prefix}.content"] == one["page_content"]
            assert json.loads(shown[f"{prefix}.metadata"]) == one["metadata"]
        assert f"retrieval.documents.{len(found)}.document.content" not in shown
        facts = json.loads(shown["metadata"])
        assert (facts["n_in"], facts["n_out"]) == (len(TEXTS), len(found))
        assert facts["model"] == facts["backend"] == "CountingBackend"


def test_openinference_shows_an_agent_s_rerank_and_what_failed(openinference: Any) -> None:
    """Under the middleware's own node; an error that documents came back in spite of is shown."""
    ranker = BrokenRanker(BackendError("out of memory"))
    compressor = CrossEncoderCompressor(reranker=ranker, on_error="keep")
    agent, _ = agent_of(RerankingMiddleware(compressor), "news")
    agent.invoke(ASKED)
    spans = by_name(openinference)
    (rerank,) = spans[NAME]
    nodes = {span.context.span_id for span in spans["RerankingMiddleware.before_model"]}
    assert rerank.parent.span_id in nodes
    assert rerank.status.status_code.name == "ERROR"
    assert "out of memory" in str(
        rerank.status.description or [it.attributes for it in rerank.events]
    )


async def test_langfuse_exports_each_query_with_its_documents(
    langfuse: tuple[Any, Any, Any],
) -> None:
    """Observations of type retriever, with what came in and out."""
    handler, client, exporter = langfuse
    wanted = await batch_of_two({"callbacks": [handler]})
    client.flush()
    spans = by_name(exporter)
    check_tree(spans)
    for span in spans[NAME]:
        shown = dict(span.attributes)
        assert shown["langfuse.observation.type"] == "retriever"
        found = json.loads(shown["langfuse.observation.output"])
        own = wanted[shown["langfuse.observation.input"]]
        assert [{name: it[name] for name in own[0]} for it in found] == own
        assert all(KEY in it["metadata"] for it in found)
        assert json.loads(shown["langfuse.observation.metadata.n_in"]) == len(TEXTS)
        assert json.loads(shown["langfuse.observation.metadata.model"]) == "CountingBackend"
