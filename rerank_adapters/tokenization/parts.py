"""What the encoders share: their options, what they return, and how slices of ids are joined."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from ..errors import InputError
from ..values import TokenBatch

Side = Literal["left", "right"]
Truncation = Literal["longest_first", "only_second"]
Ids = NDArray[np.int32]
Counts = NDArray[np.int64]

NO_LIMIT = 2**30
"""Tokens; a checkpoint that states no limit is never cut."""


@dataclass(frozen=True, slots=True, eq=False)
class EncodedPairs:
    """Tokenised pairs, and for each whether tokens of its document or query were dropped.

    `truncated` is bool of shape (pairs,), in the order of the pairs.
    """

    batch: TokenBatch
    truncated: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.truncated)


@dataclass(frozen=True, slots=True)
class Options:
    """How pairs are cut to `limit` tokens, and what stands before each query."""

    limit: int
    truncation: Truncation = "longest_first"
    side: Side = "right"
    query_max_tokens: int | None = None
    prompt: str = ""


class Encoder(Protocol):
    """One way to encode pairs."""

    def encode(self, pairs: Sequence[tuple[str, str]]) -> EncodedPairs:
        """Tokens of each (query, document), order kept."""
        ...


def gather(
    sources: Sequence[Ids], types: Sequence[Ids | int], starts: Counts, lengths: Counts
) -> TokenBatch:
    """Joins, for each pair, one slice out of each of *sources*.

    `starts` and `lengths` are (pairs, sources), counted from the beginning of each source. An int
    in *types* is the type of every token of its source.
    """
    bases = np.cumsum([0, *map(len, sources[:-1])])
    flat = lengths.ravel()
    ends = np.cumsum(flat)
    index = np.repeat((starts + bases).ravel() - (ends - flat), flat) + np.arange(flat.sum())
    of_sources = [
        np.full(len(source), kind, dtype=np.int32) if isinstance(kind, int) else kind
        for source, kind in zip(sources, types, strict=True)
    ]
    return TokenBatch(
        input_ids=np.concatenate(sources)[index],
        type_ids=np.concatenate(of_sources)[index],
        lengths=lengths.sum(axis=1),
    )


def longest_first(
    queries: Counts, documents: Counts, room: int, *, limit: int | None = None
) -> tuple[Counts, Counts]:
    """Tokens kept of each query and document so that both fit in *room*: the rule of `tokenizers`.

    The longer text is cut to what the shorter leaves. Where that is less than the shorter itself,
    each gets half, and the odd token goes to the longer (to the document where they are equal).

    limit: of the whole pair, special tokens included; None is *room*, that is, there are none.
    """
    if _reads_to_the_limit():
        most = room if limit is None else limit
        queries, documents = np.minimum(queries, most), np.minimum(documents, most)
    shorter = np.minimum(queries, documents)
    small = np.where(shorter > room - shorter, room // 2, shorter)
    large = room - small
    fits, query_longer = queries + documents <= room, queries > documents
    return (
        np.where(fits, queries, np.where(query_longer, large, small)),
        np.where(fits, documents, np.where(query_longer, small, large)),
    )


@functools.cache
def _reads_to_the_limit() -> bool:
    """Whether the installed `tokenizers` takes texts beyond the limit for equally long.

    0.23.1 and 0.23.2 do, versions before and after do not. It is asked of the library itself, so
    that a pair is cut where sentence-transformers cuts it.
    """
    words = Tokenizer(WordLevel({"a": 0}, unk_token="a"))  # noqa: S106 a token of text
    words.pre_tokenizer = Whitespace()
    words.enable_truncation(3, strategy="longest_first")
    kept: list[int | None] = words.encode("a a a a a", "a a a a").sequence_ids
    return kept.count(0) == 1


def only_second(queries: Counts, documents: Counts, room: int) -> tuple[Counts, Counts]:
    """Tokens kept where the document alone is cut, to one token at least; else InputError."""
    lost = np.flatnonzero((queries + documents > room) & (queries >= room))
    if len(lost):
        raise no_room_left(int(lost[0]), room)
    return queries, np.minimum(documents, room - queries)


def no_room_left(row: int, room: int) -> InputError:
    """The error for a query that truncation="only_second" cannot make room for."""
    return InputError(
        f"pairs[{row}]: truncation='only_second' keeps the query whole, and it takes all {room} "
        "tokens there are: set query_max_tokens, shorten the query, or use "
        "truncation='longest_first'"
    )


PROBE_TEXTS = (
    "a",
    "",
    " leading and trailing ",
    "Hello, world! It's 12,345.67 (e.g. $9) -- isn't it?",
    "\n\tnew lines\n\n",
    "...",
    "  ",
    "'s",
    "naïve café Å e\u0301 ﬁ ①",
    "東京は日本の首都です。",
    "_Привет мир_",
    "مرحبا",
    "👩‍👩‍👧 🇩🇪 ok",
    "\u0301mark first",
    "12",
    "\r\nx" + "y" * 120,
    "nul\x00 bell\x07",
    "<b>html</b> & </s> [SEP]",
)
"""Every kind of character a rule may look at where texts meet: blanks, letters, digits, marks."""

PROBES = [
    (query, document)
    for step in (0, 3, 7)
    for query, document in zip(PROBE_TEXTS, PROBE_TEXTS[step:] + PROBE_TEXTS[:step], strict=True)
]
