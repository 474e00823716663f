"""on_blank_query and on_error: by choice, what came in comes back where nothing can be ranked."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.tracers.base import BaseTracer
from langchain_core.tracers.schemas import Run
from numpy import int64

from rerank_adapters import BackendError, ConfigError, InputError, Reranker
from rerank_adapters.langchain import CrossEncoderCompressor, RerankingRetriever
from rerank_adapters.protocols import ModelInfo
from tests.fakes import FaultyBackend, reranker_over
from tests.langchain_adapter.samples import KEY, QUERY, ListRetriever, documents, ids
from tests.langchain_adapter.test_hooks import WAYS, ask

FIRST = [f"d{index}" for index in range(3)]


class Recorder(BaseTracer):
    """Keeps every finished root run."""

    run_inline = True

    def __init__(self) -> None:
        super().__init__()
        self.roots: list[Run] = []

    def _persist_run(self, run: Run) -> None:
        self.roots.append(run)


class BrokenRanker:
    """Raises the same error whatever it is asked."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def rerank_many(self, requests, **options):
        raise self.error

    async def arerank_many(self, requests, **options):
        raise self.error

    def info(self):
        return ModelInfo(model="broken")

    def close(self):
        pass


def adapters(ranker: Any, **fields: Any) -> list[tuple[Any, Any]]:
    """Both adapters with *fields*, each with the input for a query."""
    base = ListRetriever(found=documents())
    return [
        (
            CrossEncoderCompressor(reranker=ranker, **fields),
            lambda query: {"query": query, "documents": documents()},
        ),
        (
            RerankingRetriever(base_retriever=base, reranker=ranker, **fields),
            lambda query: query,
        ),
    ]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("query", ["", " \n\t"])
async def test_a_blank_query(ready: Reranker, way: str, query: str) -> None:
    """An error unless told; kept: input order, cut to top_n, no score, no bound; nothing is run."""
    for adapter, given in adapters(ready):
        with pytest.raises(
            InputError, match=r"that is not blank: got .*on_blank_query=.keep. lets"
        ):
            await ask(adapter, given(query), way)
    idle = BrokenRanker(AssertionError("a blank query is not ranked"))
    for adapter, given in adapters(idle, on_blank_query="keep", score_threshold=1e9):
        found = await ask(adapter, given(query), way)
        assert found == documents()[:3]
        assert len(await ask(adapter, given(query), way, top_n=5)) == 5


def test_a_blank_query_keeps_what_would_be_kept(ready: Reranker) -> None:
    """A stale score goes; dedupe and on_empty_text act; a call may choose; None is an error."""
    stale = [Document(text, metadata={KEY: 0.7, "n": 1}) for text in ("a", " ", "a", "b")]
    compressor = CrossEncoderCompressor(reranker=ready, on_blank_query="keep", top_n=None)
    found = compressor.compress_documents(stale, "")
    assert found == [Document(text, metadata={"n": 1}) for text in ("a", " ", "a", "b")]
    found = compressor.compress_documents(stale, "", dedupe="content", on_empty_text="drop")
    assert [one.page_content for one in found] == ["a", "b"]
    assert all(KEY in one.metadata for one in stale)
    with pytest.raises(InputError, match="query must be"):
        compressor.compress_documents(stale, "", on_blank_query="error")
    with pytest.raises(InputError, match="query must be"):
        compressor.invoke({"query": None, "documents": stale})
    strict = CrossEncoderCompressor(reranker=ready)
    config = {"configurable": {"on_blank_query": "keep"}}
    assert len(strict.invoke({"query": "", "documents": documents()}, config)) == 3


