"""RerankingMiddleware where there is no question, no next turn, or no mapping for a state."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from langchain.agents import create_agent
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langgraph.graph import START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.prebuilt import ToolNode
from pydantic import BaseModel

from rerank_adapters import InputError
from rerank_adapters.langchain import CrossEncoderCompressor, RerankingMiddleware
from tests.langchain_adapter.samples import QUERY, documents, invoked
from tests.langchain_adapter.test_agents import (
    ASKED,
    agent_of,
    compressor,  # noqa: F401 (a fixture)
    content_of,
    found_in,
    wanted,  # noqa: F401 (likewise)
)
from tests.langchain_adapter.test_middleware import ScriptedModel, calls, search

PICTURE: Any = HumanMessage([{"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}])


@tool(response_format="content_and_artifact")
def lookup(topic: str) -> Any:
    """Finds by another argument than "query"."""
    return content_of(documents()), documents()


@pytest.mark.parametrize("mode", ["before_model", "wrap_tool_call"])
@pytest.mark.parametrize("asynchronous", [False, True])
async def test_no_question_anywhere_is_a_blank_one(
    compressor: CrossEncoderCompressor,  # noqa: F811
    mode: Any,
    asynchronous: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A picture is all that was said: documents are kept, or an error that names both cures."""

    async def content(**options: Any) -> str:
        said = AIMessage("", tool_calls=[{"name": "lookup", "args": {"topic": "x"}, "id": "1"}])
        model = ScriptedModel(messages=iter([said, AIMessage("done")]), disable_streaming=True)
        middleware = RerankingMiddleware(compressor, mode=mode, **options)
        agent = create_agent(model, [lookup], middleware=[middleware])
        state = await invoked(agent, {"messages": [PICTURE]}, asynchronous=asynchronous)
        return found_in(state["messages"], "lookup").text

    assert await content() == content_of(documents()[:2])
    (warned,) = [it.getMessage() for it in caplog.records if it.name.startswith("rerank_adapters")]
    assert "the tool 'lookup' was called without a query" in warned
    with pytest.raises(InputError, match=r"give query=, or on_blank_query=.keep. lets it pass"):
        await content(on_blank_query="error")


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_calls_without_a_query_do_not_compete(
    compressor: CrossEncoderCompressor,  # noqa: F811
    asynchronous: bool,
) -> None:
    """Each keeps its own first documents: there is no ranking that they could share."""
    tools = [search("news", documents()[:6]), search("books", documents()[6:])]
    model = ScriptedModel(
        messages=iter([calls("news", "books", query=""), AIMessage("done")]), disable_streaming=True
    )
    agent = create_agent(model, tools, middleware=[RerankingMiddleware(compressor)])
    messages = (await invoked(agent, ASKED, asynchronous=asynchronous))["messages"]
    assert found_in(messages, "news").content == content_of(documents()[:2])
    assert found_in(messages, "books").content == content_of(documents()[6:8])


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_what_a_tool_returns_directly_is_ranked(
    compressor: CrossEncoderCompressor,  # noqa: F811
    wanted: list[Document],  # noqa: F811
    asynchronous: bool,
) -> None:
    """No model reads it, so it is ranked as it comes, in either mode."""
    news = search("news", documents())
    news.return_direct = True
    agent, model = agent_of(RerankingMiddleware(compressor), "news", tools=[news])
    messages = (await invoked(agent, ASKED, asynchronous=asynchronous))["messages"]
    assert len(model.read) == 1
    assert messages[-1].content == content_of(wanted)


class State(BaseModel):
    """A state that is an object."""

    messages: Annotated[list[AnyMessage], add_messages]


@pytest.mark.parametrize("schema", [Annotated[list, add_messages], State], ids=["list", "object"])
def test_a_tool_node_by_itself(
    compressor: CrossEncoderCompressor,  # noqa: F811
    wanted: list[Document],  # noqa: F811
    schema: Any,
) -> None:
    """LangGraph's own node, in graphs whose state is a list of messages or an object."""
    middleware = RerankingMiddleware(compressor, mode="wrap_tool_call")
    node = ToolNode([search("news", documents())], wrap_tool_call=middleware.wrap_tool_call)
    graph = StateGraph(schema)
    graph.add_node("tools", node)
    graph.add_edge(START, "tools")
    said: Any = [HumanMessage(QUERY), calls("news")]
    state = graph.compile().invoke(said if schema is not State else {"messages": said})
    messages = state if schema is not State else state["messages"]
    assert isinstance(messages[-1], ToolMessage)
    assert messages[-1].content == content_of(wanted)
