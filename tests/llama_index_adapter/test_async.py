"""Native async: the loop keeps running, queries share forwards, and no loop is held on to."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor

import pytest
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import MetadataMode, NodeWithScore, TextNode

from rerank_adapters import Reranker, sharing
from rerank_adapters.llama_index import CrossEncoderPostprocessor
from tests.exported import exported
from tests.fakes import CountingBackend, HeldBackend, reranker_over
from tests.llama_index_adapter.examples import QUERY, InMemoryRetriever, nodes, outcome

pytestmark = pytest.mark.usefixtures("mocks")

QUERIES = [f"which {letter} is it" for letter in "abcdefgh"]
# Texts of one length in tokens: forwards are counted, not how batches are cut by length.
EQUAL = [f"a word about {letter} here" for letter in "abcde"]

Outcome = list[tuple[str, float | None]]


def engine(postprocessor: CrossEncoderPostprocessor) -> RetrieverQueryEngine:
    return RetrieverQueryEngine.from_args(
        InMemoryRetriever(nodes(EQUAL, file="f")),
        node_postprocessors=[postprocessor],
        response_mode="no_text",
    )


async def queued(reranker: Reranker, pairs: int) -> None:
    """Wait until *pairs* are in the queue; 60 s only bound a failing test."""
    async with asyncio.timeout(60):
        while reranker.stats()["queue_pairs"] < pairs:
            await asyncio.sleep(0)


async def began(event: threading.Event) -> None:
    """Wait for *event* off the loop; 60 s only bound a failing test."""
    assert await asyncio.to_thread(event.wait, 60)


async def aquery(postprocessor: CrossEncoderPostprocessor, query: str) -> Outcome:
    return outcome((await engine(postprocessor).aquery(query)).source_nodes)


async def aqueries(postprocessor: CrossEncoderPostprocessor) -> list[Outcome]:
    return await asyncio.gather(*(aquery(postprocessor, query) for query in QUERIES))


def queries(postprocessor: CrossEncoderPostprocessor) -> list[Outcome]:
    it = engine(postprocessor)
    return [outcome(it.query(query).source_nodes) for query in QUERIES]


async def test_eight_queries_share_two_forwards():
    """§5.4: eight aquery of five nodes; the first forward is held, the second takes all others.

    Meanwhile the loop keeps coming round, and every query gets what it would get alone.
    """
    backend = HeldBackend()
    with reranker_over(backend) as reranker:
        postprocessor = CrossEncoderPostprocessor(reranker=reranker, top_n=None)
        texts = [it.node.get_content(MetadataMode.EMBED) for it in nodes(EQUAL, file="f")]
        assert len({*reranker.count_tokens(texts)}) == len({*reranker.count_tokens(QUERIES)}) == 1
        first = asyncio.ensure_future(aquery(postprocessor, QUERIES[0]))
        await began(backend.entered)
        others = [asyncio.ensure_future(aquery(postprocessor, query)) for query in QUERIES[1:]]
        await queued(reranker, 7 * 5)
        assert sum([await asyncio.sleep(0, 1) for _ in range(1000)]) == 1000
        assert not any(task.done() for task in (first, *others))
        backend.release.set()
        results = await asyncio.gather(first, *others)
        assert backend.forwards == 2
        assert results == queries(postprocessor)


def test_two_event_loops_in_turn():
    """§5.4: nothing is bound to the loop of the first call, nor to one that is closed."""
    with reranker_over(CountingBackend()) as reranker:
        postprocessor = CrossEncoderPostprocessor(reranker=reranker, top_n=None)
        first, second = (asyncio.run(aqueries(postprocessor)) for _ in range(2))
    assert first == second


def test_threads_and_loops_at_once():
    """§5.4: sync calls from threads and loops in other threads get the same results."""
    with reranker_over(CountingBackend()) as reranker:
        postprocessor = CrossEncoderPostprocessor(reranker=reranker, top_n=None)
        wanted = queries(postprocessor)
        together = threading.Barrier(8)

        def call(number: int) -> list[Outcome]:
            together.wait()
            return asyncio.run(aqueries(postprocessor)) if number % 2 else queries(postprocessor)

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(call, range(8))) == [wanted] * 8


async def test_a_cancelled_waiter_leaves_the_others():
    """§5.4: the cancelled query's pairs are never run, the others come back as they would alone."""
    backend = HeldBackend()
    with reranker_over(backend) as reranker:
        postprocessor = CrossEncoderPostprocessor(reranker=reranker, top_n=None)

        def start(query: str) -> asyncio.Future[list[NodeWithScore]]:
            call: Awaitable = postprocessor.apostprocess_nodes(
                nodes(EQUAL, file="f"), query_str=query
            )
            return asyncio.ensure_future(call)

        tasks = [start(QUERIES[0])]
        await began(backend.entered)
        tasks += [start(query) for query in QUERIES[1:]]
        await queued(reranker, 7 * 5)
        tasks[3].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[3]
        backend.release.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert backend.rows == 7 * 5
        for index, (query, result) in enumerate(zip(QUERIES, results, strict=True)):
            if index == 3:
                assert isinstance(result, asyncio.CancelledError)
            else:
                alone = postprocessor.postprocess_nodes(nodes(EQUAL, file="f"), query_str=query)
                assert outcome(result) == outcome(alone)


