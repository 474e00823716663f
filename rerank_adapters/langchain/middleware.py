"""RerankingMiddleware: an agent's model reads the best of what its tools found."""

from __future__ import annotations

import dataclasses
import logging
import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, ParamSpec, TypeVar, get_args

from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.messages import AnyMessage, ToolCall, ToolMessage
from langchain_core.prompts import BasePromptTemplate
from langchain_core.runnables import RunnableBinding
from langchain_core.tools import BaseTool
from langchain_core.tools.retriever import RetrieverInput

from ..adapter_fields import (
    OnBlankQuery,
    OnError,
    Warmable,
    as_config_errors,
    check_word,
    is_kept,
    warn_kept,
)
from ..errors import ConfigError, InputError, MissingDependencyError
from ..hints import OPTIONS, hinted, option_hint
from ..protocols import Ranker

try:
    from langchain.agents.middleware import AgentMiddleware, AgentState
    from langchain.agents.middleware.types import ToolCallRequest
    from langgraph.types import Command
except ImportError as error:
    raise MissingDependencyError("langchain", "langchain-agents") from error

from .compressor import CrossEncoderCompressor
from .compressors import Compressor, accepts, as_runnable
from .settings import SETTINGS
from .tool_content import Formatter, Forms
from .tool_results import Found, Pool, QueryOf, documents_of, last_round, query_of

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

Mode = Literal["before_model", "wrap_tool_call"]
Result = ToolMessage | Command[Any]

RESERVED = ":|"
"""What LangGraph keeps for itself in the names of nodes."""

DOCUMENTS = "[Document("
"""How content begins that is the text form of a list of documents."""


def _hint(name: str, known: Sequence[str]) -> str:
    """What to say of an option that the middleware does not have: it may be the compressor's."""
    ours = OPTIONS.get(name, name)
    if ours in CrossEncoderCompressor.model_fields and ours not in known:
        return f": it is the compressor's: RerankingMiddleware(CrossEncoderCompressor({ours}=...))"
    return option_hint(name, known)


def _hinted(function: Callable[P, R]) -> Callable[P, R]:
    """*function*, whose TypeError says so; pyright sees its options as they are."""
    return hinted(function, _hint)


