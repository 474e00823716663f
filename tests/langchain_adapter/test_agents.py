"""RerankingMiddleware on agents: pauses, checkpoints, formats, names, streams."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import HumanInTheLoopMiddleware
from langchain_classic.retrievers.document_compressors import (
    CrossEncoderReranker,
    DocumentCompressorPipeline,
)
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import create_retriever_tool, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command, interrupt

from rerank_adapters import BackendError, ConfigError, InputError, Reranker
from rerank_adapters.langchain import (
    CrossEncoderCompressor,
    LangChainCrossEncoder,
    RerankingMiddleware,
)
from tests.langchain_adapter.samples import KEY, QUERY, TEXTS, ListRetriever, documents, invoked
from tests.langchain_adapter.test_fallback import BrokenRanker
from tests.langchain_adapter.test_middleware import ScriptedModel, calls, clock, search

THREAD: Any = {"configurable": {"thread_id": "1"}}
ASKED: Any = {"messages": [HumanMessage("Please tell me.")]}


@tool
def approve(query: str) -> str:
    """Asks a human."""
    return f"a human says {interrupt(query)}"


@pytest.fixture
def compressor(ready: Reranker) -> CrossEncoderCompressor:
    return CrossEncoderCompressor(reranker=ready, top_n=2)


@pytest.fixture
def wanted(compressor: CrossEncoderCompressor) -> list[Document]:
    return compressor.compress_documents(documents(), QUERY)


def content_of(found: list[Document]) -> str:
    return "\n\n".join(one.page_content for one in found)


def agent_of(
    middleware: Any, *names: str, tools: Any = None, saver: Any = None, **options: Any
) -> tuple[Any, ScriptedModel]:
    """An agent whose model calls the tools of *names*, and that model."""
    model = ScriptedModel(messages=iter([calls(*names), AIMessage("done")]), disable_streaming=True)
    agent = create_agent(
        model,
        tools or [search("news", documents()), approve],
        middleware=middleware if isinstance(middleware, list) else [middleware],
        checkpointer=saver,
        **options,
    )
    return agent, model


def found_in(messages: Any, name: str = "news") -> ToolMessage:
    (message,) = [one for one in messages if isinstance(one, ToolMessage) and one.name == name]
    return message


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("pause", ["approval", "after tools", "before tools", "policy"])
async def test_a_run_that_is_resumed(
    compressor: CrossEncoderCompressor, wanted: list[Document], pause: str, asynchronous: bool
) -> None:
    """Whatever came in between, the model reads ranked documents, though they were serialised."""
    middleware: list[Any] = [RerankingMiddleware(compressor)]
    options: dict[str, Any] = {}
    names, resume = ["news"], None
    if pause == "approval":
        names, resume = ["news", "approve"], Command(resume="yes")
    elif pause == "policy":
        middleware.append(HumanInTheLoopMiddleware(interrupt_on={"news": True}))
        resume = Command(resume={"decisions": [{"type": "approve"}]})
    else:
        options = {f"interrupt_{pause.split()[0]}": ["tools"]}
    agent, model = agent_of(middleware, *names, saver=InMemorySaver(), **options)
    await invoked(agent, ASKED, THREAD, asynchronous=asynchronous)
    assert len(model.read) == 1  # it is paused
    state = await invoked(agent, resume, THREAD, asynchronous=asynchronous)
    message = found_in(state["messages"])
    assert message.content == found_in(model.read[-1]).content == content_of(wanted)
    assert [Document(**one) if isinstance(one, dict) else one for one in message.artifact] == wanted


SCRIPT = """
import sys
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.types import Command
from rerank_adapters.langchain import CrossEncoderCompressor, RerankingMiddleware
from tests.langchain_adapter.samples import documents
from tests.langchain_adapter.test_agents import ASKED, THREAD, agent_of, found_in

