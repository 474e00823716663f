"""Where a template's text may be split, so that queries and documents are read apart."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..checkpoints import JOINT, TextTemplate
from .gather import Ids
from .probes import PROBES
from .reader import Reader


def _none() -> Ids:
    return np.zeros(0, dtype=np.int32)


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """A template split where no token crosses: tokens of its own, and around each text its text.

    head, between, tail  tokens before, between and after the two texts read
    around_query, around_document  (text before, text after) what is read with each
    apart    whether query and document are read apart, each once; else a pair is one text
    swallow  (before, after): whether `head` or `between`, and `between` or `tail`, take the blanks
             beside them, of the query's text and of the document's
    """

    around_query: tuple[str, str]
    around_document: tuple[str, str]
    head: Ids = field(default_factory=_none)
    between: Ids = field(default_factory=_none)
    tail: Ids = field(default_factory=_none)
    apart: bool = True
    swallow: tuple[tuple[bool, bool], tuple[bool, bool]] = ((False, False), (False, False))

    def halves(self, query: str, document: str) -> tuple[str, str]:
        """Return the two texts to read; the second is empty where a pair is one."""
        (before, after), (between, behind) = self.around_query, self.around_document
        first, second = f"{before}{query}{after}", f"{between}{document}{behind}"
        if not self.apart:
            return first + second, ""
        return _stripped(first, *self.swallow[0]), _stripped(second, *self.swallow[1])

    def ids(self, reader: Reader, query: str, document: str) -> list[int]:
        """Return the tokens of one pair, uncut."""
        first, second = (reader.ids(half) for half in self.halves(query, document))
        return [*self.head.tolist(), *first, *self.between.tolist(), *second, *self.tail.tolist()]


def _stripped(text: str, before: bool, after: bool) -> str:
    text = text.lstrip() if before else text
    return text.rstrip() if after else text


def at_joints(plain: Reader, template: TextTemplate) -> Layout:
    """Split *template* where it says so: what no text touches is tokenised by *plain*, apart."""
    parts = [part.split(JOINT) for part in (template.prefix, template.middle, template.suffix)]
    (*head, before), (after, *between, behind), (last, *tail) = parts

    def ids(pieces: list[str]) -> Ids:
        return np.array([token for it in pieces for token in plain.ids(it)], dtype=np.int32)

    return Layout(
        (before, after), (behind, last), head=ids(head), between=ids(between), tail=ids(tail)
    )


def split(reader: Reader, template: TextTemplate) -> Layout:
    """Split as late in the middle, then as early in the suffix, as no probe's tokens cross."""
    middle, suffix = template.middle, template.suffix
    for at in range(len(middle), -1, -1):
        query, document = (template.prefix, middle[:at]), (middle[at:], suffix)
        layout = Layout(query, document)
        if _holds(reader, layout, ""):
            break
    else:
        return Layout((template.prefix, middle), ("", suffix), apart=False)
    for at in range(len(suffix)):
        tail = np.array(reader.ids(suffix[at:]), dtype=np.int32)
        shorter = Layout(query, (document[0], suffix[:at]), tail=tail)
        if _holds(reader, shorter, suffix[at:]):
            return shorter
    return layout


def _holds(reader: Reader, layout: Layout, rest: str) -> bool:
    """Whether *layout* leaves every probe's tokens as they are, between pre-tokens of the whole.

    The second matters more than the first: a probe may miss the one token that crosses, but not
    the rule that lets characters of its kind into one pre-token.
    """
    for pair in PROBES:
        halves = [reader.ids(half) for half in layout.halves(*pair)]
        (whole,) = reader.full(["".join([*layout.halves(*pair), rest])])
        if whole.ids != halves[0] + halves[1] + layout.tail.tolist():
            return False
        words = whole.word_ids
        for start in (len(halves[0]), len(halves[0]) + len(halves[1])):
            if 0 < start < len(words) and words[start - 1] == words[start]:
                return False
    return True
