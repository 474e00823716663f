"""What stored tokens are found by, and what keeps them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]


class Entry(NamedTuple):
    """One document: hashes of its id and text, 16 bytes each, and its tokens, all of them."""

    key: bytes
    text: bytes
    ids: Ids


class DocumentReader(Protocol):
    """A tokenizer that reads documents by themselves, as they stand in a pair."""

    def document_ids(self, documents: Sequence[str]) -> list[Ids]:
        """Return the tokens of each of *documents*, uncut."""
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
    data = text.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(data, digest_size=16).digest()
