"""What becomes of blank documents in a ranking: a score of nothing would be made up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ..errors import InputError

OnEmptyText = Literal["keep_last", "drop", "error", "score"]


def is_blank(text: str) -> bool:
    """Whether *text* is nothing but white space."""
    return not text or text.isspace()


def split_blank(
    documents: Sequence[str], on_empty_text: OnEmptyText
) -> tuple[list[int], list[int]]:
    """Indices of the *documents* to score, and of the blank ones that stand after them."""
    everything = range(len(documents))
    if on_empty_text == "score":
        return list(everything), []
    scored = [index for index in everything if not is_blank(documents[index])]
    if on_empty_text == "drop" or len(scored) == len(documents):
        return scored, []
    return scored, [index for index in everything if is_blank(documents[index])]


def check_no_blank(documents: Sequence[str], name: str) -> None:
    """Raise InputError where one of *documents*, called *name*, is blank."""
    for index, document in enumerate(documents):
        if is_blank(document):
            raise InputError(
                f"{name}[{index}] must have text to score: got {document!r:.80}; "
                'on_empty_text="keep_last", "drop" or "score" lets it pass'
            )
