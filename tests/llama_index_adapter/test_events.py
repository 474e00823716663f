"""What traces hold: one start and one end per call, in one span, and the truth in both."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from llama_index.core.callbacks import EventPayload
from llama_index.core.schema import NodeWithScore, QueryBundle

from rerank_adapters import InputError
from rerank_adapters.llama_index import CrossEncoderPostprocessor
from tests.exported import exported
from tests.fakes import CountingBackend, FaultyBackend, HeldBackend, reranker_over
from tests.llama_index_adapter.examples import QUERY, nodes, outcome
from tests.llama_index_adapter.recording import CallbackLog, recording

Run = Callable[
    [CrossEncoderPostprocessor, list[NodeWithScore], QueryBundle | None],
    Awaitable[list[NodeWithScore]],
]


async def sync(postprocessor, given, query) -> list[NodeWithScore]:
    return postprocessor.postprocess_nodes(given, query)


async def native(postprocessor, given, query) -> list[NodeWithScore]:
    return await postprocessor.apostprocess_nodes(given, query)


BOTH = pytest.mark.parametrize(
    ("run", "span"), [(sync, "_postprocess_nodes"), (native, "_apostprocess_nodes")]
)


def broken(batch: object) -> BaseException:
    return RuntimeError("the forward broke")


@BOTH
async def test_one_start_and_one_end_in_one_span(run: Run, span: str):
    """§5.5: two instrumentation events and one callback pair, whichever way it was called."""
    log = CallbackLog()
    with reranker_over(CountingBackend()) as reranker, recording() as seen:
        postprocessor = CrossEncoderPostprocessor(
            reranker=reranker, callback_manager=log.manager, top_n=3
        )
        given = nodes()
        result = await run(postprocessor, given, QueryBundle(f"{QUERY}\n"))
    (start,), (end,) = seen.starts, seen.ends
    (name,) = seen.ended
    assert seen.dropped == []
    assert name.startswith(f"CrossEncoderPostprocessor.{span}-")
    assert start.span_id == end.span_id == name
    assert (start.query, start.top_n) == (QUERY, 3)
    assert outcome(end.nodes) == outcome(result)
    ((started, payload),), ((ended, answer),) = log.starts, log.ends
    assert started == ended
    assert payload[EventPayload.QUERY_STR] == QUERY
    assert payload[EventPayload.TOP_K] == 3
    assert outcome(answer[EventPayload.NODES]) == outcome(result)


@BOTH
@pytest.mark.parametrize("keep", [False, True])
async def test_the_start_still_shows_retrieval_scores(run: Run, span: str, keep: bool):
    """§5.5: after the call the start's payloads hold the nodes as they were retrieved."""
    log = CallbackLog()
    with reranker_over(CountingBackend()) as reranker, recording() as seen:
        postprocessor = CrossEncoderPostprocessor(
            reranker=reranker, callback_manager=log.manager, keep_retrieval_score=keep
        )
        given = nodes()
        await run(postprocessor, given, QueryBundle(QUERY))
        given.clear()  # what the caller does with its own list is not seen either
    assert outcome(seen.starts[0].nodes) == outcome(nodes())
    assert outcome(log.starts[0][1][EventPayload.NODES]) == outcome(nodes())
    assert all("retrieval_score" not in it.metadata for it in seen.starts[0].nodes)


@BOTH
@pytest.mark.parametrize(
    "source", [{"model": str(exported("bert"))}, {"model": "default", "top_n": None}]
)
async def test_events_name_the_model(run: Run, span: str, source: dict[str, Any], monkeypatch):
    """§2: model_name is a str and top_n an int, also where top_n=None keeps all."""
    with reranker_over(CountingBackend()) as reranker, recording() as seen:
        postprocessor = CrossEncoderPostprocessor(**source)
        monkeypatch.setattr(CrossEncoderPostprocessor, "_ranker", lambda self: reranker)
        monkeypatch.setattr(CrossEncoderPostprocessor, "_aranker", _later(reranker))
        await run(postprocessor, nodes(), QueryBundle(QUERY))
    assert seen.starts[0].model_name == source["model"]
    assert seen.starts[0].top_n == source.get("top_n", 2) or len(nodes())


