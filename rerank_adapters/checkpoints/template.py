"""The text around a pair, for models that read a query and a document as one text."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Part = Literal["prefix", "middle", "suffix"]

FIELDS = re.compile(r"\{(query|document|instruction)\}")
"""What a plain frame has values for; any other brace is text."""

JOINT = "\ufdd1"
"""Stands in a frame's parts for {|}: what is before and behind it is tokenised apart."""


@dataclass(frozen=True, slots=True)
class TextTemplate:
    """The text before, between and after a query and a document.

    strip           blanks around the query and the document are dropped first
    slot            the text before and after a prompt in the part `slot_in`, None where it takes
                    none or it is not known where; templates that write the same text are equal
                    whether it is known or not
    document_first  the document stands before the query
    frame           a plain frame that somebody gave: the tokenizer's own special tokens stand
                    around it, as around any one text, and an empty prompt may stand in its slot

    A frame's parts may hold JOINTs, which no text of a caller's ever is.
    """

    prefix: str
    middle: str
    suffix: str
    strip: bool = False
    slot: tuple[str, str] | None = field(default=None, compare=False)
    slot_in: Part = field(default="prefix", compare=False)
    document_first: bool = False
    frame: bool = False

    @classmethod
    def parse(cls, text: str, prompt: str | None, *, strip: bool = False) -> TextTemplate:
        """Return the frame *text* (see `config.template`) with *prompt* for its {instruction}."""
        query, document = text.index("{query}"), text.index("{document}")
        pieces = FIELDS.split(text.replace(JOINT, "").replace("{|}", JOINT))
        parts = [""]
        names: tuple[Part, Part, Part] = ("prefix", "middle", "suffix")
        slot: tuple[Part, str] | None = None
        for literal, name in zip(pieces[::2], [*pieces[1::2], ""], strict=True):
            parts[-1] += literal
            if name == "instruction":
                slot = names[len(parts) - 1], parts[-1]
            elif name:
                parts.append("")
        first, between, last = parts
        template = cls(
            first, between, last, strip=strip, document_first=document < query, frame=True
        )
        if slot is None:
            return template
        part, before = slot
        after = getattr(template, part)[len(before) :]
        filled = replace(template, slot=(before, after), slot_in=part)
        return filled.with_prompt(prompt or "") or filled

    def text(self, query: str, document: str) -> str:
        """Return the one text the model reads for this pair."""
        if self.strip:
            query, document = query.strip(), document.strip()
        if self.document_first:
            query, document = document, query
        before, between, after = (
            part.replace(JOINT, "") for part in (self.prefix, self.middle, self.suffix)
        )
        return f"{before}{query}{between}{document}{after}"

    @property
    def joined(self) -> bool:
        """Whether its parts are tokenised apart, and their tokens put together."""
        return JOINT in self.middle

    def with_prompt(self, prompt: str) -> TextTemplate | None:
        """Return the template with *prompt* in its slot; None where that cannot be.

        Without a prompt a chat template may write anything, so an empty one cannot be put there.
        """
        if self.slot is None or not (prompt or self.frame):
            return None
        before, after = self.slot
        changed: dict[str, Any] = {self.slot_in: f"{before}{prompt.replace(JOINT, '')}{after}"}
        return replace(self, **changed)