step, file, model = sys.argv[1:]
compressor = CrossEncoderCompressor(model=model, backend="onnx", device="cpu", top_n=2)
with SqliteSaver.from_conn_string(file) as saver:
    agent, script = agent_of(RerankingMiddleware(compressor), "news", "approve", saver=saver)
    if step == "resume":
        next(script.messages)  # said before the restart
    state = agent.invoke(ASKED if step == "start" else Command(resume="yes"), THREAD)
    print("PAUSED" if "__interrupt__" in state else found_in(state["messages"]).content)
"""


@pytest.mark.long
def test_a_run_that_another_process_resumes(
    model: str, wanted: list[Document], tmp_path: Path
) -> None:
    """SQLite's checkpoint, a restarted worker: the documents come back as dicts and are ranked."""
    pytest.importorskip("langgraph.checkpoint.sqlite", reason="needs langgraph-checkpoint-sqlite")

    def step(name: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, name, str(tmp_path / "agent.db"), model],
            capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert step("start") == "PAUSED"
    assert step("resume") == content_of(wanted)


ARTIFACTS: list[Callable[[list[Document]], Any]] = [
    lambda found: found,
    lambda found: [one.model_dump() for one in found],
    lambda found: ("text", found),
    lambda found: ["text", [one.model_dump() for one in found]],
    lambda found: {"documents": found, "took": 3},
    lambda found: [(one, index / 4) for index, one in enumerate(found)],
    lambda found: {
        "documents": [one.model_dump() for one in found],
        "distances": [index / 4 for index, _ in enumerate(found)],
    },
]


@pytest.mark.parametrize("kind", range(len(ARTIFACTS)))
def test_artifacts_of_every_shape(
    compressor: CrossEncoderCompressor, wanted: list[Document], kind: int
) -> None:
    """Lists, dicts as a checkpoint gives them back, (content, documents) and {"documents": ...}.

    A first stage's numbers stay beside their documents.
    """
    text = content_of(documents())
    message = ToolMessage(text, tool_call_id="call-news", artifact=ARTIFACTS[kind](documents()))
    state: Any = {"messages": [calls("news"), message]}
    (ranked,) = RerankingMiddleware(compressor).before_model(state, None)["messages"]
    assert ranked.content == content_of(wanted)
    if kind == 4:
        assert ranked.artifact == {"documents": wanted, "took": 3}
    elif kind in (5, 6):
        numbers = [int(str(one.id)[1:]) / 4 for one in wanted]
        if kind == 5:
            assert ranked.artifact == list(zip(wanted, numbers, strict=True))
        else:
            assert ranked.artifact == {"documents": wanted, "distances": numbers}
    elif kind in (2, 3):
        assert tuple(ranked.artifact) == (content_of(wanted), wanted)
        assert type(ranked.artifact) is type(message.artifact)
    else:
        assert ranked.artifact == wanted


FORMS: dict[str, Callable[[list[Document]], Any]] = {
    "source": lambda found: "\n\n".join(
        f"Source: {d.id}\nContent: {d.page_content}" for d in found
    ),
    "numbers": lambda found: "\n".join(f"- {d.id}: {d.page_content}" for d in found),
    "tails": lambda found: "\n\n".join(f"{d.page_content}\n\n({d.id})" for d in found),
    "json": lambda found: json.dumps([{"id": d.id, "text": d.page_content} for d in found]),
    "blocks": lambda found: [{"type": "text", "text": f"{d.id}: {d.page_content}"} for d in found],
}


@pytest.mark.parametrize("form", FORMS)
def test_content_keeps_the_tool_s_form(
    compressor: CrossEncoderCompressor, wanted: list[Document], form: str
) -> None:
    """What the tool wrote around each passage is there, for those that are left, best first."""
    write = FORMS[form]
    message = ToolMessage(write(documents()), tool_call_id="call-news", artifact=documents())
    state: Any = {"messages": [calls("news"), message]}
    (ranked,) = RerankingMiddleware(compressor).before_model(state, None)["messages"]
    assert ranked.content == write(wanted)


