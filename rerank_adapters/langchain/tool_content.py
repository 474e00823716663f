"""What a tool wrote around its documents, so that a message with fewer of them keeps its form."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.documents import Document
from langchain_core.prompts import BasePromptTemplate, PromptTemplate, format_document

from .tool_pieces import found_pieces

NOTHING_FOUND = "No relevant documents."

Formatter = Callable[[Document], str]
Content = str | list[str | dict[Any, Any]]
Kept = Sequence[tuple[int, Document]]
Form = Callable[[Kept], Content]
"""Builds a message's content from the documents kept, each with its index among all."""


class Forms:
    """Finds out how a tool wrote its documents into its message."""

    def __init__(
        self,
        prompt: BasePromptTemplate[str] | None,
        separator: str,
        formatters: dict[str, Formatter],
    ) -> None:
        self._prompt = prompt or PromptTemplate.from_template("{page_content}")
        self._separator = separator
        self._formatters = formatters

    def of(self, tool: str, content: Content, documents: Sequence[Document]) -> Form | None:
        """How *content* is written anew with fewer *documents*, or None where that is not seen.

        By the tool's formatter; by the prompt and separator where they, or bare page contents, made
        it; else from its own pieces, one per document. Empty content stays empty.
        """
        if tool in self._formatters:
            return self._joined(self._formatters[tool])
        if not content:
            return lambda _: content
        if isinstance(content, list):
            return self._in_one_block(tool, content, documents) or _block_form(content, documents)
        if self._is_plain(content, documents):
            return self._joined(lambda one: format_document(one, self._prompt))
        form = _json_form(content, documents) or _json_lines_form(content, documents)
        return form or _piece_form(content, documents, self._separator)

    def _in_one_block(
        self, tool: str, content: list[str | dict[Any, Any]], documents: Sequence[Document]
    ) -> Form | None:
        """All documents in the text of one block."""
        (block, *more) = content
        if more or not isinstance(block, dict) or not isinstance(block.get("text"), str):
            return None
        inner = self.of(tool, block["text"], documents)
        return None if inner is None else lambda kept: [{**block, "text": inner(kept)}]

    def _joined(self, formatter: Formatter) -> Form:
        def form(kept: Kept) -> str:
            return (
                self._separator.join(formatter(one) for _, one in kept) if kept else NOTHING_FOUND
            )

        return form

    def _is_plain(self, content: str, documents: Sequence[Document]) -> bool:
        """Whether the prompt made *content*, or bare page contents did."""
        texts = [one.page_content for one in documents]
        if content in (self._separator.join(texts), "\n\n".join(texts)):
            return True
        try:
            ours = [format_document(one, self._prompt) for one in documents]
        except ValueError:  # the prompt names metadata that are not there yet, such as a score
            return False
        return content == self._separator.join(ours)


def _block_form(content: list[str | dict[Any, Any]], documents: Sequence[Document]) -> Form | None:
    """One content block per document."""
    texts = [one if isinstance(one, str) else str(one.get("text", "")) for one in content]
    pairs = zip(texts, documents, strict=False)
    if len(texts) != len(documents) or not all(one.page_content in text for text, one in pairs):
        return None

    def form(kept: Kept) -> Content:
        return [content[index] for index, _ in kept] if kept else NOTHING_FOUND

    return form


def _json_form(content: str, documents: Sequence[Document]) -> Form | None:
    """A JSON list with one item per document, by itself or in an object, written as it was."""
    try:
        given = json.loads(content)
    except (ValueError, RecursionError):
        return None
    values = given.items() if isinstance(given, dict) else [(None, given)]
    lists = [(key, items) for key, items in values if _is_of(items, documents)]
    if len(lists) != 1:
        return None
    key, items = lists[0]
    style = _style(given, content)

    def form(kept: Kept) -> str:
        chosen = [items[index] for index, _ in kept]
        return json.dumps(chosen if key is None else {**given, key: chosen}, **style)

    return form


def _json_lines_form(content: str, documents: Sequence[Document]) -> Form | None:
    """A line of JSON per document."""
    lines = content.split("\n")
    try:
        items = [json.loads(line) for line in lines]
    except (ValueError, RecursionError):
        return None
    if not _is_of(items, documents):
        return None
    return lambda kept: "\n".join(lines[index] for index, _ in kept) if kept else NOTHING_FOUND


def _is_of(items: object, documents: Sequence[Document]) -> bool:
    """Whether *items* are a list with one for each of *documents*, which holds its text."""
    if not isinstance(items, list) or len(items) != len(documents):
        return False
    pairs = zip(items, documents, strict=True)
    return all(_holds(item, one.page_content.strip()) for item, one in pairs)


def _holds(item: object, text: str) -> bool:
    if isinstance(item, dict | list):
        return any(_holds(it, text) for it in (item.values() if isinstance(item, dict) else item))
    return isinstance(item, str) and text in item


def _style(given: object, content: str) -> dict[str, Any]:
    """How `json.dumps` writes *given* as *content*, or as LangChain writes what a tool returns."""
    layouts: list[dict[str, Any]] = [{}, {"indent": 2}, {"indent": 4}, {"separators": (",", ":")}]
    for ensure_ascii, layout in itertools.product((False, True), layouts):
        style = {"ensure_ascii": ensure_ascii, **layout}
        if json.dumps(given, **style) == content:
            return style
    return {"ensure_ascii": False}


def _piece_form(content: str, documents: Sequence[Document], separator: str) -> Form | None:
    found = found_pieces(content, [one.page_content for one in documents], separator)
    if found is None:
        return None
    return lambda kept: found.joined([index for index, _ in kept]) if kept else NOTHING_FOUND
