"""What traces hold: one start and one end per call, in one span, and the truth in both."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from llama_index.core.callbacks import CallbackManager, EventPayload
from llama_index.core.callbacks.schema import BASE_TRACE_EVENT
from llama_index.core.instrumentation.span import active_span_id
from llama_index.core.schema import NodeWithScore, QueryBundle

from rerank_adapters import BackendError, InputError, sharing
from rerank_adapters.llama_index import CrossEncoderPostprocessor
from rerank_adapters.tokens import TokenBatch
from tests.exported import exported
from tests.fakes import CountingBackend, FaultyBackend, HeldBackend, reranker_over
from tests.llama_index_adapter.examples import QUERY, nodes, outcome
from tests.llama_index_adapter.recording import CallbackLog, instrumented, recording

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
        asked = QueryBundle(f"{QUERY}\n", custom_embedding_strs=["what was embedded"])
        result = await run(postprocessor, given, asked)
    (start,), (end,) = seen.starts, seen.ends
    (name,) = seen.ended
    assert seen.dropped == []
    assert name.startswith(f"CrossEncoderPostprocessor.{span}-")
    assert start.span_id == end.span_id == name
    assert start.query is asked, "what came in, not what was scored"
    assert start.top_n == 3
    assert outcome(end.nodes) == outcome(result)
    ((started, payload),), ((ended, answer),) = log.starts, log.ends
    assert started == ended
    assert payload[EventPayload.QUERY_STR] == asked.query_str
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
async def test_a_start_says_what_really_runs(run: Run, span: str):
    """Before anything is loaded a start says what was asked for, and its end what ran; then every
    start says it too, of other postprocessors of equal options as well. top_n=None is a count.
    """
    sharing.close_all()
    fields = {"model": str(exported("bert")), "max_length": 47, "top_n": None}
    asked = {"model": fields["model"], "backend": "auto", "device": "auto", "dtype": "auto"}
    with recording() as seen:
        first = CrossEncoderPostprocessor(**fields)
        for postprocessor in (first, first, CrossEncoderPostprocessor(**fields)):
            await run(postprocessor, nodes(), QueryBundle(QUERY))
    info = first._ranker().info()
    runs = {name: getattr(info, name) for name in asked}
    assert runs["backend"] == "onnx"
    assert runs["dtype"] == "float32"
    assert [start.tags for start in seen.starts] == [asked, runs, runs]
    assert [end.tags for end in seen.ends] == [runs, runs, runs]
    assert {start.model_name for start in seen.starts} == {info.model}
    assert {start.top_n for start in seen.starts} == {len(nodes())}


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


async def batch(postprocessor: CrossEncoderPostprocessor, run: str, requests: list) -> list:
    answer = getattr(postprocessor, run)(requests)
    return await answer if run[0] == "a" else answer


BATCHES = pytest.mark.parametrize("run", ["postprocess_nodes_batch", "apostprocess_nodes_batch"])


@BATCHES
async def test_a_batch_has_a_span_and_a_pair_for_each_request(run: str):
    """Each request's start and end stand in a span of its own, beside the others and not in them;
    the same for the older callbacks. What came in is told: a str, a QueryBundle.
    """
    log, bundle = CallbackLog(), QueryBundle("another\n")
    requests = [(QUERY, nodes()), ("nothing", []), (bundle, nodes()[:2])]
    with reranker_over(CountingBackend()) as reranker, recording() as seen:
        postprocessor = CrossEncoderPostprocessor(reranker=reranker, callback_manager=log.manager)
        with instrumented("outer") as outer:
            answers = await batch(postprocessor, run, requests)
    hook = run.removesuffix("_batch")
    assert len(seen.ended) == 3
    assert all(name.startswith(f"CrossEncoderPostprocessor._{hook}-") for name in seen.ended)
    assert {seen.parents[name] for name in seen.ended} == {outer}
    assert [start.query for start in seen.starts] == [QUERY, bundle]
    assert [end.span_id for end in seen.ends] == [start.span_id for start in seen.starts]
    assert {start.span_id for start in seen.starts} < set(seen.ended)
    assert [outcome(end.nodes) for end in seen.ends] == [outcome(answers[0]), outcome(answers[2])]
    assert [name for name, _ in log.starts] == [name for name, _ in log.ends]
    assert [payload[EventPayload.QUERY_STR] for _, payload in log.starts] == [QUERY, "another\n"]
    assert log.parents == [BASE_TRACE_EVENT] * 2, "neither is a part of the other"
    assert active_span_id.get() is None


@BATCHES
@pytest.mark.parametrize("whole", [False, True])
async def test_of_a_batch_that_fails_each_request_tells_its_own(run: str, whole: bool):
    """One forward of two breaks: that request's span is dropped, the other's ends with its nodes.

    Where all break, all are dropped.
    """
    log = CallbackLog()
    requests = [("long " * 20, nodes()[:1]), (QUERY, nodes()[:2])]

    def rule(tokens: TokenBatch) -> BaseException | None:
        return RuntimeError("the forward broke") if whole or tokens.lengths.max() > 40 else None

    with reranker_over(FaultyBackend(rule)) as reranker, recording() as seen:
        postprocessor = CrossEncoderPostprocessor(reranker=reranker, callback_manager=log.manager)
        with pytest.raises(BackendError, match="the forward broke"):
            await batch(postprocessor, run, requests)
    failed, fine = seen.starts
    assert [name for name, _ in seen.dropped] == [failed.span_id] + [fine.span_id] * whole
    assert seen.ended == [fine.span_id] * (not whole)
    assert [len(end.nodes) for end in seen.ends] == [0, 0 if whole else 2]
    assert [EventPayload.EXCEPTION in payload for _, payload in log.ends] == [True, whole]


class Raising(CallbackLog):
    """A handler that raises at a start or an end."""

    def __init__(self, at: str) -> None:
        super().__init__()
        self.at = at

    def on_event_start(self, event_type, payload=None, event_id="", **kwargs):
        if self.at == "start":
            raise LookupError("the handler broke")
        return super().on_event_start(event_type, payload, event_id, **kwargs)

    def on_event_end(self, event_type, payload=None, event_id="", **kwargs):
        if self.at == "end":
            raise LookupError("the handler broke")
        super().on_event_end(event_type, payload, event_id, **kwargs)


@BATCHES
@pytest.mark.parametrize("at", ["start", "end"])
async def test_a_handler_that_raises_closes_what_was_opened(run: str, at: str):
    """Its error comes out; every other handler is told an end for each start, and no span stays
    open, whichever of the handlers it was.
    """
    before, after, raising = CallbackLog(), CallbackLog(), Raising(at)
    manager = CallbackManager([before, raising, after])
    with reranker_over(CountingBackend()) as reranker, recording() as seen:
        postprocessor = CrossEncoderPostprocessor(reranker=reranker, callback_manager=manager)
        with pytest.raises(LookupError, match="the handler broke"):
            await batch(postprocessor, run, [(QUERY, nodes()), ("another", nodes())])
        with pytest.raises(LookupError, match="the handler broke"):
            await (native if run[0] == "a" else sync)(postprocessor, nodes(), QueryBundle(QUERY))
    assert seen.open == []
    assert len(seen.starts) == len(seen.ends) == (2 if at == "start" else 3)
    for log in (before, after):
        assert len(log.starts) == len(seen.starts)
        assert [name for name, _ in log.starts] == [name for name, _ in log.ends]
    assert raising.ends == []