def test_what_stands_before_and_after_all_passages_stays(
    compressor: CrossEncoderCompressor, wanted: list[Document]
) -> None:
    """A first line and a last one are of no passage."""
    text = f"Found:\n\n{content_of(documents())}\n\nEnd."
    message = ToolMessage(text, tool_call_id="call-news", artifact=documents())
    (ranked,) = RerankingMiddleware(compressor).before_model(
        {"messages": [calls("news"), message]}, None
    )["messages"]  # type: ignore[index]
    assert ranked.content == f"Found:\n\n{content_of(wanted)}\n\nEnd."


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_content_without_its_passages(
    compressor: CrossEncoderCompressor,
    wanted: list[Document],
    asynchronous: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An error that names tool and cure; a formatter or another choice of tools; or left alone."""

    @tool(response_format="content_and_artifact")
    def news(query: str) -> Any:
        """Searches."""
        return f"{len(TEXTS)} documents were found.", documents()

    async def content(**options: Any) -> str:
        agent, _ = agent_of(RerankingMiddleware(compressor, **options), "news", tools=[news])
        state = await invoked(agent, ASKED, asynchronous=asynchronous)
        return found_in(state["messages"]).text

    with pytest.raises(InputError, match=r"content of tool 'news' .*formatters=\{'news': \.\.\.\}"):
        await content()
    as_id = {"news": lambda one: str(one.id)}
    assert await content(formatters=as_id) == "\n\n".join(str(one.id) for one in wanted)
    assert await content(tools=["other"]) == "12 documents were found."
    assert await content(on_error="keep") == "12 documents were found."
    assert "content of tool 'news'" in caplog.text


async def test_a_choice_of_tools_and_two_instances(
    compressor: CrossEncoderCompressor, wanted: list[Document]
) -> None:
    """A file's pages stay in order; each tool may have an instance of its own."""
    pages = [Document(f"Page {n}.", id=str(n)) for n in range(5)]
    tools = [search("news", documents()), search("file", pages)]
    chosen = RerankingMiddleware(compressor, tools=[tools[0]])
    assert not getattr(chosen, "tools", [])
    agent, _ = agent_of(chosen, "news", "file", tools=tools)
    state = agent.invoke(ASKED)
    assert found_in(state["messages"], "file").artifact == pages
    assert found_in(state["messages"]).artifact == wanted
    last = RerankingMiddleware(compressor.bind(top_n=1), tools=["file"], name="pages")
    agent, _ = agent_of([chosen, last], "news", "file", tools=tools)
    state = agent.invoke(ASKED)
    assert len(found_in(state["messages"], "file").artifact) == 1
    assert found_in(state["messages"]).artifact == wanted
    assert {"RerankingMiddleware.before_model", "pages.before_model"} <= set(agent.nodes)
    assert RerankingMiddleware(compressor.bind(top_n=1)).name == "RerankingMiddleware(top_n=1)"


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_what_is_streamed_is_what_the_model_reads(
    compressor: CrossEncoderCompressor, wanted: list[Document], asynchronous: bool
) -> None:
    """mode="wrap_tool_call": stream_mode="messages" shows the ranked message, and no other."""

    async def streamed(middleware: RerankingMiddleware) -> list[str]:
        agent, model = agent_of(middleware, "news")
        if asynchronous:
            parts = [one async for one in agent.astream(ASKED, stream_mode="messages")]
        else:
            parts = list(agent.stream(ASKED, stream_mode="messages"))
        assert found_in(model.read[-1]).content == content_of(wanted)
        assert any(isinstance(one, AIMessageChunk | AIMessage) for one, _ in parts)
        return [one.content for one, _ in parts if isinstance(one, ToolMessage)]

    wrapped = RerankingMiddleware(compressor, mode="wrap_tool_call")
    assert await streamed(wrapped) == [content_of(wanted)]
    assert content_of(documents()) in await streamed(RerankingMiddleware(compressor))


def test_wrapping_reranks_messages_in_a_command(
    compressor: CrossEncoderCompressor, wanted: list[Document]
) -> None:
    """A tool may answer with an update of the state: its message is ranked, the rest stays."""

    @tool
    def news(query: str) -> Any:
        """Searches."""
        message = ToolMessage(
            content_of(documents()), tool_call_id="call-news", artifact=documents(), name="news"
        )
        return Command(update={"messages": [message]})

    for mode in ("wrap_tool_call", "before_model"):
        agent, model = agent_of(RerankingMiddleware(compressor, mode=mode), "news", tools=[news])
        agent.invoke(ASKED)
        assert found_in(model.read[-1]).content == content_of(wanted)


@pytest.mark.parametrize("mode", ["before_model", "wrap_tool_call"])
@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_tool_that_answers_with_a_list(
    compressor: CrossEncoderCompressor, wanted: list[Document], mode: Any, asynchronous: bool
) -> None:
    """Updates of the state beside a message: the message is ranked, the updates stay."""

    @tool
    def news(query: str) -> Any:
        """Searches."""
        message = ToolMessage(
            content_of(documents()), tool_call_id="call-news", artifact=documents(), name="news"
        )
        return [Command(update={"jump_to": "model"}), message]

    agent, model = agent_of(RerankingMiddleware(compressor, mode=mode), "news", tools=[news])
    state = await invoked(agent, ASKED, asynchronous=asynchronous)
    assert found_in(model.read[-1]).content == content_of(wanted)
    assert found_in(state["messages"]).artifact == wanted


@pytest.mark.parametrize("mode", ["before_model", "wrap_tool_call"])
@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_blank_query_and_a_reranker_that_fails(
    compressor: CrossEncoderCompressor, mode: Any, asynchronous: bool
) -> None:
    """A small model's {"query": ""} ends no run, unless told; a failure ends it, unless told."""

    async def content(middleware: RerankingMiddleware, query: str) -> str:
        model = ScriptedModel(messages=iter([calls("news", query=query), AIMessage("done")]))
        agent = create_agent(model, [search("news", documents())], middleware=[middleware])
        return found_in((await invoked(agent, ASKED, asynchronous=asynchronous))["messages"]).text

    assert await content(RerankingMiddleware(compressor, mode=mode), " ") == content_of(
        documents()[:2]
    )
    with pytest.raises(InputError, match="query must be a str that is not blank"):
        await content(RerankingMiddleware(compressor, mode=mode, on_blank_query="error"), "")
    broken = CrossEncoderCompressor(reranker=BrokenRanker(BackendError("out of memory")), top_n=2)
    with pytest.raises(BackendError, match="out of memory"):
        await content(RerankingMiddleware(broken, mode=mode), QUERY)

    def fail(_: Any) -> Any:
        raise BackendError("out of memory")

    # Nobody knows what a function would have cut to.
    for kept, count in ((broken, 2), (RunnableLambda(fail), len(TEXTS))):
        middleware = RerankingMiddleware(kept, mode=mode, on_error="keep")
        assert await content(middleware, QUERY) == content_of(documents()[:count])


def test_a_retriever_tool_without_artifact_is_named_once(
    compressor: CrossEncoderCompressor, caplog: pytest.LogCaptureFixture
) -> None:
    """Its message is text alone: one warning names it and the cure, however often it is called."""
    plain = create_retriever_tool(ListRetriever(found=documents()), "plain", "Searches.")
    middleware = RerankingMiddleware(compressor)
    for _ in range(2):
        agent, _ = agent_of(middleware, "plain", "clock", tools=[plain, clock])
        assert found_in(agent.invoke(ASKED)["messages"], "plain").text == content_of(documents())
    (warned,) = [it for it in caplog.records if it.levelno == logging.WARNING]
    assert "'plain' returns text alone" in warned.getMessage()
    assert 'response_format="content_and_artifact"' in warned.getMessage()


@tool
def listing(query: str) -> list[Document]:
    """Searches, and forgets that documents travel in the artifact."""
    return documents()


@tool
def words(query: str) -> str:
    """Searches, and answers in words."""
    return "two of them"


def test_a_tool_that_cannot_be_reranked_is_named_once(
    compressor: CrossEncoderCompressor, caplog: pytest.LogCaptureFixture
) -> None:
    """One that returned documents as text, or that was chosen by name; any other is let be."""
    for tools, named in ((None, ["listing"]), (["words"], ["words"]), (["listing"], ["listing"])):
        caplog.clear()
        middleware = RerankingMiddleware(compressor, tools=tools)
        for _ in range(2):
            agent, _ = agent_of(middleware, "listing", "words", tools=[listing, words])
            agent.invoke(ASKED)
        warned = [it.getMessage() for it in caplog.records if it.levelno == logging.WARNING]
        assert [it.split("'")[1] for it in warned] == named
        assert all('response_format="content_and_artifact"' in it for it in warned)


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_any_compressor(
    compressor: CrossEncoderCompressor, model: str, wanted: list[Document], asynchronous: bool
) -> None:
    """Runnable or not: classic's own reranker, a pipeline, a chain; each ranks the same."""
    encoder = LangChainCrossEncoder(model=model, backend="onnx", device="cpu")
    for one in (
        CrossEncoderReranker(model=encoder, top_n=2),
        DocumentCompressorPipeline(transformers=[compressor]),
        compressor.with_retry(),
    ):
        agent, model_ = agent_of(RerankingMiddleware(one), "news")
        await invoked(agent, ASKED, asynchronous=asynchronous)
        assert found_in(model_.read[-1]).content == content_of(wanted)


def test_options_are_checked_when_made(compressor: CrossEncoderCompressor) -> None:
    """Each by a ConfigError that names it."""
    for name, value in (
        ("tools", "search"),
        ("tools", []),
        ("tools", [3]),
        ("name", " "),
        ("name", "news: mine"),
        ("mode", "after_model"),
        ("on_error", "ignore"),
        ("on_blank_query", None),
        ("formatters", {"search": "{page_content}"}),
    ):
        with pytest.raises(ConfigError, match=name):
            RerankingMiddleware(compressor, **{name: value})
    retriever, llm = ListRetriever(found=documents()), ScriptedModel(messages=iter([]))
    for wrong in ("BAAI/bge-reranker-base", CrossEncoderCompressor, retriever, llm):
        with pytest.raises(ConfigError, match="compressor must be a document compressor"):
            RerankingMiddleware(wrong)
    agent, _ = agent_of(RerankingMiddleware(compressor, query=lambda call: None), "news")
    with pytest.raises(InputError, match=r"query\('news' call\) must give a str: got None"):
        agent.invoke(ASKED)


def test_a_prompt_with_the_score_over_a_tool_s_own_prompt(
    compressor: CrossEncoderCompressor, wanted: list[Document]
) -> None:
    """Bare contents are written by document_prompt; a tool's own prompt keeps its form."""
    middleware = RerankingMiddleware(
        compressor, document_prompt=PromptTemplate.from_template("{relevance_score} {page_content}")
    )
    own = create_retriever_tool(
        ListRetriever(found=documents()), "news", "Searches.",
        document_prompt=PromptTemplate.from_template("<{source}> {page_content}"),
        response_format="content_and_artifact",
    )  # fmt: skip
    for tools, write in (
        ([search("news", documents())], lambda d: f"{d.metadata[KEY]} {d.page_content}"),
        ([own], lambda d: f"<{d.metadata['source']}> {d.page_content}"),
    ):
        agent, _ = agent_of(middleware, "news", tools=tools)
        message = found_in(agent.invoke(ASKED)["messages"])
        assert message.content == "\n\n".join(map(write, wanted))
