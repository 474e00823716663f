"""One run of type "retriever" per rerank, in its place, with what its reader wants to know."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_classic.retrievers.document_compressors import DocumentCompressorPipeline
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda, RunnableParallel, RunnablePassthrough
from langchain_core.tracers.base import BaseTracer
from langchain_core.tracers.schemas import Run
from langgraph.graph import END, START, StateGraph
from typing_extensions import TypedDict

from rerank_adapters import InputError, ModelError, Reranker
from rerank_adapters.langchain import CrossEncoderCompressor, RerankingRetriever
from tests.langchain_adapter.samples import (
    KEY,
    QUERIES,
    QUERY,
    TEXTS,
    ListRetriever,
    documents,
    invoked,
)

NAME = "CrossEncoderCompressor"


class Recorder(BaseTracer):
    """Keeps every finished root run, with its tree."""

    run_inline = True

    def __init__(self) -> None:
        super().__init__()
        self.roots: list[Run] = []

    def _persist_run(self, run: Run) -> None:
        self.roots.append(run)


def tree(run: Run) -> Any:
    """(name, type, children), the shape that a trace shows."""
    return run.name, run.run_type, [tree(child) for child in run.child_runs]


def reranks(run: Run) -> list[Run]:
    """All rerank runs in the tree, in order."""
    own = [run] if run.name == NAME else []
    return own + [found for child in run.child_runs for found in reranks(child)]


def check(run: Run, found: list[Document], *, n_in: int = len(TEXTS)) -> None:
    """A rerank's run says what went in, what came out, and on what it ran."""
    assert (run.name, run.run_type, run.error) == (NAME, "retriever", None)
    assert run.inputs == {"query": QUERY}
    assert run.outputs == {"documents": found}
    assert all(type(document.metadata[KEY]) is float for document in run.outputs["documents"])
    metadata = run.extra["metadata"]
    assert metadata["backend"] == "onnx"
    assert metadata["device"] == "cpu"
    assert {"model", "dtype"} <= metadata.keys()
    assert (metadata["n_in"], metadata["n_out"]) == (n_in, len(found))
    assert run.end_time is not None


@pytest.fixture
def compressor(ready: Reranker) -> CrossEncoderCompressor:
    return CrossEncoderCompressor(reranker=ready)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


BASE = ("ListRetriever", "retriever", [])
RERANK = (NAME, "retriever", [])


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_call_is_one_run(
    compressor: CrossEncoderCompressor, recorder: Recorder, asynchronous: bool
) -> None:
    """compress_documents with callbacks: exactly one run, of type retriever."""
    if asynchronous:
        found = await compressor.acompress_documents(documents(), QUERY, [recorder])
    else:
        found = compressor.compress_documents(documents(), QUERY, [recorder])
    (run,) = recorder.roots
    assert tree(run) == RERANK
    check(run, found)


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_the_model_s_facts_are_known_after_lazy_loading(
    model: str, recorder: Recorder, asynchronous: bool
) -> None:
    """device="auto" was asked for; the run's metadata say what it became."""
    with CrossEncoderCompressor(model=model, backend="onnx") as compressor:
        given = {"query": QUERY, "documents": documents()}
        found = await invoked(
            compressor, given, {"callbacks": [recorder]}, asynchronous=asynchronous
        )
    (run,) = recorder.roots
    check(run, found)
    assert run.extra["metadata"]["model"] == model


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_nested_under_contextual_compression(
    compressor: CrossEncoderCompressor, recorder: Recorder, asynchronous: bool
) -> None:
    """Retrieval and rerank are siblings under ContextualCompressionRetriever."""
    retriever = ContextualCompressionRetriever(
        base_compressor=compressor, base_retriever=ListRetriever(found=documents())
    )
    config = {"callbacks": [recorder]}
    found = await invoked(retriever, QUERY, config, asynchronous=asynchronous)
    (run,) = recorder.roots
    assert tree(run) == ("ContextualCompressionRetriever", "retriever", [BASE, RERANK])
    check(run.child_runs[1], found)