async def test_settings_are_those_of_the_calls_start():
    """What is assigned while a call waits for the device changes the next one, not that one."""
    backend = HeldBackend()
    with reranker_over(backend) as reranker:
        postprocessor = CrossEncoderPostprocessor(reranker=reranker, top_n=3)
        task = asyncio.ensure_future(
            postprocessor.apostprocess_nodes(nodes(EQUAL), query_str=QUERY)
        )
        await began(backend.entered)
        postprocessor.top_n, postprocessor.score_threshold = 1, 1e9
        postprocessor.keep_retrieval_score = True
        backend.release.set()
        result = await task
        assert len(result) == 3
        assert not any("retrieval_score" in it.metadata for it in result)
        assert await postprocessor.apostprocess_nodes(nodes(EQUAL), query_str=QUERY) == []


async def test_the_model_is_that_of_the_calls_start(monkeypatch: pytest.MonkeyPatch):
    """A field of the model assigned while it loads does not change what the call runs on."""
    asked, go = threading.Event(), threading.Event()
    find = sharing.find

    def slow_find(config: object) -> object:
        asked.set()
        assert go.wait(60), "nobody let the loading go on within 60 s"
        return find(config)

    fields = {"model": str(exported("bert")), "backend": "onnx", "max_length": 45}
    with CrossEncoderPostprocessor(**fields) as usual:
        wanted = outcome(usual.postprocess_nodes(nodes(), query_str=QUERY))
    sharing.close_all()
    monkeypatch.setattr(sharing, "find", slow_find)
    with CrossEncoderPostprocessor(**fields) as postprocessor:
        task = asyncio.ensure_future(postprocessor.apostprocess_nodes(nodes(), query_str=QUERY))
        await began(asked)
        postprocessor.activation = "sigmoid"
        go.set()
        assert outcome(await task) == wanted


async def test_long_metadata_are_counted_off_the_loop(monkeypatch: pytest.MonkeyPatch):
    """Tokens of long metadata are counted in a thread: the loop runs on; sync and async agree."""
    threads = []
    with reranker_over(CountingBackend()) as reranker:
        count = reranker.count_tokens
        monkeypatch.setattr(
            reranker,
            "count_tokens",
            lambda texts: threads.append(threading.current_thread()) or count(texts),
        )
        postprocessor = CrossEncoderPostprocessor(reranker=reranker, top_n=None)
        given = nodes(EQUAL, summary="the treaty was signed " * 50)
        result = await postprocessor.apostprocess_nodes(given, query_str=QUERY)
        assert threads
        assert threading.current_thread() not in threads
        assert outcome(result) == outcome(postprocessor.postprocess_nodes(given, query_str=QUERY))


async def test_loading_leaves_the_loop_alone(monkeypatch: pytest.MonkeyPatch):
    """The first awaited call loads in a thread, while the loop comes round a thousand times."""
    asked, go = threading.Event(), threading.Event()
    find = sharing.find

    def slow_find(config: object) -> object:
        asked.set()
        assert go.wait(60), "nobody let the loading go on within 60 s"
        return find(config)

    monkeypatch.setattr(sharing, "find", slow_find)
    fields = {"model": str(exported("bert")), "backend": "onnx", "max_length": 43}
    with CrossEncoderPostprocessor(**fields) as postprocessor:
        given = [NodeWithScore(node=TextNode(text="a text"))]
        task = asyncio.ensure_future(postprocessor.apostprocess_nodes(given, query_str=QUERY))
        await began(asked)
        assert sum([await asyncio.sleep(0, 1) for _ in range(1000)]) == 1000
        assert not task.done()
        go.set()
        assert len(await task) == 1
