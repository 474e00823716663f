"""Where a long text is cut into windows: tokens are counted, sentences and words stay whole."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .reader import CHARACTERS_PER_TOKEN, Reader

Offsets = list[tuple[int, int]]

SETTLED_TOKENS = 16
"""Tokens read beyond what is wanted, where the text goes on: the last ones would change with it."""

SENTENCE_SHARE = 4
"""A sentence's end is near in the last quarter of a window."""

_LOOK_BACK = 16
_SENTENCE_END = re.compile(r"(?:[.!?…]+[\"'”’)\]»]*\s+|[。！？｡]+[」』”’）]*\s*|\n\s*\n\s*)\Z")
_BLANK = re.compile(r"\s")


@dataclass(slots=True)
class Cursor:
    """How far a text has been cut.

    start, stop  the characters of `text` that are still to be cut, blanks at both ends left out
    limit        most tokens of a window
    stride       most tokens between the beginnings of two windows, but for a word that has more
    """

    text: str
    start: int
    stop: int
    limit: int
    stride: int

    def __post_init__(self) -> None:
        while self.stop > self.start and self.text[self.stop - 1].isspace():
            self.stop -= 1
        self.move(self.start)

    @property
    def ended(self) -> bool:
        """Whether nothing is left."""
        return self.start >= self.stop

    def move(self, start: int) -> None:
        """Go on at *start*, or at the first character after it that is not blank."""
        self.start = start
        while self.start < self.stop and self.text[self.start].isspace():
            self.start += 1


class Span(NamedTuple):
    """A window: `text[start:end]`; the next one begins at `following`, None after the last."""

    start: int
    end: int
    following: int | None


@dataclass(frozen=True, slots=True)
class Head:
    """What is read of a text to cut one window: its beginning and where its tokens lie in it."""

    text: str
    offsets: Offsets
    whole: bool

    def blank_before(self, at: int) -> bool:
        """Whether a blank stands between the tokens *at* - 1 and *at*."""
        end, start = self.offsets[at - 1][1], self.offsets[at][0]
        return bool(_BLANK.search(self.text, max(end - 1, 0), max(start, end) + 1))

    def sentence_before(self, at: int) -> bool:
        """Whether a sentence ends before the token *at*."""
        start = self.offsets[at][0]
        while start < len(self.text) and self.text[start].isspace():
            start += 1  # some tokenizers count a blank with the word after it
        return bool(_SENTENCE_END.search(self.text, max(0, start - _LOOK_BACK), start))

    def clean_before(self, at: int) -> bool:
        """Whether a cut before the token *at* is between two characters as people see them."""
        start = self.offsets[at][0]
        if start < self.offsets[at - 1][1] or not 0 < start < len(self.text):
            return False
        first, last = self.text[start], self.text[start - 1]
        joins = unicodedata.combining(first) or unicodedata.category(first) in ("Mn", "Me", "Mc")
        return not (joins or "\u200d" in (first, last) or "\U0001f3fb" <= first <= "\U0001f3ff")