def test_nested_under_a_compressor_pipeline(
    compressor: CrossEncoderCompressor, recorder: Recorder
) -> None:
    """Both reranks of a pipeline are runs under the retriever that holds it."""
    pipeline = DocumentCompressorPipeline(
        transformers=[CrossEncoderCompressor(reranker=compressor.reranker, top_n=5), compressor]
    )
    retriever = ContextualCompressionRetriever(
        base_compressor=pipeline, base_retriever=ListRetriever(found=documents())
    )
    found = retriever.invoke(QUERY, {"callbacks": [recorder]})
    (run,) = recorder.roots
    assert tree(run)[2] == [BASE, RERANK, RERANK]
    check(run.child_runs[2], found, n_in=5)


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_nested_in_lcel(
    compressor: CrossEncoderCompressor, recorder: Recorder, asynchronous: bool
) -> None:
    """A step of a chain: its run is the chain's child, with no chain run of its own between."""
    chain = (
        RunnableParallel(documents=ListRetriever(found=documents()), query=RunnablePassthrough())
        | compressor
    )
    config = {"callbacks": [recorder]}
    found = await invoked(chain, QUERY, config, asynchronous=asynchronous)
    (run,) = recorder.roots
    assert [child.name for child in run.child_runs] == ["RunnableParallel<documents,query>", NAME]
    check(run.child_runs[1], found)


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_nested_in_our_retriever(
    ready: Reranker, recorder: Recorder, asynchronous: bool
) -> None:
    """Retrieval and rerank under RerankingRetriever, each once; tags and metadata are its own."""
    retriever = RerankingRetriever(
        base_retriever=ListRetriever(found=documents()),
        reranker=ready,
        tags=["faq"],
        metadata={"index": "v2"},
    )
    config = {"callbacks": [recorder], "tags": ["outer"], "run_name": "search"}
    found = await invoked(retriever, QUERY, config, asynchronous=asynchronous)
    (run,) = recorder.roots
    assert tree(run) == ("search", "retriever", [BASE, RERANK])
    check(run.child_runs[1], found)
    assert sorted(run.tags or []) == ["faq", "outer"]
    assert run.child_runs[1].tags == ["outer"]
    assert run.extra["metadata"]["index"] == "v2"
    assert "index" not in run.child_runs[1].extra["metadata"]


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_nested_in_langgraph(
    compressor: CrossEncoderCompressor, recorder: Recorder, asynchronous: bool
) -> None:
    """In a node that passes no callbacks on, the parent is found in the context."""

    class State(TypedDict, total=False):
        found: list[Document]

    def rerank(state: State) -> State:
        return {"found": compressor.compress_documents(documents(), QUERY)}

    async def arerank(state: State) -> State:
        return {"found": await compressor.acompress_documents(documents(), QUERY)}

    graph = StateGraph(State)
    graph.add_node("rerank", RunnableLambda(rerank, arerank))
    graph.add_edge(START, "rerank")
    graph.add_edge("rerank", END)
    config = {"callbacks": [recorder]}
    app = graph.compile()
    state = await invoked(app, {}, config, asynchronous=asynchronous)
    (run,) = recorder.roots
    (node,) = run.child_runs
    assert node.name == "rerank"
    (rerank_run,) = reranks(run)
    check(rerank_run, state["found"])


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_batch_has_one_run_per_input(
    compressor: CrossEncoderCompressor, recorder: Recorder, asynchronous: bool
) -> None:
    """The pool is shared, the runs are not: one per query, the bad one an error."""
    queries = [*QUERIES, " "]
    given: list[Any] = [{"query": query, "documents": documents()} for query in queries]
    config = {"callbacks": [recorder]}
    if asynchronous:
        found = await compressor.abatch(given, config, return_exceptions=True)
    else:
        found = compressor.batch(given, config, return_exceptions=True)
    assert [run.inputs["query"] for run in recorder.roots] == queries
    assert [run.outputs for run in recorder.roots[:4]] == [{"documents": one} for one in found[:4]]
    assert "query must be a str that is not blank" in str(recorder.roots[4].error)


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_errors_end_the_run_as_errors(recorder: Recorder, asynchronous: bool) -> None:
    """A model that cannot be loaded, and input that is none: each run ends, as an error."""
    compressor = CrossEncoderCompressor(model="/no/such/folder")
    config = {"callbacks": [recorder]}
    for given, error in (
        ({"query": QUERY, "documents": documents()}, ModelError),
        (documents(), InputError),
    ):
        with pytest.raises(error):
            await invoked(compressor, given, config, asynchronous=asynchronous)
        run = recorder.roots[-1]
        assert run.run_type == "retriever"
        assert error.__name__ in str(run.error)
        assert run.end_time is not None


async def test_an_interrupt_ends_the_runs(compressor: CrossEncoderCompressor) -> None:
    """What is no Exception, such as Ctrl-C in text_fn, closes the open runs before it goes on."""
    seen = []

    class Handler(BaseCallbackHandler):
        def on_retriever_start(self, *args: Any, **kwargs: Any) -> None:
            seen.append("start")

        def on_retriever_error(self, error: BaseException, **kwargs: Any) -> None:
            seen.append(type(error).__name__)

    retriever = RerankingRetriever(
        base_retriever=RunnableLambda(lambda _: _interrupt()), compressor=compressor
    )
    with pytest.raises(KeyboardInterrupt):
        retriever.invoke(QUERY, {"callbacks": [Handler()]})
    assert seen == ["start", "KeyboardInterrupt"]


def _interrupt() -> list[Document]:
    raise KeyboardInterrupt


async def test_astream_events_shows_it(compressor: CrossEncoderCompressor) -> None:
    """on_retriever_start and on_retriever_end, with query, documents and the model's facts."""
    chain = RunnableLambda(lambda query: {"query": query, "documents": documents()}) | compressor
    events = [event async for event in chain.astream_events(QUERY) if event["name"] == NAME]
    start, end = (event for event in events if event["event"].startswith("on_retriever"))
    assert (start["event"], end["event"]) == ("on_retriever_start", "on_retriever_end")
    assert start["data"]["input"] == {"query": QUERY}
    assert end["data"]["output"] == compressor.compress_documents(documents(), QUERY)
    assert end["metadata"]["n_in"] == len(TEXTS)
    assert end["metadata"]["n_out"] == 3
    assert end["metadata"]["backend"] == "onnx"


def test_run_id_and_name_are_the_caller_s(
    compressor: CrossEncoderCompressor, recorder: Recorder
) -> None:
    """config["run_id"] and config["run_name"] are taken, as by every Runnable."""
    from uuid import uuid4

    run_id = uuid4()
    config = {"callbacks": [recorder], "run_id": run_id, "run_name": "mine"}
    compressor.invoke({"query": QUERY, "documents": documents()}, config)
    assert (recorder.roots[0].id, recorder.roots[0].name) == (run_id, "mine")
