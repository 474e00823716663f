"""RerankingMiddleware: an agent's model reads the best of what its tools found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.documents import Document
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langchain_core.prompts import BasePromptTemplate, PromptTemplate, format_document
from langchain_core.runnables import Runnable

from ..adapter_fields import Warmable
from ..errors import ConfigError, InputError, MissingDependencyError
from ..protocols import Ranker

try:
    from langchain.agents.middleware import AgentMiddleware, AgentState
except ImportError as error:
    raise MissingDependencyError("langchain", "langchain-agents") from error

from .compressor import CrossEncoderCompressor

CALL_KEY = "rerank_adapters_tool_call_id"
NOTHING_FOUND = "No relevant documents."

Compressor = Runnable[Any, list[Document]]
QueryOf = Callable[[Sequence[AnyMessage]], str]


class RerankingMiddleware(AgentMiddleware[AgentState[Any], Any, Any]):
    """Reranks the documents in tool artifacts before the model reads them.

    It looks at the results of the last round of tool calls: ToolMessages whose artifact is a list
    of documents, as from `create_retriever_tool(..., response_format="content_and_artifact")`.
    Documents of several tools compete in one ranking, so `top_n` counts over all of them. Each
    message then holds, in content and artifact, those of its own documents that are left, best
    first. Other messages stay as they are.
    """

    def __init__(
        self,
        compressor: Compressor | None = None,
        *,
        reranker: Ranker | None = None,
        query: QueryOf | None = None,
        document_prompt: BasePromptTemplate[str] | None = None,
        document_separator: str = "\n\n",
    ) -> None:
        """*compressor* None: `CrossEncoderCompressor(reranker=reranker)`, which is given instead.

        *query* makes the query from the messages; None takes the "query" argument of the tools that
        found documents where all of them were asked the same, else the last human message that has
        text. The last two arguments build a message's content, as in `create_retriever_tool`.
        """
        super().__init__()
        if compressor is not None and reranker is not None:
            raise ConfigError("compressor has a reranker of its own: give either of the two")
        self.compressor: Compressor = (
            CrossEncoderCompressor(reranker=reranker) if compressor is None else compressor
        )
        self._query = query or query_of
        self._prompt = document_prompt or PromptTemplate.from_template("{page_content}")
        self._separator = document_separator

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
        results = _results(state["messages"])
        if not results:
            return None
        return self._update(results, self.compressor.invoke(self._input(state, results)))

    async def abefore_model(
        self,
        state: AgentState[Any],
        runtime: Any,  # noqa: ARG002 (the hook's signature)
    ) -> dict[str, Any] | None:
        """`before_model`, awaited."""
        results = _results(state["messages"])
        if not results:
            return None
        return self._update(results, await self.compressor.ainvoke(self._input(state, results)))

    def _input(self, state: AgentState[Any], results: Sequence[ToolMessage]) -> dict[str, Any]:
        documents = [
            document.model_copy(
                update={"metadata": {**document.metadata, CALL_KEY: result.tool_call_id}}
            )
            for result in results
            for document in result.artifact
        ]
        return {"query": self._query(state["messages"]), "documents": documents}

    def _update(
        self, results: Sequence[ToolMessage], ranked: Sequence[Document]
    ) -> dict[str, list[ToolMessage]]:
        kept: dict[str, list[Document]] = {result.tool_call_id: [] for result in results}
        for document in ranked:
            metadata = dict(document.metadata)
            call = metadata.pop(CALL_KEY, None)
            if call not in kept:
                raise InputError(
                    f"compressor must keep metadata[{CALL_KEY!r}], which says whose document it is"
                )
            kept[call].append(document.model_copy(update={"metadata": metadata}))
        # Messages with a known id take the place of those in the state.
        return {
            "messages": [self._rebuilt(result, kept[result.tool_call_id]) for result in results]
        }

    def _rebuilt(self, result: ToolMessage, documents: list[Document]) -> ToolMessage:
        texts = [format_document(document, self._prompt) for document in documents]
        content = self._separator.join(texts) if texts else NOTHING_FOUND
        return result.model_copy(update={"content": content, "artifact": documents})


def query_of(messages: Sequence[AnyMessage]) -> str:
    """The one "query" of the calls that found documents, or else what the human said last."""
    found = {result.tool_call_id for result in _results(messages)}
    asked = next((one for one in reversed(messages) if isinstance(one, AIMessage)), None)
    calls = [call for call in asked.tool_calls if call["id"] in found] if asked else []
    queries = [call["args"].get("query") for call in calls]
    first = queries[0] if queries else None
    if isinstance(first, str) and first.strip() and all(query == first for query in queries):
        return first
    for message in reversed(messages):
        if isinstance(message, HumanMessage) and message.text.strip():
            return str(message.text)
    raise InputError("messages hold no human message with text and no one query: give query=")


def _results(messages: Sequence[AnyMessage]) -> list[ToolMessage]:
    """The tool messages at the end whose artifact is a list of documents."""
    results: list[ToolMessage] = []
    for message in reversed(messages):
        if not isinstance(message, ToolMessage):
            break
        artifact = message.artifact
        if (
            isinstance(artifact, list)
            and artifact
            and all(isinstance(d, Document) for d in artifact)
        ):
            results.insert(0, message)
    return results