class Cutter:
    """Cuts texts into windows by the tokens of one tokenizer. Stateless, safe for threads."""

    __slots__ = ("_reader",)

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def advance(self, cursors: Sequence[Cursor]) -> list[Span]:
        """Cut the next window off each of *cursors*, none of which has ended, and move them on.

        A window ends at the end of a sentence in its last quarter, else of a word; inside a word
        only where that alone exceeds a window, between two tokens and two characters as people see
        them. Only as much of a text is read as a window takes. A window has at most `limit` tokens
        by itself, unless one character has more.
        """
        heads = self._heads(cursors)
        spans: list[Span | None] = [None] * len(cursors)
        most = [cursor.limit for cursor in cursors]
        waiting = list(range(len(cursors)))
        while waiting:
            found = {row: self._span(cursors[row], heads[row], most[row]) for row in waiting}
            texts = [cursors[row].text[it.start : it.end] for row, it in found.items()]
            counts = self._reader.counts(texts).tolist()
            for (row, span), count in zip(found.items(), counts, strict=True):
                over = count - cursors[row].limit
                if over <= 0 or most[row] == 1:
                    spans[row] = span
                else:  # a text that begins or ends inside a word may have other tokens by itself
                    most[row] = max(1, most[row] - over)
            waiting = [row for row in waiting if spans[row] is None]
        ended = [span for span in spans if span is not None]
        for cursor, span in zip(cursors, ended, strict=True):
            cursor.move(cursor.stop if span.following is None else span.following)
        return ended

    def whole(self, texts: Sequence[str], limit: int, stride: int) -> list[list[Span]]:
        """Cut all of *texts*: the windows of each in order, none of one that is blank."""
        cursors = [Cursor(text, 0, len(text), limit, stride) for text in texts]
        spans: list[list[Span]] = [[] for _ in texts]
        while rows := [row for row, cursor in enumerate(cursors) if not cursor.ended]:
            found = self.advance([cursors[row] for row in rows])
            for row, span in zip(rows, found, strict=True):
                spans[row].append(span)
        return spans

    def _heads(self, cursors: Sequence[Cursor]) -> list[Head]:
        """Read the beginning of each: a window's tokens and some more, or all that is left."""
        heads: dict[int, Head] = {}
        sizes = [(it.limit + SETTLED_TOKENS) * CHARACTERS_PER_TOKEN for it in cursors]
        waiting = list(range(len(cursors)))
        while waiting:
            texts = [
                cursors[row].text[
                    cursors[row].start : min(cursors[row].stop, cursors[row].start + sizes[row])
                ]
                for row in waiting
            ]
            for row, text, encoding in zip(waiting, texts, self._reader.full(texts), strict=True):
                whole = cursors[row].start + len(text) >= cursors[row].stop
                if whole or len(encoding) >= cursors[row].limit + SETTLED_TOKENS:
                    heads[row] = Head(text, encoding.offsets, whole)
                sizes[row] *= 2
            waiting = [row for row in waiting if row not in heads]
        return [heads[row] for row in range(len(cursors))]

    def _span(self, cursor: Cursor, head: Head, most: int) -> Span:
        """The window of at most *most* tokens that *head* begins with."""
        start, tokens = cursor.start, len(head.offsets)
        if head.whole and tokens <= most:
            return Span(start, cursor.stop, None)
        end = self._cut(head, most, cursor.limit)
        if end >= tokens:
            return Span(start, cursor.stop if head.whole else start + len(head.text), None)
        stop = head.offsets[end][0]
        text = head.text[:stop].rstrip()
        following = stop
        if cursor.stride < end:
            begin = self._cut(head, cursor.stride, cursor.limit, longest=end)
            following = head.offsets[begin][0]
        return Span(start, start + max(len(text), 1), start + max(following, 1))

    def _cut(self, head: Head, most: int, limit: int, longest: int = 0) -> int:
        """Before which token, 1 to *most*, to cut; beyond *most* where nothing else is clean.

        longest: a word that is longer than *most* but ends by this token stays whole.
        """
        most = min(most, len(head.offsets) - 1)
        for at in range(most, most - max(1, most // SENTENCE_SHARE), -1):
            if head.sentence_before(at):
                return at
        word = next((at for at in range(most, 0, -1) if head.blank_before(at)), 0)
        if word > most // 2 or (word and not self._exceeds(head, word, limit)):
            return word
        after = (at for at in range(most + 1, longest + 1) if head.blank_before(at))
        if later := next(after, 0):
            return later
        if longest and not word and self._fits(head, longest):
            return longest
        inside = (at for at in range(most, 0, -1) if head.clean_before(at))
        beyond = (at for at in range(most + 1, len(head.offsets)) if head.clean_before(at))
        return next(inside, 0) or next(beyond, len(head.offsets))

    def _fits(self, head: Head, longest: int) -> bool:
        """Whether the window that ends before the token *longest* ends at the end of a word."""
        return longest < len(head.offsets) and head.blank_before(longest)

    def _exceeds(self, head: Head, at: int, limit: int) -> bool:
        """Whether the word that begins with the token *at* has more than *limit* tokens."""
        start = head.offsets[at][0]
        while start < len(head.text) and head.text[start].isspace():
            start += 1
        found = _BLANK.search(head.text, start)
        word = head.text[start : found.start() if found else len(head.text)]
        return len(self._reader.ids(word)) > limit
