"""Documents in tool messages: found in their artifacts, ranked together, put back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from langchain_core.documents import Document
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolCall, ToolMessage

from ..errors import InputError
from .tool_content import Form, Kept

INDEX_KEY = "rerank_adapters_index"

QueryOf = Callable[[ToolCall], str]
Put = Callable[[str, Kept], Any]


@dataclass(frozen=True, slots=True)
class Found:
    """The documents of one tool message, and what was asked for them.

    put   makes an artifact like the one that came, around other documents
    form  makes the content
    """

    message: ToolMessage
    query: str
    documents: list[Document]
    put: Put
    form: Form

    def answer(self, kept: Kept) -> ToolMessage:
        """The message with what is *kept* of its documents, best first."""
        content = self.form(kept)
        artifact = self.put(content if isinstance(content, str) else "", kept)
        return self.message.model_copy(update={"content": content, "artifact": artifact})


class Pool:
    """The documents of all messages that were asked one query; equal ones are one."""

    def __init__(self, query: str, found: Sequence[Found]) -> None:
        self.query = query
        self._found = found
        self._documents: list[Document] = []
        self._indices = [[self._index(document) for document in one.documents] for one in found]

    @property
    def to_rank(self) -> dict[str, Any]:
        """What a compressor is given: copies that say which document they are."""
        documents = [
            document.model_copy(update={"metadata": {**document.metadata, INDEX_KEY: index}})
            for index, document in enumerate(self._documents)
        ]
        return {"query": self.query, "documents": documents}

    @property
    def whole(self) -> list[ToolMessage]:
        """The messages as they came."""
        return [one.message for one in self._found]

    def answers(self, ranked: Sequence[Document]) -> list[ToolMessage]:
        """The messages, each with its own of *ranked*. InputError where a copy lost its index."""
        best: dict[int, Document] = {}
        for document in ranked:
            metadata = dict(document.metadata)
            index = metadata.pop(INDEX_KEY, None)
            if not isinstance(index, int) or not 0 <= index < len(self._documents):
                raise InputError(
                    f"compressor must keep metadata[{INDEX_KEY!r}], which says which document it is"
                )
            best[index] = document.model_copy(update={"metadata": metadata})
        return [
            one.answer([(own.index(index), best[index]) for index in best if index in own])
            for one, own in zip(self._found, self._indices, strict=True)
        ]

    def _index(self, document: Document) -> int:
        if document not in self._documents:
            self._documents.append(document)
        return self._documents.index(document)


def last_round(messages: Sequence[AnyMessage]) -> list[tuple[ToolMessage, ToolCall | None]]:
    """The tool messages since the model spoke last, each with its call."""
    results: list[ToolMessage] = []
    calls: dict[str | None, ToolCall] = {}
    for message in reversed(messages):
        if isinstance(message, AIMessage):
            calls = {call["id"]: call for call in message.tool_calls}
            break
        if isinstance(message, ToolMessage):
            results.insert(0, message)
    return [(result, calls.get(result.tool_call_id)) for result in results]


def query_of(
    call: ToolCall | None, messages: Sequence[AnyMessage], function: QueryOf | None
) -> str:
    """What *function* makes of *call*, or its "query", or what the human said last, or ""."""
    if function is not None and call is not None:
        query = function(call)
        if not isinstance(query, str):
            raise InputError(f"query({call['name']!r} call) must give a str: got {query!r:.80}")
        return query
    asked = call["args"].get("query") if call else None
    if isinstance(asked, str):
        return asked
    for message in reversed(messages):
        if isinstance(message, HumanMessage) and message.text.strip():
            return str(message.text)
    return ""


def documents_of(artifact: object) -> tuple[list[Document], Put] | None:
    """The documents in *artifact*, and how fewer take their place; None where it has none.

    Known are a list of documents or of (document, score), {"documents": [...]} and (content,
    [...]); each document may be a dict, as a checkpoint gives it back. Numbers that stand beside
    documents stay beside them.
    """
    if isinstance(artifact, Mapping):
        found = _listed(artifact.get("documents"))
        return None if found is None else (found[0], _in_mapping(artifact, *found))
    if isinstance(artifact, list | tuple) and len(artifact) == 2 and isinstance(artifact[0], str):
        found = _listed(artifact[1])
        if found is None:
            return None
        kind, inner = (list if isinstance(artifact, list) else tuple), found[1]
        return found[0], lambda content, kept: kind([content, inner(content, kept)])
    return _listed(artifact)


def _in_mapping(artifact: Mapping[str, Any], documents: Sequence[Document], inner: Put) -> Put:
    beside = {
        key: values
        for key, values in artifact.items()
        if isinstance(values, list)
        and len(values) == len(documents)
        and all(isinstance(value, Real) for value in values)
    }

    def put(content: str, kept: Kept) -> dict[str, Any]:
        cut = {key: [values[index] for index, _ in kept] for key, values in beside.items()}
        return {**artifact, **cut, "documents": inner(content, kept)}

    return put


def _listed(values: object) -> tuple[list[Document], Put] | None:
    """The documents in a list of them, or of pairs of one and a number."""
    if not isinstance(values, list | tuple) or not values:
        return None
    paired = all(isinstance(it, list | tuple) and len(it) == 2 for it in values)
    if paired and not all(isinstance(number, Real | None) for _, number in values):
        return None
    documents = [_document(it[0] if paired else it) for it in values]
    found = [document for document in documents if document is not None]
    if len(found) < len(documents):
        return None
    return found, lambda _, kept: [
        (document, values[index][1]) if paired else document for index, document in kept
    ]


def _document(value: Any) -> Document | None:
    if isinstance(value, Document):
        return value
    if not isinstance(value, Mapping):
        return None
    if value.get("type") == "constructor" and isinstance(value.get("kwargs"), Mapping):
        value = value["kwargs"]  # as `dumpd` writes it
    if not isinstance(value.get("page_content"), str):
        return None
    return Document(
        page_content=value["page_content"],
        metadata=dict(value.get("metadata") or {}),
        id=value.get("id"),
    )
