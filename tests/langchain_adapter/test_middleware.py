"""RerankingMiddleware in create_agent: what the model reads after its tools have run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.documents import Document
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import create_retriever_tool, tool
from langchain_core.tracers.base import BaseTracer
from langchain_core.tracers.schemas import Run
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import Field

from rerank_adapters import InputError, Reranker
from rerank_adapters.langchain import CrossEncoderCompressor, RerankingMiddleware
from tests.langchain_adapter.samples import (
    KEY,
    QUERIES,
    QUERY,
    TEXTS,
    ListRetriever,
    documents,
    invoked,
)

HALF = len(TEXTS) // 2


class ScriptedModel(GenericFakeChatModel):
    """Says what the script says, and remembers what it read."""

    read: list[list[AnyMessage]] = Field(default_factory=list)

    def bind_tools(self, tools: Any, **kwargs: Any) -> ScriptedModel:
        return self

    def _generate(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        self.read.append(list(messages))
        return super()._generate(messages, *args, **kwargs)


def calls(*names: str, query: str = QUERY) -> AIMessage:
    """A model's turn that calls each of the tools."""
    return AIMessage(
        "",
        tool_calls=[
            {"name": name, "args": {"query": query}, "id": f"call-{name}"} for name in names
        ],
    )


def search(name: str, found: Sequence[Document]) -> Any:
    return create_retriever_tool(
        ListRetriever(found=list(found)),
        name,
        f"Searches {name}.",
        response_format="content_and_artifact",
    )


TOOLS = [search("news", documents()[:HALF]), search("books", documents()[HALF:])]


@tool
def clock() -> str:
    """Tells the time."""
    return "noon"


@pytest.fixture
def compressor(ready: Reranker) -> CrossEncoderCompressor:
    return CrossEncoderCompressor(reranker=ready)


async def run(
    middleware: RerankingMiddleware,
    script: Sequence[AIMessage],
    *,
    asynchronous: bool = False,
    question: str = "Please tell me.",
    config: Any = None,
) -> tuple[list[ToolMessage], list[AnyMessage]]:
    """The tool messages at the end of the agent's state, and what the model read last."""
    model = ScriptedModel(messages=iter([*script, AIMessage("done")]))
    agent = create_agent(
        model, [*TOOLS, clock], middleware=[middleware], checkpointer=InMemorySaver()
    )
    config = {"configurable": {"thread_id": "1"}} | (config or {})
    state = await invoked(
        agent, {"messages": [HumanMessage(question)]}, config, asynchronous=asynchronous
    )
    assert state["messages"][-1].content == "done"
    return [one for one in state["messages"] if isinstance(one, ToolMessage)], model.read[-1]


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_results_of_several_tools_compete(
    compressor: CrossEncoderCompressor, asynchronous: bool
) -> None:
    """The best three of twelve documents from two tools, each under the tool that found it."""
    messages, read = await run(
        RerankingMiddleware(compressor), [calls("news", "books")], asynchronous=asynchronous
    )
    wanted = compressor.compress_documents(documents(), QUERY)
    news = {document.id for document in documents()[:HALF]}
    assert [message.name for message in messages] == ["news", "books"]
    for message, own in (
        (messages[0], [document for document in wanted if document.id in news]),
        (messages[1], [document for document in wanted if document.id not in news]),
    ):
        assert message.artifact == own
        texts = "\n\n".join(document.page_content for document in own)
        assert message.content == (texts or "No relevant documents.")
    assert [one for one in read if isinstance(one, ToolMessage)] == messages


async def test_the_content_is_built_as_by_the_tool(compressor: CrossEncoderCompressor) -> None:
    """document_prompt may show the score; the separator is the caller's."""
    middleware = RerankingMiddleware(
        compressor.bind(top_n=2),
        document_prompt=PromptTemplate.from_template("[{relevance_score:.3f}] {page_content}"),
        document_separator=" | ",
    )
    (message,), _ = await run(middleware, [calls("books")])
    wanted = compressor.compress_documents(documents()[HALF:], QUERY, top_n=2)
    assert message.content == " | ".join(
        f"[{document.metadata[KEY]:.3f}] {document.page_content}" for document in wanted
    )


async def test_messages_without_documents_stay(compressor: CrossEncoderCompressor) -> None:
    """A tool that returns text beside one that returns documents; and one alone."""
    clock_call: Any = {"name": "clock", "args": {}, "id": "call-clock"}
    both = AIMessage("", tool_calls=[clock_call, *calls("news").tool_calls])
    (time, news), _ = await run(RerankingMiddleware(compressor), [both])
    assert time.content == "noon"
    assert len(news.artifact) == 3
    (alone,), _ = await run(
        RerankingMiddleware(compressor), [AIMessage("", tool_calls=[clock_call])]
    )
    assert alone.content == "noon"


