"""One object, every socket: classic's retrievers and pipelines, LCEL, tools, LangGraph."""

from __future__ import annotations

import operator
from typing import Annotated, Any

import numpy as np
import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_classic.retrievers.document_compressors import (
    CrossEncoderReranker,
    DocumentCompressorPipeline,
)
from langchain_core.cross_encoders import BaseCrossEncoder
from langchain_core.documents import Document
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import RunnableParallel, RunnablePassthrough
from langchain_core.tools import create_retriever_tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from typing_extensions import TypedDict

from rerank_adapters import InputError, Reranker
from rerank_adapters.langchain import (
    CrossEncoderCompressor,
    LangChainCrossEncoder,
    RerankingRetriever,
)
from tests.langchain_adapter.samples import (
    KEY,
    QUERY,
    TEXTS,
    TOLERANCE,
    ListRetriever,
    best,
    documents,
    ids,
    invoked,
    oracle,
    scores,
)


@pytest.fixture
def compressor(ready: Reranker) -> CrossEncoderCompressor:
    return CrossEncoderCompressor(reranker=ready)


@pytest.fixture
def wanted(compressor: CrossEncoderCompressor) -> list[Document]:
    return compressor.compress_documents(documents(), QUERY)


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_contextual_compression_retriever(
    compressor: CrossEncoderCompressor, wanted: list[Document], asynchronous: bool
) -> None:
    """It works unchanged as base_compressor."""
    retriever = ContextualCompressionRetriever(
        base_compressor=compressor, base_retriever=ListRetriever(found=documents())
    )
    assert await invoked(retriever, QUERY, asynchronous=asynchronous) == wanted


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_document_compressor_pipeline(
    compressor: CrossEncoderCompressor, wanted: list[Document], asynchronous: bool
) -> None:
    """It works unchanged as one of several transformers."""
    wide = CrossEncoderCompressor(reranker=compressor.reranker, top_n=6)
    pipeline = DocumentCompressorPipeline(transformers=[wide, compressor])
    if asynchronous:
        assert await pipeline.acompress_documents(documents(), QUERY) == wanted
    else:
        assert pipeline.compress_documents(documents(), QUERY) == wanted


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_lcel(
    compressor: CrossEncoderCompressor, wanted: list[Document], asynchronous: bool
) -> None:
    """The form that the error message shows, with more keys beside the two, and bound."""
    retriever = ListRetriever(found=documents())
    chain = RunnableParallel(documents=retriever, query=RunnablePassthrough()) | compressor
    assert await invoked(chain, QUERY, asynchronous=asynchronous) == wanted
    extra = RunnablePassthrough.assign(documents=lambda _: documents()) | compressor.bind(top_n=1)
    given = {"query": QUERY, "language": "en"}
    assert await invoked(extra, given, asynchronous=asynchronous) == wanted[:1]


def test_lcel_without_the_query_says_what_is_missing(compressor: CrossEncoderCompressor) -> None:
    """`retriever | compressor` is refused with the right form."""
    chain = ListRetriever(found=documents()) | compressor
    with pytest.raises(InputError, match="RunnableParallel"):
        chain.invoke(QUERY)


async def test_streaming(compressor: CrossEncoderCompressor, wanted: list[Document]) -> None:
    """Stream and astream give the one answer."""
    given = {"query": QUERY, "documents": documents()}
    assert list(compressor.stream(given)) == [wanted]
    assert [chunk async for chunk in compressor.astream(given)] == [wanted]


def test_the_input_schema_is_typed(compressor: CrossEncoderCompressor) -> None:
    """LangServe and Studio see a query and documents."""
    schema = compressor.get_input_jsonschema()
    properties = schema["$defs"]["RerankInput"]["properties"]
    assert properties["query"]["type"] == "string"
    assert properties["documents"]["type"] == "array"
    assert compressor.get_output_jsonschema()["type"] == "array"


