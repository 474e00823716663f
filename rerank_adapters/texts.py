"""Texts as they come: a str may hold halves of characters, which no tokenizer and no file takes.

A high surrogate followed by a low one is read as the character that the two stand for. Any other
surrogate stands for nothing and is read as U+FFFD, the replacement character.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray

_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")


def whole(text: str) -> str:
    """Return *text* with surrogates joined where they pair, and U+FFFD for each that does not."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def spans_in(text: str, span: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the bounds in *text* of *span*, which counts in `whole(text)`: int64 of shape (2,)."""
    starts = np.array([found.start() for found in _PAIR.finditer(text)], dtype=np.int64)
    joined = starts - np.arange(len(starts))  # where each joined character stands in whole(text)
    return span + np.searchsorted(joined, span)


def whole_pairs(pairs: Sequence[tuple[str, str]]) -> Sequence[tuple[str, str]]:
    """Return *pairs* of whole texts: the same object where they are whole already."""
    if all(map(str.isascii, chain.from_iterable(pairs))):  # no Python frame per text
        return pairs
    made = {
        row: (whole(query), whole(document))
        for row, (query, document) in enumerate(pairs)
        if not (document.isascii() and query.isascii())
    }
    if all(query is pairs[row][0] and it is pairs[row][1] for row, (query, it) in made.items()):
        return pairs
    return [made.get(row, pair) for row, pair in enumerate(pairs)]
