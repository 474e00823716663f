"""The text around a pair, for models that read a query and a document as one text."""

from __future__ import annotations

from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class TextTemplate:
    """The text before, between and after a query and a document.

    strip  blanks around the query and the document are dropped first
    slot   the prefix before and after a prompt, None where it takes none or it is not known where;
           templates that write the same text are equal whether it is known or not
    """

    prefix: str
    middle: str
    suffix: str
    strip: bool = False
    slot: tuple[str, str] | None = field(default=None, compare=False)

    def text(self, query: str, document: str) -> str:
        """Return the one text the model reads for this pair."""
        if self.strip:
            query, document = query.strip(), document.strip()
        return f"{self.prefix}{query}{self.middle}{document}{self.suffix}"

    def with_prompt(self, prompt: str) -> TextTemplate | None:
        """Return the template with *prompt* in its slot; None where that cannot be.

        Without a prompt a template may write anything, so an empty one cannot be put there.
        """
        if self.slot is None or not prompt:
            return None
        before, after = self.slot
        return replace(self, prefix=f"{before}{prompt}{after}")
