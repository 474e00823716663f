"""How a pair is framed and answered, where somebody says so beside the checkpoint's own files."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What arguments, or the catalogue for a known hub id, say of a checkpoint.

    template     a plain frame with {query}, {document} and perhaps {instruction}
    strip        blanks around the query and the document are dropped first
    answers      the words of a language model whose logits make the score: yes and no, or yes alone
    instruction  what stands for {instruction} unless a prompt is given
    label        the label that means "relevant", by index or name
    scale        what the logit is multiplied by before the activation
    activation   what "default" means
    hint         which known checkpoint this one resembles, for errors
    """

    template: str | None = None
    strip: bool = False
    answers: tuple[str, ...] | None = None
    instruction: str | None = None
    label: int | str | None = None
    scale: float = 1.0
    activation: str | None = None
    hint: str = ""


NO_FRAME = Frame()