def _later(reranker: object) -> Callable[..., Awaitable[object]]:
    async def aranker(self: object) -> object:
        return reranker

    return aranker


@BOTH
async def test_a_failed_forward_closes_everything(run: Run, span: str):
    """§5.5: the end follows the start, empty; the span is dropped, the callback has the error."""
    log = CallbackLog()
    with reranker_over(FaultyBackend(broken)) as reranker, recording() as seen:
        postprocessor = CrossEncoderPostprocessor(reranker=reranker, callback_manager=log.manager)
        with pytest.raises(Exception, match="the forward broke"):
            await run(postprocessor, nodes(), QueryBundle(QUERY))
    assert len(seen.starts) == 1
    assert [end.nodes for end in seen.ends] == [[]]
    assert seen.ended == []
    ((name, error),) = seen.dropped
    assert name == seen.starts[0].span_id == seen.ends[0].span_id
    assert "the forward broke" in str(error)
    (started, _), (ended, payload) = log.starts[0], log.ends[0]
    assert (len(log.starts), len(log.ends), started) == (1, 1, ended)
    assert "the forward broke" in str(payload[EventPayload.EXCEPTION])


async def test_a_cancelled_call_closes_everything():
    """§5.5: cancellation ends the events and drops the span like any other error."""
    log, backend = CallbackLog(), HeldBackend()
    with reranker_over(backend) as reranker, recording() as seen:
        postprocessor = CrossEncoderPostprocessor(reranker=reranker, callback_manager=log.manager)
        task = asyncio.ensure_future(postprocessor.apostprocess_nodes(nodes(), query_str=QUERY))
        await asyncio.to_thread(backend.entered.wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        backend.release.set()
    assert (len(seen.starts), len(seen.ends), len(seen.dropped)) == (1, 1, 1)
    assert (len(log.starts), len(log.ends)) == (1, 1)


@BOTH
async def test_nothing_to_rerank_tells_nothing(run: Run, span: str):
    """§5.5: no nodes, no events and no model; no query, an InputError and no events."""
    log = CallbackLog()
    with recording() as seen:
        postprocessor = CrossEncoderPostprocessor(
            model="no/such-model", local_files_only=True, callback_manager=log.manager
        )
        assert await run(postprocessor, [], QueryBundle(QUERY)) == []
        for given in (nodes(), []):
            with pytest.raises(InputError, match="query"):
                await run(postprocessor, given, None)
    assert seen.starts == seen.ends == log.starts == log.ends == []


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("run", ["postprocess_nodes_batch", "apostprocess_nodes_batch"])
async def test_a_batch_tells_of_each_request(run: str, fails: bool):
    """One pair of events per request with nodes, all in the batch's one span, closed on errors."""
    log = CallbackLog()
    backend = FaultyBackend(broken) if fails else CountingBackend()
    requests = [(QUERY, nodes()), ("nothing", []), ("another", nodes()[:2])]
    with reranker_over(backend) as reranker, recording() as seen:
        postprocessor = CrossEncoderPostprocessor(reranker=reranker, callback_manager=log.manager)
        call = getattr(postprocessor, run)
        try:
            answer = call(requests)
            await answer if run[0] == "a" else answer
        except Exception:
            assert fails
    (span,) = [name for name, _ in seen.dropped] if fails else seen.ended
    assert span.startswith(f"CrossEncoderPostprocessor.{run}-")
    assert [start.query for start in seen.starts] == [QUERY, "another"]
    assert len(seen.ends) == 2
    assert {event.span_id for event in (*seen.starts, *seen.ends)} == {span}
    assert sorted(name for name, _ in log.starts) == sorted(name for name, _ in log.ends)
    assert len(log.starts) == 2