class RerankingMiddleware(AgentMiddleware[AgentState[Any], Any, Any]):
    """Reranks the documents in tool artifacts before the model reads them.

    A tool's message holds documents where its artifact does: a list of them, as from
    `create_retriever_tool(..., response_format="content_and_artifact")`, {"documents": [...]} or
    (content, [...]). Each call is ranked by its own query. Calls of one round whose queries are
    equal compete in one ranking, so `top_n` counts over all of them, and equal documents count
    once. Each message then holds, in content and artifact, those of its own documents that are
    left, best first, in the form that its tool wrote. Other messages stay as they are.

    >>> from langchain_core.documents import Document
    >>> from langchain_core.messages import AIMessage, ToolMessage
    >>> call = {"name": "search", "args": {"query": "how tall is it?"}, "id": "1"}
    >>> found = [Document("It is red."), Document("It is 70 m tall.")]
    >>> content = str.join(chr(10) * 2, [document.page_content for document in found])
    >>> result = ToolMessage(content, artifact=found, name="search", tool_call_id="1")
    >>> middleware = RerankingMiddleware(CrossEncoderCompressor(top_n=1))
    >>> state = {"messages": [AIMessage("", tool_calls=[call]), result]}
    >>> middleware.before_model(state, None)["messages"][0].content
    'It is 70 m tall.'
    """

    @_hinted
    def __init__(
        self,
        compressor: Compressor | BaseDocumentCompressor | None = None,
        *,
        reranker: Ranker | None = None,
        query: QueryOf | None = None,
        tools: Sequence[str | BaseTool] | None = None,
        name: str | None = None,
        mode: Mode = "before_model",
        document_prompt: BasePromptTemplate[str] | None = None,
        document_separator: str = "\n\n",
        formatters: Mapping[str, Formatter] | None = None,
        on_blank_query: OnBlankQuery = "keep",
        on_error: OnError = "raise",
    ) -> None:
        """*compressor* None: `CrossEncoderCompressor(reranker=reranker)`, which is given instead.

        - query: makes the query from a tool call; None takes its "query" argument, else the last
          human message that has text. Where there is none, it is blank.
        - tools: names of the tools whose results are reranked, or the tools. None: all of them.
        - name: of this instance, without : and |; one agent may hold several of different names.
          None: the class's, with the settings that the compressor binds.
        - mode: "before_model" ranks a round's results together. "wrap_tool_call" ranks each result
          as it comes, so that what is streamed is what the model reads; calls do not compete then.
        - document_prompt, document_separator: build the content of messages that they, or bare
          page contents, made; as in `create_retriever_tool`.
        - formatters: by tool, what builds the text of one document. Content of another form is put
          together from its own pieces; where they are not found, InputError.
        - on_blank_query: a call without text in its query. "keep": its documents in their order,
          unscored, cut as usual. "error": InputError.
        - on_error: a reranker that fails, or content whose pieces are not found. "raise" the error,
          or "keep" the first stage's order, with a warning in the log.

        Raises ConfigError.
        """
        super().__init__()
        if compressor is not None and reranker is not None:
            raise ConfigError("compressor has a reranker of its own: give either of the two")
        own = CrossEncoderCompressor(reranker=reranker) if compressor is None else compressor
        self.compressor: Compressor = as_runnable(own)
        with as_config_errors():
            check_word("mode", mode, get_args(Mode))
            check_word("on_blank_query", on_blank_query, get_args(OnBlankQuery))
            check_word("on_error", on_error, get_args(OnError))
        self.tool_names = _names(tools)
        self._name = _checked_name(name) or _default_name(self)
        self._query = query
        self._mode = mode
        self._forms = Forms(document_prompt, document_separator, _checked_formatters(formatters))
        self._on_blank_query = on_blank_query
        self._on_error: OnError = on_error
        self._warned: set[str] = set()

    @property
    def name(self) -> str:
        """What `create_agent` tells instances apart by, and calls its node in the graph after."""
        return self._name

    def warm(self) -> None:
        """Get the compressor's model ready, not at the first call, where it has one to warm."""
        if isinstance(self.compressor, Warmable):
            self.compressor.warm()

    async def awarm(self) -> None:
        """`warm`, awaited; loading happens off the event loop."""
        if isinstance(self.compressor, Warmable):
            await self.compressor.awarm()

    def before_model(
        self,
        state: AgentState[Any],
        runtime: Any,  # noqa: ARG002 (the hook's signature)
    ) -> dict[str, Any] | None:
        """Rerank the results of the last round of tool calls."""
        pools = self._round(state)
        return {"messages": self._rank(pools)} if pools else None

    async def abefore_model(
        self,
        state: AgentState[Any],
        runtime: Any,  # noqa: ARG002 (the hook's signature)
    ) -> dict[str, Any] | None:
        """`before_model`, awaited."""
        pools = self._round(state)
        return {"messages": await self._arank(pools)} if pools else None

    def wrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Result]
    ) -> Result:
        """Rerank what one call found, in that mode; else only see whether it can be reranked."""
        result = handler(request)
        pools = self._result(request, result)
        ranked: Result = _replaced(result, self._rank(pools)) if pools else result
        return ranked

    async def awrap_tool_call(
        self, request: ToolCallRequest, handler: Callable[[ToolCallRequest], Awaitable[Result]]
    ) -> Result:
        """`wrap_tool_call`, awaited."""
        result = await handler(request)
        pools = self._result(request, result)
        ranked: Result = _replaced(result, await self._arank(pools)) if pools else result
        return ranked

    def _round(self, state: AgentState[Any]) -> list[Pool]:
        messages = state["messages"]
        return self._pools(last_round(messages), messages) if self._mode == "before_model" else []

    def _result(self, request: ToolCallRequest, result: Result) -> list[Pool]:
        messages = _messages(result)
        for message in messages:
            self._see(request.tool, message)
        # What a tool returns directly is read by no model: there is no other moment to rank it.
        direct = request.tool is not None and request.tool.return_direct
        if self._mode == "before_model" and not direct:
            return []
        own = [(one, request.tool_call) for one in messages]
        return self._pools(own, _history(request.state))

    def _see(self, tool: BaseTool | None, message: ToolMessage) -> None:
        """Warn, once for each, of tools whose documents do not come with the message."""
        if tool is None or not self._is_chosen(tool.name):
            return
        if message.artifact is not None or message.status == "error":
            return
        # A retriever's, one that returned documents, or one that was named to be reranked.
        found = isinstance(message.content, str) and message.content.startswith(DOCUMENTS)
        if tool.args_schema is RetrieverInput or found or self.tool_names is not None:
            self._warn_of(
                tool.name,
                "returns text alone, which is not reranked: make it with "
                'response_format="content_and_artifact"',
            )

    def _warn_of(self, tool: str, what: str) -> None:
        """Say *what* of *tool* in the log, once."""
        if tool not in self._warned:
            self._warned.add(tool)
            logger.warning("%s: the tool %r %s", self.name, tool, what)

    def _is_chosen(self, tool: str | None) -> bool:
        return self.tool_names is None or tool in self.tool_names

    def _pools(
        self,
        results: Sequence[tuple[ToolMessage, ToolCall | None]],
        messages: Sequence[AnyMessage],
    ) -> list[Pool]:
        """What is ranked together: results of equal queries; without a query, each is alone."""
        pools: dict[object, list[Found]] = {}
        for message, call in results:
            if self._is_chosen(message.name or (call["name"] if call else None)):
                found = self._found(message, call, messages)
                if found is not None:
                    key = found.query if found.query.strip() else id(found)
                    pools.setdefault(key, []).append(found)
        return [Pool(found[0].query, found) for found in pools.values()]

    def _found(
        self, message: ToolMessage, call: ToolCall | None, messages: Sequence[AnyMessage]
    ) -> Found | None:
        parts = documents_of(message.artifact)
        if parts is None:
            return None
        documents, put = parts
        tool = message.name or (call["name"] if call else "")
        form = self._forms.of(tool, message.content, documents)
        if form is not None:
            query = query_of(call, messages, self._query)
            if not query.strip() and self._on_blank_query == "keep":
                self._warn_of(tool, "was called without a query: its documents stay in their order")
            return Found(message, query, documents, put, form)
        error = InputError(
            f"the content of tool {tool!r} must hold its documents' texts to be written anew: give "
            f"formatters={{{tool!r}: ...}} or document_prompt=, or leave it out of tools="
        )
        if self._on_error == "raise":
            raise error
        warn_kept(self.name, error, len(documents))
        return None

    def _rank(self, pools: Sequence[Pool]) -> list[ToolMessage]:
        asked = [pool for pool in pools if self._asks(pool)]
        found: list[Any] = self.compressor.batch(
            [pool.to_rank for pool in asked], return_exceptions=True, **self._arguments()
        )
        return self._messages(pools, asked, found)

    async def _arank(self, pools: Sequence[Pool]) -> list[ToolMessage]:
        asked = [pool for pool in pools if self._asks(pool)]
        found: list[Any] = await self.compressor.abatch(
            [pool.to_rank for pool in asked], return_exceptions=True, **self._arguments()
        )
        return self._messages(pools, asked, found)

    def _asks(self, pool: Pool) -> bool:
        """Whether the compressor is to see *pool*: one without a query only if it knows of that."""
        blank = not pool.query.strip()
        if blank and self._on_blank_query == "error":
            raise InputError(
                f"query must be a str that is not blank: got {pool.query!r:.80}, from the call's "
                '"query" argument or else the last human message; give query=, or '
                'on_blank_query="keep" lets it pass'
            )
        return not blank or accepts(self.compressor, "on_blank_query")

    def _arguments(self) -> dict[str, Any]:
        """What of our own choices the compressor obeys by itself."""
        own: dict[str, Any] = {"on_blank_query": self._on_blank_query}
        if self._on_error == "keep":
            own["on_error"] = "keep"
        return {name: value for name, value in own.items() if accepts(self.compressor, name)}

    def _messages(
        self,
        pools: Sequence[Pool],
        asked: Sequence[Pool],
        found: Sequence[list[Document] | Exception],
    ) -> list[ToolMessage]:
        """Every pool's messages; they take the place of those in the state, whose ids they have."""
        outcomes = dict(zip(map(id, asked), found, strict=True))
        messages: list[ToolMessage] = []
        for pool in pools:
            outcome = outcomes.get(id(pool))
            if isinstance(outcome, Exception) and not is_kept(outcome, self._on_error):
                raise outcome
            if isinstance(outcome, Exception):
                warn_kept(self.name, outcome, len(pool.to_rank["documents"]))
            ranked = None if isinstance(outcome, Exception) else outcome
            messages += pool.whole if ranked is None else pool.answers(ranked)
        return messages


