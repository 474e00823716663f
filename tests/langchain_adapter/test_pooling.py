"""Many queries, one pool: how many forwards run, whose error is whose, and what the loop feels."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import re
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.runnables import RunnableParallel, RunnablePassthrough
from numpy.typing import NDArray

from rerank_adapters import BackendError, InputError, Reranker
from rerank_adapters.langchain import CrossEncoderCompressor, RerankingRetriever
from tests.fakes import CountingBackend, FaultyBackend, HeldBackend, encoded, reranker_over
from tests.langchain_adapter.samples import (
    QUERIES,
    QUERY,
    TEXTS,
    ListRetriever,
    documents,
    planned,
    scores,
)
from tests.scorers.tap import Tap
from tests.scorers.tapped import has_row, until

ALL_PAIRS = [(query, text) for query in QUERIES for text in TEXTS]


def inputs(queries: list[str] = QUERIES) -> list[dict[str, Any]]:
    return [{"query": query, "documents": documents()} for query in queries]


def test_batch_is_one_pool() -> None:
    """Four queries of twelve documents run exactly the forwards of one plan over all 48 pairs."""
    backend = CountingBackend()
    with reranker_over(backend) as reranker:
        compressor = CrossEncoderCompressor(reranker=reranker, top_n=None)
        together = compressor.batch(inputs())
        assert backend.forwards == planned(ALL_PAIRS)
        assert backend.rows == len(ALL_PAIRS)
        alone = [compressor.invoke(given) for given in inputs()]
        assert backend.forwards > 2 * planned(ALL_PAIRS)
    assert together == alone


async def test_abatch_is_one_pool() -> None:
    """The same for abatch."""
    backend = CountingBackend()
    with reranker_over(backend) as reranker:
        compressor = CrossEncoderCompressor(reranker=reranker, top_n=None)
        together = await compressor.abatch(inputs())
        assert backend.forwards == planned(ALL_PAIRS)
        assert together == [await compressor.ainvoke(given) for given in inputs()]


def test_a_batch_s_scores_are_those_of_single_calls(ready: Reranker) -> None:
    """On the real model a score does not depend on who shares its batch (law 2: 1e-5)."""
    compressor = CrossEncoderCompressor(reranker=ready, top_n=None)
    for together, given in zip(compressor.batch(inputs()), inputs(), strict=True):
        np.testing.assert_allclose(scores(together), scores(compressor.invoke(given)), atol=1e-5)


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_chain_s_batch_is_one_pool(asynchronous: bool) -> None:
    """LCEL hands a whole batch to each step, so a chain over four queries is one pool as well."""
    backend = CountingBackend()
    with reranker_over(backend) as reranker:
        chain = RunnableParallel(
            documents=ListRetriever(found=documents()), query=RunnablePassthrough()
        ) | CrossEncoderCompressor(reranker=reranker)
        found = await chain.abatch(QUERIES) if asynchronous else chain.batch(QUERIES)
        assert backend.forwards == planned(ALL_PAIRS)
        assert found == [chain.invoke(query) for query in QUERIES]


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_retriever_s_batch_is_one_pool(asynchronous: bool) -> None:
    """RerankingRetriever.batch and abatch score the candidates of all queries together."""
    backend = CountingBackend()
    with reranker_over(backend) as reranker:
        retriever = RerankingRetriever(
            base_retriever=ListRetriever(found=documents()), reranker=reranker
        )
        found = await retriever.abatch(QUERIES) if asynchronous else retriever.batch(QUERIES)
        assert backend.forwards == planned(ALL_PAIRS)
        assert found == [retriever.invoke(query) for query in QUERIES]


def test_settings_of_each_input_are_its_own() -> None:
    """A list of configs gives each input its own top_n, in the one pool."""
    backend = CountingBackend()
    with reranker_over(backend) as reranker:
        found = CrossEncoderCompressor(reranker=reranker).batch(
            inputs(), [{"configurable": {"top_n": n}} for n in (1, 2, 3, 4)]
        )
        assert backend.forwards == planned(ALL_PAIRS)
    assert [len(each) for each in found] == [1, 2, 3, 4]


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_bad_input_fails_only_itself(asynchronous: bool) -> None:
    """A blank query, a bare list and a bad document, beside two inputs that are answered."""
    backend = CountingBackend()
    good = inputs(QUERIES[:2])
    given: list[Any] = [
        good[0],
        {"query": " ", "documents": documents()},
        documents(),
        {"query": QUERY, "documents": ["text"]},
        good[1],
    ]
    with reranker_over(backend) as reranker:
        compressor = CrossEncoderCompressor(reranker=reranker)
        if asynchronous:
            found = await compressor.abatch(given, return_exceptions=True)
        else:
            found = compressor.batch(given, return_exceptions=True)
        assert backend.forwards == planned(ALL_PAIRS[: 2 * len(TEXTS)])
        assert [found[0], found[4]] == [compressor.invoke(one) for one in good]
        assert all(isinstance(error, InputError) for error in found[1:4])
        with pytest.raises(InputError, match="query must be a str that is not blank"):
            compressor.batch(given)


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_poisonous_pair_fails_only_its_query(asynchronous: bool) -> None:
    """A forward that fails on one query's text: that query gets the error, three get documents."""
    poison = "supercalifragilistic"
    backend = FaultyBackend(lambda batch: None)
    given = inputs()
    given[2]["documents"].append(Document(poison))
    with reranker_over(backend) as reranker:
        row = encoded([(QUERIES[2], poison)])
        backend.rule = lambda batch: (
            RuntimeError("kernel fault") if has_row(batch, row).any() else None
        )
        compressor = CrossEncoderCompressor(reranker=reranker)
        if asynchronous:
            found = await compressor.abatch(given, return_exceptions=True)
        else:
            found = compressor.batch(given, return_exceptions=True)
        assert isinstance(found[2], BackendError)
        assert "kernel fault" in str(found[2])
        for index in (0, 1, 3):
            assert found[index] == compressor.invoke(given[index])


