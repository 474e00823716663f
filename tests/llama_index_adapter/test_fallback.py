"""on_blank_query and on_error: by choice, nodes come back as they came where none can be ranked."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core import SummaryIndex
from llama_index.core.callbacks import EventPayload
from llama_index.core.instrumentation.events.exception import ExceptionEvent
from llama_index.core.llms import CompletionResponse, CustomLLM, LLMMetadata
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.schema import ImageNode, NodeWithScore, QueryBundle

from rerank_adapters import BackendError, ConfigError, InputError
from rerank_adapters.llama_index import CrossEncoderPostprocessor
from rerank_adapters.protocols import ModelInfo
from rerank_adapters.tokens import TokenBatch
from tests.fakes import CountingBackend, FaultyBackend, reranker_over
from tests.llama_index_adapter.examples import QUERY, nodes, outcome
from tests.llama_index_adapter.recording import CallbackLog, recording


async def ways(
    postprocessor: CrossEncoderPostprocessor, query: Any, given: Callable[[], list[NodeWithScore]]
) -> list[list[tuple[str, float | None]]]:
    """What each way in gives."""
    bundle = query if isinstance(query, QueryBundle) else QueryBundle(query)
    return [
        outcome(postprocessor.postprocess_nodes(given(), bundle)),
        outcome(await postprocessor.apostprocess_nodes(given(), bundle)),
        *map(outcome, postprocessor.postprocess_nodes_batch([(query, given())])),
        *map(outcome, await postprocessor.apostprocess_nodes_batch([(query, given())])),
    ]


def unscored(*names: str) -> list[tuple[str, None]]:
    return [(name, None) for name in names]


def beside_images() -> list[NodeWithScore]:
    images = [NodeWithScore(node=ImageNode(id_=name, image_path="i.png")) for name in ("i", "j")]
    return [images[0], *nodes()[:2], images[1]]


@pytest.mark.parametrize("query", ["", " \n\t", QueryBundle("\n")])
async def test_a_blank_query_keeps_nodes_as_they_came(query: Any):
    """In their order, cut to top_n, unscored and so without a bound; nothing is run."""
    backend = CountingBackend()
    with reranker_over(backend) as reranker:
        fields = {"reranker": reranker, "on_blank_query": "keep", "score_threshold": 1e9}
        keep = CrossEncoderPostprocessor(top_n=2, **fields)
        assert await ways(keep, query, nodes) == [unscored("node-0", "node-1")] * 4
        among = CrossEncoderPostprocessor(top_n=1, **fields)
        assert await ways(among, query, beside_images) == [unscored("i")] * 4
        beside = CrossEncoderPostprocessor(top_n=1, keep_unscored=True, **fields)
        assert await ways(beside, query, beside_images) == [unscored("i", "node-0", "j")] * 4
        given = nodes()
        before = outcome(given)
        kept = CrossEncoderPostprocessor(keep_retrieval_score=True, **fields)
        result = kept.postprocess_nodes(given, QueryBundle(" "))
        assert [it.metadata["retrieval_score"] for it in result] == [0.9, 0.8]
        assert outcome(given) == before
        error = CrossEncoderPostprocessor(reranker=reranker)
        with pytest.raises(InputError, match="on_blank_query"):
            error.postprocess_nodes(nodes(), QueryBundle(" "))
        with pytest.raises(InputError, match="query must be a str"):
            keep.postprocess_nodes(nodes(), None)
    assert backend.rows == 0


async def test_a_blank_query_in_a_batch_leaves_the_others():
    """The others are ranked as alone; each is told of with its own query."""
    with reranker_over(CountingBackend()) as reranker, recording() as seen:
        postprocessor = CrossEncoderPostprocessor(reranker=reranker, on_blank_query="keep")
        alone = outcome(postprocessor.postprocess_nodes(nodes(), query_str=QUERY))
        requests = [("", nodes()), (QUERY, nodes())]
        for results in (
            postprocessor.postprocess_nodes_batch(requests),
            await postprocessor.apostprocess_nodes_batch(requests),
        ):
            assert [outcome(it) for it in results] == [unscored("node-0", "node-1"), alone]
    assert [str(start.query) for start in seen.starts] == [QUERY, "", QUERY, "", QUERY]
    assert outcome(seen.ends[1].nodes) == unscored("node-0", "node-1")


class Condensing(CustomLLM):
    """Condenses every question to nothing."""

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata()

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return CompletionResponse(text="" if "standalone" in prompt else "You are welcome.")

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any):
        yield self.complete(prompt)


@pytest.mark.usefixtures("mocks")
@pytest.mark.parametrize("mode", ["condense_plus_context", "context"])
async def test_a_chat_goes_on_after_a_blank_question(mode: str):
    """run-llama/llama_index#11092: "thanks!" condensed to nothing, or nothing at all, is answered
    with the nodes as they came, awaited too.
    """
    with reranker_over(CountingBackend()) as reranker:
        postprocessor = CrossEncoderPostprocessor(reranker=reranker, top_n=1, on_blank_query="keep")
        index = SummaryIndex([it.node for it in nodes()])
        chat = index.as_chat_engine(
            chat_mode=mode,
            llm=Condensing(),
            node_postprocessors=[postprocessor],
            memory=ChatMemoryBuffer.from_defaults(),
        )
        blank = " " if mode == "context" else "thanks!"
        chat.chat(QUERY)
        answers = [chat.chat(blank), await chat.achat(blank)]
    for answer in answers:
        assert str(answer) == "You are welcome."
        assert outcome(answer.source_nodes) == unscored("node-0")


class BrokenRanker:
    """Raises the same error whatever it is asked."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def rerank_many(self, requests, **options):
        raise self.error

    async def arerank_many(self, requests, **options):
        raise self.error

    def info(self) -> ModelInfo:
        return ModelInfo(model="broken")

    def close(self) -> None:
        pass