def _history(state: Any) -> Sequence[AnyMessage]:
    """The messages of a graph's state, which is a mapping, a list of them or an object."""
    if isinstance(state, list):
        return state
    found = state.get("messages") if isinstance(state, Mapping) else getattr(state, "messages", ())
    return found or ()


def _messages(result: object) -> list[ToolMessage]:
    """The tool messages of a tool's result: one, in a Command, or in a list of both."""
    if isinstance(result, ToolMessage):
        return [result]
    if isinstance(result, Command):
        result = result.update.get("messages") if isinstance(result.update, dict) else None
    several = result if isinstance(result, list) else []
    return [message for one in several for message in _messages(one)]


def _replaced(result: Any, ranked: Sequence[ToolMessage]) -> Any:
    """*result* with *ranked* in the place of messages of the same call."""
    if isinstance(result, ToolMessage):
        return next((it for it in ranked if it.tool_call_id == result.tool_call_id), result)
    if isinstance(result, list):
        return [_replaced(one, ranked) for one in result]
    if not isinstance(result, Command) or not _messages(result):
        return result
    update: Any = result.update
    messages = _replaced(update["messages"], ranked)
    return dataclasses.replace(result, update={**update, "messages": messages})


def _names(tools: Sequence[str | BaseTool] | None) -> frozenset[str] | None:
    if tools is None:
        return None
    several = [] if isinstance(tools, str) or not isinstance(tools, Sequence) else list(tools)
    if not several or not all(isinstance(one, str | BaseTool) for one in several):
        raise ConfigError(
            f"tools must be a sequence of names or tools, or None for all: got {tools!r:.80}"
        )
    return frozenset(one if isinstance(one, str) else one.name for one in several)


