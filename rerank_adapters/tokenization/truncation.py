"""Which tokens of a pair are kept: the rules of `tokenizers`, on counts alone."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from ..checkpoints import NO_LIMIT
from ..config import Truncation
from ..errors import InputError

Side = Literal["left", "right"]
Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Options:
    """How pairs are cut to `limit` tokens, and each query to `query_max_tokens` before that."""

    limit: int
    truncation: Truncation = "longest_first"
    side: Side = "right"
    query_max_tokens: int | None = None

    def uncut(self) -> Options:
        """Return the options that cut nothing."""
        return Options(NO_LIMIT, side=self.side)


def longest_first(
    queries: Counts, documents: Counts, room: int, *, limit: int | None = None
) -> tuple[Counts, Counts]:
    """Return the tokens kept of each query and document so that both fit in *room*.

    The rule is that of `tokenizers`: the longer text is cut to what the shorter leaves. Where
    that is less than the shorter itself, each gets half, and the odd token goes to the
    longer (to the document where they are equal).

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
    """Return the tokens kept where documents alone are cut; InputError where one would lose all."""
    lost = np.flatnonzero((queries + documents > room) & (queries >= room))
    if len(lost):
        raise no_room_left(int(lost[0]), room)
    return queries, np.minimum(documents, room - queries)


def no_room_left(row: int, room: int) -> InputError:
    """Return the error for a query that truncation="only_second" cannot make room for."""
    return InputError(
        f"pairs[{row}]: truncation='only_second' keeps the query whole, and it takes all {room} "
        "tokens there are: set query_max_tokens, shorten the query, or use "
        "truncation='longest_first'"
    )