@pytest.mark.parametrize("activation", ["default", "sigmoid"])
def test_cross_encoder_scores(model: str, activation: Any) -> None:
    """list[float] in the order of the pairs, equal to the oracle's."""
    encoder = LangChainCrossEncoder(
        model=model, backend="onnx", device="cpu", activation=activation
    )
    assert isinstance(encoder, BaseCrossEncoder)
    found = encoder.score([(QUERY, text) for text in TEXTS])
    assert type(found) is list
    assert {type(score) for score in found} == {float}
    logits = oracle(QUERY)
    expected = 1 / (1 + np.exp(-logits)) if activation == "sigmoid" else logits
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


def test_cross_encoder_without_pairs_loads_nothing() -> None:
    """[] in, [] out; this model does not exist."""
    assert LangChainCrossEncoder(model="/no/such/folder").score([]) == []


def test_classic_s_cross_encoder_reranker(ready: Reranker) -> None:
    """Its one-line swap: our cross-encoder under classic's own reranker."""
    classic = CrossEncoderReranker(model=LangChainCrossEncoder(reranker=ready), top_n=4)
    assert ids(classic.compress_documents(documents(), QUERY)) == best(oracle(QUERY), 4)


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_retriever_tool_shows_the_score(
    ready: Reranker, wanted: list[Document], asynchronous: bool
) -> None:
    """document_prompt with {relevance_score}, which has no value after classic's reranker."""
    tool = create_retriever_tool(
        RerankingRetriever(base_retriever=ListRetriever(found=documents()), reranker=ready),
        "search",
        "Searches the archive.",
        document_prompt=PromptTemplate.from_template("[{relevance_score:.4f}] {page_content}"),
        document_separator="\n",
    )
    found = await invoked(tool, {"query": QUERY}, asynchronous=asynchronous)
    lines = [f"[{document.metadata[KEY]:.4f}] {document.page_content}" for document in wanted]
    assert found == "\n".join(lines)


class State(TypedDict, total=False):
    """A graph's state with plain and with accumulated documents."""

    question: str
    found: list[Document]
    seen: Annotated[list[Document], operator.add]


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_graph_with_a_checkpointer(
    ready: Reranker, wanted: list[Document], asynchronous: bool
) -> None:
    """Scores are plain floats, so a checkpoint takes them and gives them back."""
    retriever = RerankingRetriever(base_retriever=ListRetriever(found=documents()), reranker=ready)

    def search(state: State) -> State:
        found = retriever.invoke(state["question"])
        return {"found": found, "seen": found}

    async def asearch(state: State) -> State:
        found = await retriever.ainvoke(state["question"])
        return {"found": found, "seen": found}

    graph = StateGraph(State)
    graph.add_node("search", asearch if asynchronous else search)
    graph.add_edge(START, "search")
    graph.add_edge("search", END)
    app = graph.compile(checkpointer=InMemorySaver())
    config: Any = {"configurable": {"thread_id": "1"}}
    await invoked(app, {"question": QUERY}, config, asynchronous=asynchronous)
    state = await invoked(app, {"question": QUERY}, config, asynchronous=asynchronous)
    assert state["found"] == wanted
    kept = app.get_state(config).values
    assert kept["found"] == wanted
    assert kept["seen"] == wanted * 2
    assert {type(score) for score in scores(kept["seen"])} == {float}


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_graph_s_configurable_reaches_the_rerank(
    compressor: CrossEncoderCompressor, wanted: list[Document], asynchronous: bool
) -> None:
    """top_n in the run's config, though the node passes no config on."""

    def rerank(state: State) -> State:
        return {"found": compressor.compress_documents(documents(), QUERY)}

    async def arerank(state: State) -> State:
        return {"found": await compressor.acompress_documents(documents(), QUERY)}

    graph = StateGraph(State)
    graph.add_node("rerank", arerank if asynchronous else rerank)
    graph.add_edge(START, "rerank")
    graph.add_edge("rerank", END)
    config = {"configurable": {"top_n": 2}}
    state = await invoked(graph.compile(), {}, config, asynchronous=asynchronous)
    assert state["found"] == wanted[:2]