def _checked_name(name: object) -> str | None:
    if name is not None and (not isinstance(name, str) or not name.strip()):
        raise ConfigError(f"name must be a str that is not blank, or None: got {name!r:.80}")
    if name is not None and set(name) & set(RESERVED):
        raise ConfigError(f"name must hold none of {' '.join(RESERVED)}: got {name!r:.80}")
    return name


def _default_name(middleware: RerankingMiddleware) -> str:
    """The class's name, with plain settings that the compressor binds: equal in every process."""
    kind, compressor = type(middleware).__name__, middleware.compressor
    bound = compressor.kwargs if isinstance(compressor, RunnableBinding) else {}
    plain = {k: v for k, v in bound.items() if k in SETTINGS and isinstance(v, int | float | str)}
    shown = [f"{name}={_in_a_name(value)}" for name, value in sorted(plain.items())]
    return f"{kind}({', '.join(shown)})" if shown else kind


def _in_a_name(value: float | str) -> str:
    """*value*, or of a text that is more than a word, such as a prompt, a checksum."""
    if not isinstance(value, str) or value.isidentifier():
        return str(value)
    return f"{zlib.crc32(value.encode('utf-8', 'surrogatepass')):08x}"


def _checked_formatters(formatters: Mapping[str, Formatter] | None) -> dict[str, Formatter]:
    given = {} if formatters is None else formatters
    if not isinstance(given, Mapping) or not all(map(callable, given.values())):
        raise ConfigError(
            f"formatters must map names of tools to functions of a document: got {formatters!r:.80}"
        )
    return dict(given)
