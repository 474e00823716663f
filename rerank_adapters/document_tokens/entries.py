"""What stored tokens are found by, and what keeps them."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]


Spans = NDArray[np.int64]
"""Characters of a document, shape (windows, 2)."""


class Cut(NamedTuple):
    """What windows are cut by: their most tokens, and most tokens between their beginnings."""

    tokens: int
    step: int


class Entry(NamedTuple):
    """One document: hashes of its id and text, 16 bytes each, and its tokens, all of them.

    Or how it is cut into windows, which is no document more: `ids` is what `packed` makes then.
    """

    key: bytes
    text: bytes
    ids: Ids
    cut: bool = False


class DocumentReader(Protocol):
    """A tokenizer that reads documents by themselves, as they stand in a pair."""

    def document_ids(self, documents: Sequence[str]) -> list[Ids]:
        """Return the tokens of each of *documents*, uncut."""
        ...

    def document_windows(self, documents: Sequence[str], tokens: int, step: int) -> list[Spans]:
        """Return how each of *documents* is cut into windows; an empty table where it is not."""
        ...

    def document_facts(self) -> Mapping[str, str]:
        """Return what a document's tokens depend on beside its text, by name.

        Raises ConfigError where they cannot be read by themselves.
        """
        ...


class Store(Protocol):
    """Where entries are kept. Safe for threads."""

    @property
    def facts(self) -> Mapping[str, str]:
        """What the tokens in it depend on beside the texts; {} where there are none."""
        ...

    def get(self, asked: Sequence[tuple[bytes, bytes]]) -> list[Ids | None]:
        """The tokens of each (key, text)."""
        ...

    def put(self, entries: Iterable[Entry], facts: Mapping[str, str]) -> int:
        """Keep *entries*, of equal keys the last; how many documents those are."""
        ...

    def size(self) -> tuple[int, int]:
        """(documents, bytes)."""
        ...


def hashed(text: str) -> bytes:
    """16 bytes that stand for *text*."""
    return _digest(text, b"")


def hashed_cut(text: str, cut: Cut) -> bytes:
    """16 bytes that stand for *text* and *cut*; never those of a text alone."""
    return _digest(text, struct.pack("<QQ", *cut))


def _digest(text: str, person: bytes) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(data, digest_size=16, person=person).digest()


def packed(spans: Spans, ids: Sequence[Ids]) -> Ids:
    """*spans* and the tokens of each as one array: how many, bounds, lengths, tokens."""
    lengths = np.array([len(each) for each in ids], np.int32)
    return np.concatenate(
        [np.array([len(spans)], np.int32), spans.astype(np.int32).ravel(), lengths, *ids]
    )


def unpacked(array: Ids) -> tuple[Spans, list[Ids]]:
    """What `packed` put together; the tokens are views."""
    count = int(array[0])
    bounds, rest = array[1 : 1 + 2 * count], array[1 + 2 * count :]
    ends = np.cumsum(rest[:count], dtype=np.int64)[:-1]
    return bounds.astype(np.int64).reshape(-1, 2), np.split(rest[count:], ends)
