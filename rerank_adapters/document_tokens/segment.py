"""A file of stored tokens: written once, renamed into place, mapped into memory, never changed.

start     64 bytes: magic, version, checksum of what follows the tokens, tokens, bytes of the facts,
          documents
tokens    int32 (tokens,)
keys      uint64 (rows,), ascending: the first half of each key, a document's or its windows'
rows      (rows,) of ROW, beside `keys`
facts     JSON: what the tokens depend on beside the texts

Numbers are little-endian. Each row has its tokens' checksum, which is looked at when they are used,
so that opening a file reads its tables alone.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelError
from .entries import Entry, Ids

MAGIC = b"RRKTOKEN"

VERSION = 2
"""The version of this layout."""

START = struct.Struct("<8sIIQQQ")
START_BYTES = 64

ROW = np.dtype(
    [("key", "<u8"), ("text", "<u8", 2), ("start", "<u8"), ("size", "<u4"), ("crc", "<u4")]
)


class Segment:
    """One file, mapped. Raises ModelError that names it where it is damaged or of another kind."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            whole = np.asarray(np.memmap(path, mode="r", dtype=np.uint8))
        except (OSError, ValueError) as error:  # ValueError: it is empty
            raise self._refused(str(error)) from error
        self._map(whole)
        self.bytes = len(whole)

    def __len__(self) -> int:
        return self._documents

    def find(self, asked: NDArray[np.uint64]) -> list[Ids | None]:
        """The tokens of each row (key's halves, text's halves) of *asked*, uint64 (rows, 4)."""
        firsts = np.searchsorted(self._keys, asked[:, 0])
        return [
            self._at(int(first), row)
            for first, row in zip(firsts.tolist(), asked.tolist(), strict=True)
        ]

    def _at(self, at: int, asked: Sequence[int]) -> Ids | None:
        while at < len(self._rows) and self._keys[at] == asked[0]:
            row = self._rows[at]
            if [int(row["key"]), *row["text"].tolist()] == asked[1:]:
                return self._tokens_of(row)
            at += 1
        return None

    def _tokens_of(self, row: Any) -> Ids:
        start, size = int(row["start"]), int(row["size"])
        ids: Ids = self._tokens[start : start + size]
        if zlib.crc32(ids.data) != int(row["crc"]):
            raise self._refused(f"the {size} tokens at {start} are not those that were written")
        return ids

    def _map(self, whole: NDArray[np.uint8]) -> None:
        if len(whole) < START_BYTES:
            raise self._refused("it is too short")
        magic, version, crc, tokens, size, documents = START.unpack(bytes(whole[: START.size]))
        if magic != MAGIC:
            raise self._refused("it is another program's")
        if version != VERSION:
            raise self._refused(f"its format is {version}, and this library reads {VERSION}")
        tables = _aligned(START_BYTES + 4 * tokens)
        count, rest = divmod(len(whole) - tables - size, 8 + ROW.itemsize)
        torn = tables + size > len(whole) or rest or documents > count
        if torn or zlib.crc32(whole[tables:].data) != crc:
            raise self._refused("its tables are not those that were written")
        self._documents: int = documents
        rows = tables + 8 * count
        self._tokens = whole[START_BYTES : START_BYTES + 4 * tokens].view("<i4")
        self._keys = whole[tables:rows].view("<u8")
        self._rows = whole[rows : len(whole) - size].view(ROW)
        self.facts: dict[str, str] = json.loads(bytes(whole[len(whole) - size :]))

    def _refused(self, why: str) -> ModelError:
        return ModelError(
            f"document_tokens: {str(self.path)!r} cannot be used: {why}: delete it, and build the "
            "tokens of its documents again"
        )


def write(path: Path, entries: Iterable[Entry], facts: Mapping[str, str]) -> int:
    """Write *entries*, of equal keys the last, aside and rename them to *path*; how many those are.

    The file is its owner's alone: tokens tell the texts.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with os.fdopen(os.open(aside, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600), "w+b") as file:
            file.write(bytes(START_BYTES))
            rows, tokens, documents = _write_tokens(file, entries)
            keys = np.frombuffer(b"".join(rows), ">u8").reshape(-1, 2).astype("<u8")
            table = np.array(list(rows.values()), dtype=ROW)
            order = np.argsort(keys[:, 0], kind="stable")
            told = json.dumps(dict(facts), sort_keys=True).encode()
            parts = keys[order, 0].tobytes() + table[order].tobytes() + told
            file.write(bytes(_aligned(file.tell()) - file.tell()) + parts)
            file.seek(0)
            file.write(START.pack(MAGIC, VERSION, zlib.crc32(parts), tokens, len(told), documents))
            file.flush()
            os.fsync(file.fileno())
        if rows:
            aside.replace(path)
        return documents
    finally:
        aside.unlink(missing_ok=True)


def _write_tokens(file: Any, entries: Iterable[Entry]) -> tuple[dict[bytes, Any], int, int]:
    """Write the tokens of *entries*; the rows by key, how many tokens, and how many documents."""
    rows: dict[bytes, Any] = {}
    cuts: set[bytes] = set()
    tokens = 0
    for key, text, ids, cut in entries:
        if cut:
            cuts.add(key)
        data = ids.astype("<i4").tobytes()
        file.write(data)
        rows[key] = (halves(key)[1], halves(text), tokens, len(ids), zlib.crc32(data))
        tokens += len(ids)
    return rows, tokens, len(rows) - len(cuts)


def halves(digest: bytes) -> tuple[int, int]:
    """The 16 bytes of *digest* as two numbers."""
    return int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big")


def _aligned(size: int) -> int:
    return -(-size // 8) * 8
