"""What a tool wrote around its documents, so that a message with fewer of them keeps its form."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.documents import Document
from langchain_core.prompts import BasePromptTemplate, PromptTemplate, format_document

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
            return _block_form(content, documents)
        if self._is_plain(content, documents):
            return self._joined(lambda one: format_document(one, self._prompt))
        return _json_form(content, documents) or _piece_form(
            content, [one.page_content for one in documents], (self._separator, "\n\n", "\n")
        )

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
    """A JSON list with one item per document, as LangChain writes what a tool returns."""
    try:
        items = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if not isinstance(items, list) or len(items) != len(documents):
        return None
    if not all(_holds(item, one.page_content) for item, one in zip(items, documents, strict=True)):
        return None

    def form(kept: Kept) -> str:
        return json.dumps([items[index] for index, _ in kept], ensure_ascii=False)

    return form


def _holds(item: object, text: str) -> bool:
    values = item.values() if isinstance(item, dict) else [item]
    return any(isinstance(value, str) and text in value for value in values)


def _piece_form(content: str, texts: Sequence[str], separators: Sequence[str]) -> Form | None:
    """Pieces of *content*, each around one of *texts*, with the first separator that parts them."""
    bounds = _bounds(content, texts)
    if bounds is None:
        return None
    for separator in separators:
        pieces = _pieces(content, bounds, separator) if separator else None
        if pieces is not None:
            return _from_pieces(separator, *pieces)
    return None


def _bounds(content: str, texts: Sequence[str]) -> list[tuple[int, int]] | None:
    """Where each of *texts* stands in *content*, in order, or None."""
    bounds, end = [], 0
    for text in texts:
        start = content.find(text, end)
        if start < 0 or not text:
            return None
        end = start + len(text)
        bounds.append((start, end))
    return bounds


def _pieces(
    content: str, bounds: Sequence[tuple[int, int]], separator: str
) -> tuple[str, list[str], str] | None:
    """What stands before all pieces, the pieces, and what stands after them.

    Between two texts stand the rest of one piece, a separator and the begin of the next. Where that
    is one separator, it is seen; where it is more, the first begin and the last rest, which are
    known, say which.
    """
    head, tail = content[: bounds[0][0]], content[bounds[-1][1] :]
    gaps = [(end, start) for (_, end), (start, _) in itertools.pairwise(bounds)]
    counts = {content.count(separator, end, start) for end, start in gaps}
    first, last = 0, len(content)
    if counts <= {1}:  # what else is parted off stands before or after all of them
        rest = 0
        first = head.rfind(separator) + len(separator) if separator in head else 0
        if separator in tail:
            last = bounds[-1][1] + tail.find(separator)
    elif counts == {head.count(separator) + 1 + tail.count(separator)}:
        rest = tail.count(separator)
    else:
        return None
    cuts = [_nth(content, separator, end, rest) for end, _ in gaps]
    starts = [first, *(cut + len(separator) for cut in cuts)]
    pieces = [content[a:b] for a, b in zip(starts, [*cuts, last], strict=True)]
    return content[:first], pieces, content[last:]


def _nth(content: str, separator: str, start: int, skipped: int) -> int:
    """Where *separator* stands after *start*, the first *skipped* of them left out."""
    found = content.index(separator, start)
    for _ in range(skipped):
        found = content.index(separator, found + len(separator))
    return found


def _from_pieces(separator: str, before: str, pieces: Sequence[str], after: str) -> Form:
    def form(kept: Kept) -> str:
        if not kept:
            return NOTHING_FOUND
        return before + separator.join(pieces[index] for index, _ in kept) + after

    return form
