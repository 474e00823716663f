"""Real observers: what OpenInference and Langfuse export of a rerank, offline."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rerank_adapters.llama_index import CrossEncoderPostprocessor
from tests.fakes import CountingBackend, reranker_over
from tests.llama_index_adapter.examples import QUERY, nodes

pytestmark = pytest.mark.long("observers")

OTHER = "another"


def exporter_and_provider() -> tuple[Any, Any]:
    export = pytest.importorskip(
        "opentelemetry.sdk.trace.export.in_memory_span_exporter",
        reason="OpenTelemetry's SDK is not installed: make test-neighbours",
    )
    trace = pytest.importorskip("opentelemetry.sdk.trace")
    simple = pytest.importorskip("opentelemetry.sdk.trace.export")
    exporter = export.InMemorySpanExporter()
    provider = trace.TracerProvider()
    provider.add_span_processor(simple.SimpleSpanProcessor(exporter))
    return exporter, provider


def rerank_spans(exporter: Any) -> dict[str, dict[str, Any]]:
    """The attributes of each reranker span, by its query."""
    spans = [dict(span.attributes or {}) for span in exporter.get_finished_spans()]
    return {span["reranker.query"]: span for span in spans if "reranker.query" in span}


async def rerank_two() -> dict[str, list[str]]:
    """The ids that come back for each of two queries, of a batch."""
    with reranker_over(CountingBackend()) as reranker:
        postprocessor = CrossEncoderPostprocessor(reranker=reranker, top_n=2)
        results = await postprocessor.apostprocess_nodes_batch([(QUERY, nodes()), (OTHER, nodes())])
    return {
        query: [it.node_id for it in found]
        for query, found in zip((QUERY, OTHER), results, strict=True)
    }


def check(spans: dict[str, dict[str, Any]], wanted: dict[str, list[str]]) -> None:
    """Each span shows its own query with its own nodes, in and out."""
    assert set(spans) == set(wanted)
    for query, ids in wanted.items():
        span = spans[query]
        shown = [span[f"reranker.output_documents.{n}.document.id"] for n in range(len(ids))]
        assert shown == ids
        assert span[f"reranker.input_documents.{len(nodes()) - 1}.document.id"]
        assert span["openinference.span.kind"] == "RERANKER"
        assert span["reranker.top_k"] == 2


async def test_openinference_shows_each_query_with_its_nodes():
    """Its instrumentor, and OpenTelemetry's exporter in memory: one RERANKER span per query."""
    found = pytest.importorskip(
        "openinference.instrumentation.llama_index",
        reason="openinference-instrumentation-llama-index is not installed: make test-neighbours",
    )
    exporter, provider = exporter_and_provider()
    instrumentor = found.LlamaIndexInstrumentor()
    instrumentor.instrument(tracer_provider=provider, skip_dep_check=True)
    try:
        wanted = await rerank_two()
    finally:
        instrumentor.uninstrument()
    check(rerank_spans(exporter), wanted)


async def test_langfuse_exports_each_query_with_its_nodes():
    """Langfuse takes LlamaIndex's traces from OpenInference: its client passes each span on, here
    to an exporter in memory.
    """
    langfuse = pytest.importorskip(
        "langfuse", reason="langfuse is not installed: make test-neighbours"
    )
    found = pytest.importorskip(
        "openinference.instrumentation.llama_index",
        reason="openinference-instrumentation-llama-index is not installed: make test-neighbours",
    )
    exporter, _ = exporter_and_provider()
    client = langfuse.Langfuse(
        public_key="pk-lf-test",
        secret_key="sk-lf-test",
        base_url="http://127.0.0.1:1",
        span_exporter=exporter,
    )
    instrumentor = found.LlamaIndexInstrumentor()
    instrumentor.instrument(skip_dep_check=True)
    try:
        wanted = await rerank_two()
    finally:
        instrumentor.uninstrument()
        client.flush()
    spans = rerank_spans(exporter)
    check(spans, wanted)
    json.dumps(list(spans.values()))
