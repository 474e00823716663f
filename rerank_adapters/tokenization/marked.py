"""Templates whose own marks are tokens while the texts in them are text alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from tokenizers import AddedToken

from ..checkpoints import TextTemplate
from ..errors import ModelError
from .gather import Ids
from .layout import Layout, split
from .literal import marks_of
from .probes import PROBES
from .reader import Reader


def split_at_marks(reader: Reader, plain: Reader, template: TextTemplate) -> Layout:
    """Split *template* where its marks stand: no token crosses one.

    What stands beside a text is read with it by *reader*, the marks and what lies between them by
    *plain*. Raises ModelError where that does not write ordinary texts as *plain* writes them.
    """
    marks = marks_of(plain.tokenizer)
    prefix, middle, suffix = (
        _Part.of(plain, text, marks) for text in (template.prefix, template.middle, template.suffix)
    )
    if middle.first is not None:
        layout = Layout(
            (prefix.behind, middle.before),
            (middle.behind, suffix.before),
            between=middle.ids(plain, middle.before, middle.behind),
            swallow=(
                (prefix.takes_after, middle.takes_before),
                (middle.takes_after, suffix.takes_before),
            ),
        )
    else:
        layout = split(reader, TextTemplate(prefix.behind, template.middle, suffix.before))
        blanks = (prefix.takes_after, False), (False, suffix.takes_before)
        layout = replace(layout, swallow=blanks)
    tail = suffix.ids(plain, suffix.before, "")
    layout = replace(
        layout,
        head=prefix.ids(plain, "", prefix.behind),
        tail=np.concatenate([layout.tail, tail]),
    )
    _check(layout, reader, plain, template)
    return layout


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a template, and what stands before its first mark and behind its last.

    Without a mark all of it is behind a prefix's, before a suffix's: both are the whole text.
    """

    text: str
    before: str
    behind: str
    first: AddedToken | None
    last: AddedToken | None

    @classmethod
    def of(cls, plain: Reader, text: str, marks: dict[int, AddedToken]) -> _Part:
        (read,) = plain.full([text])
        at = [
            row
            for row, (number, span) in enumerate(zip(read.ids, read.offsets, strict=True))
            if number in marks and text[slice(*span)].strip() == marks[number].content.strip()
        ]
        if not at:
            return cls(text, text, text, None, None)
        start, end = read.offsets[at[0]][0], read.offsets[at[-1]][1]
        first, last = marks[read.ids[at[0]]], marks[read.ids[at[-1]]]
        return cls(text, text[:start], text[end:], first, last)

    def ids(self, plain: Reader, before: str, behind: str) -> Ids:
        """Return the tokens of what stands between *before* and *behind*."""
        inner = self.text[len(before) : len(self.text) - len(behind)]
        return np.array(plain.ids(inner) if self.first else [], dtype=np.int32)

    @property
    def takes_before(self) -> bool:
        """Whether its first mark takes the blanks before it."""
        return self.first is not None and self.first.lstrip

    @property
    def takes_after(self) -> bool:
        """Whether its last mark takes the blanks behind it."""
        return self.last is not None and self.last.rstrip


def _check(layout: Layout, reader: Reader, plain: Reader, template: TextTemplate) -> None:
    marks = marks_of(plain.tokenizer).keys()
    for query, document in PROBES:
        if not marks.isdisjoint(plain.ids(query) + plain.ids(document)):
            continue
        whole = plain.ids(template.text(query, document))
        if template.strip:
            query, document = query.strip(), document.strip()
        if layout.ids(reader, query, document) != whole:
            raise ModelError(
                f"special_tokens='as_text' changes how this model's template writes {query!r} and "
                f"{document!r}: pass special_tokens='as_tokens'"
            )