@pytest.mark.parametrize("way", WAYS)
async def test_a_reranker_that_fails(way: str, caplog: pytest.LogCaptureFixture) -> None:
    """Raised unless told; kept: first-stage order without score and bound, a warning, the trace."""
    for error in (BackendError("out of memory"), TimeoutError("late")):
        for adapter, given in adapters(BrokenRanker(error)):
            with pytest.raises(type(error), match=str(error)):
                await ask(adapter, given(QUERY), way)
        for adapter, given in adapters(BrokenRanker(error), on_error="keep", score_threshold=9.0):
            recorder = Recorder()
            caplog.clear()
            found = await ask(adapter, given(QUERY), way, {"callbacks": [recorder]})
            assert found == documents()[:3]
            warned = [it for it in caplog.records if it.levelno == logging.WARNING]
            assert len(warned) == (1 if "invoke" in way else 2)
            assert f"because of {type(error).__name__}: {error}" in warned[0].getMessage()
            assert "CrossEncoderCompressor returns 3 documents" in warned[0].getMessage()
            outer = recorder.roots[-1]
            rerank = outer.child_runs[-1] if outer.child_runs else outer
            assert str(error) in str(rerank.error)
            if outer is not rerank:
                assert (outer.error, outer.outputs) == (None, {"documents": found})


def test_a_model_that_cannot_be_loaded_and_one_bad_request_of_many(ready: Reranker) -> None:
    """Loading counts as the reranker's; of a batch only the request at fault comes unranked."""
    missing = CrossEncoderCompressor(model="/no/such/folder", on_error="keep")
    assert ids(missing.invoke({"query": QUERY, "documents": documents()})) == FIRST

    def poisoned(batch):
        return BackendError("poison") if batch.lengths.max() > 40 else None

    texts = (["it is", "blue"], ["word " * 60], ["it is not"])
    given: Any = [
        {"query": "why", "documents": [Document(text) for text in some]} for some in texts
    ]
    with reranker_over(FaultyBackend(poisoned), max_length=64) as reranker:
        compressor = CrossEncoderCompressor(reranker=reranker, on_error="keep")
        first, second, third = compressor.batch(given)
    assert [one.metadata for one in second] == [{}]
    assert all(KEY in one.metadata for one in [*first, *third])


async def test_input_errors_and_cancellation_are_never_caught(ready: Reranker) -> None:
    """Nor is an error of text_fn, nor one that is none of ours."""
    keep = CrossEncoderCompressor(reranker=ready, on_error="keep")
    with pytest.raises(InputError, match="must be a Document"):
        keep.invoke({"query": QUERY, "documents": ["no document"]})
    with pytest.raises(ZeroDivisionError):
        keep.invoke({"query": QUERY, "documents": documents()}, text_fn=lambda _: 1 / 0)
    for error in (InputError("prompt"), KeyError("bug")):
        broken = CrossEncoderCompressor(reranker=BrokenRanker(error), on_error="keep")
        with pytest.raises(type(error)):
            broken.invoke({"query": QUERY, "documents": documents()})
    for error in (asyncio.CancelledError(), KeyboardInterrupt()):
        stopped = CrossEncoderCompressor(reranker=BrokenRanker(error), on_error="keep")
        recorder = Recorder()
        with pytest.raises(type(error)):
            stopped.invoke({"query": QUERY, "documents": documents()}, {"callbacks": [recorder]})
        assert type(error).__name__ in str(recorder.roots[0].error)


def test_words_and_counts_are_checked(ready: Reranker) -> None:
    """Fields and calls; NumPy's integers are counts, True and "2" are not."""
    base = ListRetriever(found=documents())
    for name in ("on_blank_query", "on_error"):
        with pytest.raises(ConfigError, match=f"{name} must be one of"):
            CrossEncoderCompressor(reranker=ready, **{name: "ignore"})
        with pytest.raises(InputError, match=f"{name} must be one of"):
            CrossEncoderCompressor(reranker=ready).compress_documents(
                documents(), QUERY, **{name: "ignore"}
            )
    for count in (True, "2", 2.0, 0):
        with pytest.raises(ConfigError, match="rerank_count must be an int"):
            RerankingRetriever(base_retriever=base, reranker=ready, rerank_count=count)
    retriever = RerankingRetriever(
        base_retriever=base, reranker=ready, rerank_count=int64(5), top_n=int64(4)
    )
    assert type(retriever.rerank_count) is type(retriever.top_n) is int
    assert len(retriever.invoke(QUERY)) == 4
    assert len(retriever.invoke(QUERY, top_n=int64(9))) == 5