def out_of_memory(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    raise MemoryError("no room for activations")


def one_too_few(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    return logits[:-1]


@pytest.mark.parametrize(
    ("spoil", "message", "cause"),
    [
        (one_too_few, r"logits of shape \(0, 1\) for 1 pairs", type(None)),
        (out_of_memory, r"pair 12 ran out of memory, even alone, with \d+ tokens", MemoryError),
    ],
)
def test_a_forward_that_fails_one_caller_of_four(
    spoil: Callable[..., Any], message: str, cause: type
) -> None:
    """Four threads in shared batches, one pair at fault: its caller is told, three are answered."""
    tap = Tap(CountingBackend())
    given = [one["documents"] for one in inputs()]
    given[2].append(Document("supercalifragilistic"))
    before = copy.deepcopy(given)
    waiting = [
        (query, one.page_content) for query, of in zip(QUERIES, given, strict=True) for one in of
    ]
    with reranker_over(tap) as reranker, ThreadPoolExecutor(5) as threads:
        row = encoded([(QUERIES[2], given[2][-1].page_content)])
        tap.edit = lambda batch, logits: spoil(logits) if has_row(batch, row).any() else logits
        compress = CrossEncoderCompressor(reranker=reranker, top_n=None).compress_documents
        with tap.held():
            threads.submit(compress, documents()[:1], QUERY)
            assert tap.entered.wait(60)
            calls = [threads.submit(compress, *call) for call in zip(given, QUERIES, strict=True)]
            until(lambda: reranker.stats()["queue_tokens"] == _tokens(waiting))
        error = calls.pop(2).exception()
        assert isinstance(error, BackendError)
        assert re.search(message, str(error))
        assert type(error.__cause__) is cause
        alone = [compress(given[index], QUERIES[index]) for index in (0, 1, 3)]
        assert [call.result() for call in calls] == alone
    assert given == before


def test_memory_that_runs_out_halves_the_batch_and_changes_no_score() -> None:
    """No forward of more than three pairs fits: all twelve are scored, each once, as ever."""
    backend = FaultyBackend(lambda batch: MemoryError("no room") if len(batch) > 3 else None)
    given = documents()
    with reranker_over(backend) as reranker, reranker_over(CountingBackend()) as roomy:
        found = CrossEncoderCompressor(reranker=reranker).compress_documents(given, QUERY)
        assert found == CrossEncoderCompressor(reranker=roomy).compress_documents(given, QUERY)
        assert reranker.stats()["splits"] == backend.faults > 0
    assert backend.rows == len(TEXTS)
    assert max(len(batch) for batch in backend.batches) <= 3
    assert given == documents()


def test_a_retriever_s_bad_query_fails_only_itself(ready: Reranker) -> None:
    """The base retriever's error comes back where its documents would; the others are answered."""
    retriever = RerankingRetriever(
        base_retriever=ListRetriever(found=documents(), fails_on=QUERIES[1]), reranker=ready
    )
    found = retriever.batch(QUERIES, return_exceptions=True)
    assert isinstance(found[1], LookupError)
    for index in (0, 2, 3):
        assert found[index] == retriever.invoke(QUERIES[index])
    with pytest.raises(LookupError):
        retriever.batch(QUERIES)


def test_an_empty_batch_is_empty(ready: Reranker) -> None:
    """No inputs, no outputs, no forwards."""
    assert CrossEncoderCompressor(reranker=ready).batch([]) == []
    retriever = RerankingRetriever(base_retriever=ListRetriever(found=[]), reranker=ready)
    assert retriever.batch([]) == []
    assert retriever.invoke(QUERY) == []


@pytest.fixture
async def executor_refuses() -> AsyncIterator[None]:
    """The running loop's default executor takes nothing: whoever submits to it fails the test."""

    class Refusing(ThreadPoolExecutor):
        def submit(self, *args: Any, **kwargs: Any) -> Any:
            raise AssertionError("the loop's default executor was used")

    executor = Refusing(1)
    asyncio.get_running_loop().set_default_executor(executor)
    yield
    executor.shutdown()


async def test_concurrent_calls_share_forwards(executor_refuses: None) -> None:
    """64 calls that wait behind a held forward run as one plan over all of their 768 pairs."""
    backend = HeldBackend()
    queries = [f"{QUERIES[index % 4]} {index}" for index in range(64)]
    waiting = [(query, text) for query in queries for text in TEXTS]
    with reranker_over(backend) as reranker:
        compressor = CrossEncoderCompressor(reranker=reranker, top_n=None)
        held = asyncio.create_task(compressor.acompress_documents(documents()[:1], QUERY))
        await _until(backend.entered.is_set)
        calls = [
            asyncio.create_task(compressor.acompress_documents(documents(), query))
            for query in queries
        ]
        await _until(lambda: reranker.stats()["queue_tokens"] == _tokens(waiting))
        backend.release.set()
        found = await asyncio.gather(*calls)
        await held
        assert backend.forwards == 1 + planned(waiting)
        assert backend.rows == 1 + len(waiting)
        alone = [compressor.compress_documents(documents(), query) for query in queries[:4]]
    assert found[:4] == alone


def test_threads_share_forwards() -> None:
    """Sixteen plain threads behind a held forward: one plan over all of their 192 pairs."""
    backend = HeldBackend()
    queries = [f"{QUERIES[index % 4]} {index}" for index in range(16)]
    waiting = [(query, text) for query in queries for text in TEXTS]
    with reranker_over(backend) as reranker, ThreadPoolExecutor(17) as threads:
        compress = CrossEncoderCompressor(reranker=reranker, top_n=None).compress_documents
        threads.submit(compress, documents()[:1], QUERY)
        assert backend.entered.wait(60)
        calls = [threads.submit(compress, documents(), query) for query in queries]
        until(lambda: reranker.stats()["queue_tokens"] == _tokens(waiting))
        backend.release.set()
        found = [call.result() for call in calls]
        assert backend.forwards == 1 + planned(waiting)
        assert backend.rows == 1 + len(waiting)
        assert found == [compress(documents(), query) for query in queries]


def test_threads_get_what_a_serial_call_gives() -> None:
    """Eight threads at once, three rounds each, on the bundled int8 model: equal to the bit."""
    queries = [f"{query} {index}" for query in QUERIES for index in range(2)]
    given = [document for document in documents() if len(document.page_content) < 500]
    together = threading.Barrier(len(queries))
    with CrossEncoderCompressor(device="cpu", top_n=None) as compressor:
        alone = [compressor.compress_documents(given, query) for query in queries]

        def call(query: str) -> list[list[Document]]:
            together.wait(60)
            return [compressor.compress_documents(given, query) for _ in range(3)]

        with ThreadPoolExecutor(len(queries)) as threads:
            assert list(threads.map(call, queries)) == [[found] * 3 for found in alone]
    assert len({str(scores(found)) for found in alone}) == len(queries)


async def test_cancelling_one_call_leaves_the_others_alone() -> None:
    """One of three calls that wait is cancelled: it is never scored, the others are answered."""
    backend = HeldBackend()
    with reranker_over(backend) as reranker:
        compressor = CrossEncoderCompressor(reranker=reranker)
        held = asyncio.create_task(compressor.acompress_documents(documents()[:1], QUERY))
        await _until(backend.entered.is_set)
        calls = [
            asyncio.create_task(compressor.acompress_documents(documents(), query))
            for query in QUERIES[:3]
        ]
        waiting = [(query, text) for query in QUERIES[:3] for text in TEXTS]
        await _until(lambda: reranker.stats()["queue_tokens"] == _tokens(waiting))
        calls[1].cancel()
        with pytest.raises(asyncio.CancelledError):
            await calls[1]
        backend.release.set()
        found = [await calls[0], await calls[2], await held]
        assert backend.rows == 1 + 2 * len(TEXTS)
        assert found[0] == compressor.compress_documents(documents(), QUERIES[0])
        assert found[1] == compressor.compress_documents(documents(), QUERIES[2])


async def test_context_variables_reach_text_fn(ready: Reranker) -> None:
    """What the caller set is seen where its documents are read, sync and async."""
    user: contextvars.ContextVar[str] = contextvars.ContextVar("user")
    seen = set()

    def text_of(document: Document) -> str:
        seen.add(user.get("nobody"))
        return document.page_content

    compressor = CrossEncoderCompressor(reranker=ready, text_fn=text_of)
    user.set("ada")
    await compressor.acompress_documents(documents(), QUERY)
    compressor.compress_documents(documents(), QUERY)
    assert seen == {"ada"}


FIRST_CALL = """
import asyncio, sys
from blockbuster import blockbuster_ctx
from langchain_core.documents import Document
from rerank_adapters.langchain import CrossEncoderCompressor, RerankingRetriever

class Refusing:
    def submit(self, *args, **kwargs):
        raise AssertionError("the loop's default executor was used")

async def main():
    asyncio.get_running_loop()._default_executor = Refusing()
    documents = [Document("Short wavelengths scatter more."), Document("A haiku names a season.")]
    with blockbuster_ctx():
        compressor = CrossEncoderCompressor(model=sys.argv[1], backend="onnx", device="cpu")
        calls = [compressor.acompress_documents(documents, "why is the sky blue") for _ in range(8)]
        found = await asyncio.gather(*calls)
        batched = await compressor.abatch([{"query": "sky", "documents": documents}] * 2)
    asyncio.get_running_loop()._default_executor = None
    assert found.count(found[0]) == 8 and len(found[0]) == 2 and len(batched) == 2
    assert "torch" not in sys.modules
    print("clean")

asyncio.run(main())
"""


def test_the_first_call_ever_does_not_block_the_loop(model: str) -> None:
    """Loading and scoring in a fresh process, under blockbuster, with no default executor."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FIRST_CALL, model],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "clean\n"


def _tokens(pairs: list[tuple[str, str]]) -> int:
    return int(encoded(pairs).lengths.sum())


async def _until(condition: Callable[[], bool]) -> None:
    """Wait for a state that is bound to come; the test's own timeout is the only clock."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)