@pytest.mark.parametrize("error", [BackendError("it broke"), TimeoutError("too late")])
async def test_a_failed_reranker_keeps_nodes_as_they_came(error: Exception, caplog):
    """First-stage order, cut, no score, no bound; the log warns, and the trace has the error."""
    log = CallbackLog()
    with recording() as seen, caplog.at_level(logging.WARNING):
        postprocessor = CrossEncoderPostprocessor(
            reranker=BrokenRanker(error),
            on_error="keep",
            score_threshold=9.0,
            top_n=2,
            callback_manager=log.manager,
        )
        results = await ways(postprocessor, QUERY, nodes)
    assert results == [unscored("node-0", "node-1")] * 4
    assert [str(error) in record.getMessage() for record in caplog.records] == [True] * 4
    assert seen.dropped == []
    told = [it for it in seen.events if isinstance(it, ExceptionEvent)]
    assert [it.exception for it in told] == [error] * 4
    assert [it.span_id for it in told] == [it.span_id for it in seen.ends]
    assert [outcome(it.nodes) for it in seen.ends] == results
    for _, payload in log.ends:
        assert payload[EventPayload.EXCEPTION] is error
        assert outcome(payload[EventPayload.NODES]) == results[0]


def test_a_model_that_cannot_be_loaded_is_such_an_error():
    """The model is missing: with on_error="keep" an answer goes on without it."""
    missing = CrossEncoderPostprocessor(model="/no/such/folder", on_error="keep")
    assert outcome(missing.postprocess_nodes(nodes(), query_str=QUERY)) == unscored(
        "node-0", "node-1"
    )


def test_of_a_batch_only_what_failed_is_kept():
    """One request's forward breaks: the other is ranked as alone."""

    def rule(batch: TokenBatch) -> BaseException | None:
        return RuntimeError("it broke") if batch.lengths.max() > 40 else None

    with reranker_over(FaultyBackend(rule)) as reranker:
        postprocessor = CrossEncoderPostprocessor(reranker=reranker, on_error="keep")
        alone = outcome(postprocessor.postprocess_nodes(nodes(), query_str=QUERY))
        results = postprocessor.postprocess_nodes_batch(
            [("long " * 20, nodes()[:1]), (QUERY, nodes())]
        )
    assert [outcome(it) for it in results] == [unscored("node-0"), alone]


@pytest.mark.parametrize(
    "error", [InputError("wrong"), RuntimeError("not ours"), KeyboardInterrupt()]
)
async def test_what_is_never_caught(error: BaseException):
    """Wrong input, errors of others' code, and an interrupt come out."""
    postprocessor = CrossEncoderPostprocessor(reranker=BrokenRanker(error), on_error="keep")
    with pytest.raises(type(error)):
        postprocessor.postprocess_nodes(nodes(), query_str=QUERY)
    with pytest.raises(type(error)):
        postprocessor.postprocess_nodes_batch([(QUERY, nodes())])
    cancelled = CrossEncoderPostprocessor(
        reranker=BrokenRanker(asyncio.CancelledError()), on_error="keep"
    )
    with pytest.raises(asyncio.CancelledError):
        await cancelled.apostprocess_nodes(nodes(), query_str=QUERY)
    with pytest.raises(BackendError):
        CrossEncoderPostprocessor(
            reranker=BrokenRanker(BackendError("it broke"))
        ).postprocess_nodes(nodes(), query_str=QUERY)


@pytest.mark.parametrize("name", ["on_blank_query", "on_error"])
def test_the_words_are_checked(name: str):
    """At construction and at assignment."""
    with pytest.raises(ConfigError, match=name):
        CrossEncoderPostprocessor(**{name: "ignore"})
    postprocessor = CrossEncoderPostprocessor()
    with pytest.raises(ConfigError, match=name):
        setattr(postprocessor, name, "ignore")