async def test_each_round_is_reranked_once(compressor: CrossEncoderCompressor) -> None:
    """A second round of calls leaves the first round's messages alone."""
    second = AIMessage(
        "", tool_calls=[{"name": "books", "args": {"query": QUERIES[1]}, "id": "second"}]
    )
    (one, two), _ = await run(RerankingMiddleware(compressor), [calls("news"), second])
    assert one.artifact == compressor.compress_documents(documents()[:HALF], QUERY)
    assert two.artifact == compressor.compress_documents(documents()[HALF:], QUERIES[1])


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_each_call_is_ranked_by_its_own_query(
    compressor: CrossEncoderCompressor, asynchronous: bool
) -> None:
    """Its "query" argument, or a function of the call; three documents for each."""
    differing = calls("news", "books")
    differing.tool_calls[1]["args"]["query"] = QUERIES[1]
    half = {"news": documents()[:HALF], "books": documents()[HALF:]}
    for function, queries in (
        (None, {"news": QUERY, "books": QUERIES[1]}),
        (lambda call: f"{call['name']} {QUERIES[2]}", None),
    ):
        messages, _ = await run(
            RerankingMiddleware(compressor, query=function), [differing], asynchronous=asynchronous
        )
        for message in messages:
            query = queries[message.name] if queries else f"{message.name} {QUERIES[2]}"
            assert message.artifact == compressor.compress_documents(half[message.name], query)


async def test_a_document_that_two_tools_found_counts_once(
    compressor: CrossEncoderCompressor,
) -> None:
    """Of equal queries: top_n counts over different documents, each message shows its own."""
    both = [search("left", documents()[:8]), search("right", documents()[4:])]
    state: Any = {"messages": [HumanMessage("?"), calls("left", "right")]}
    state["messages"] += [
        one.invoke(c) for one, c in zip(both, calls("left", "right").tool_calls, strict=True)
    ]
    update = RerankingMiddleware(compressor.bind(top_n=5)).before_model(state, None)
    wanted = compressor.compress_documents(documents(), QUERY, top_n=5)
    left, right = update["messages"]
    assert left.artifact == [one for one in wanted if one in scored(documents()[:8], wanted)]
    assert right.artifact == [one for one in wanted if one in scored(documents()[4:], wanted)]
    assert {one.id for one in [*left.artifact, *right.artifact]} == {one.id for one in wanted}


def scored(found: list[Document], ranked: list[Document]) -> list[Document]:
    """The documents of *ranked* that are among *found*."""
    return [one for one in ranked if one.id in {document.id for document in found}]


async def test_a_call_without_a_query_is_ranked_by_the_human_s_words(
    compressor: CrossEncoderCompressor,
) -> None:
    """The last message with text, where the call has no "query" that is a str."""
    several = AIMessage(
        "", tool_calls=[{"name": "news", "args": {"query": [QUERY, "more"]}, "id": "1"}]
    )
    texts = "\n\n".join(one.page_content for one in documents())
    found = ToolMessage(texts, tool_call_id="1", artifact=documents())
    picture = HumanMessage([{"type": "image_url", "image_url": {"url": "data:,"}}])
    state: Any = {"messages": [HumanMessage(QUERIES[1]), picture, several, found]}
    (message,) = RerankingMiddleware(compressor).before_model(state, None)["messages"]
    assert message.artifact == compressor.compress_documents(documents(), QUERIES[1])


async def test_a_compressor_that_drops_metadata_is_an_error(
    compressor: CrossEncoderCompressor,
) -> None:
    """Whose document it is stands in the metadata: the error says so."""
    forgetful = compressor | RunnableLambda(
        lambda found: [Document(document.page_content) for document in found]
    )
    state: Any = {
        "messages": [HumanMessage(QUERY), ToolMessage("", tool_call_id="1", artifact=documents())]
    }
    with pytest.raises(InputError, match=r"compressor must keep metadata\['rerank_adapters"):
        RerankingMiddleware(forgetful).before_model(state, None)


async def test_no_query_is_an_error(compressor: CrossEncoderCompressor) -> None:
    """Neither one query nor a human message: the error names the argument that cures it."""
    message = ToolMessage("", tool_call_id="1", artifact=documents())
    middleware = RerankingMiddleware(compressor, on_blank_query="error")
    with pytest.raises(InputError, match="give query="):
        middleware.before_model({"messages": [message]}, None)


async def test_documents_carry_no_trace_of_the_bookkeeping(
    compressor: CrossEncoderCompressor,
) -> None:
    """Which call a document came from is not left in its metadata, nor in the tool's own list."""
    messages, _ = await run(RerankingMiddleware(compressor), [calls("news", "books")])
    for message in messages:
        for document in message.artifact:
            assert set(document.metadata) == {"source", "pages", KEY}
    again = TOOLS[0].invoke(calls("news").tool_calls[0])
    assert again.artifact == documents()[:HALF]


async def test_nothing_relevant_is_said_in_words(compressor: CrossEncoderCompressor) -> None:
    """A threshold that none meets: an empty artifact, and a message that is not empty."""
    (message,), _ = await run(
        RerankingMiddleware(compressor.bind(score_threshold=1e9)), [calls("news")]
    )
    assert message.artifact == []
    assert message.content == "No relevant documents."


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_the_rerank_is_in_the_agent_s_trace(
    compressor: CrossEncoderCompressor, asynchronous: bool
) -> None:
    """One run of type retriever under the middleware's node."""
    parents = {}

    class Recorder(BaseTracer):
        run_inline = True

        def _persist_run(self, run: Run) -> None:
            self._walk(run)

        def _walk(self, run: Run) -> None:
            for child in run.child_runs:
                if child.name == "CrossEncoderCompressor":
                    parents[child.id] = (run.name, child.run_type, child.error)
                self._walk(child)

    await run(
        RerankingMiddleware(compressor),
        [calls("news")],
        asynchronous=asynchronous,
        config={"callbacks": [Recorder()]},
    )
    assert [*parents.values()] == [("RerankingMiddleware.before_model", "retriever", None)]
