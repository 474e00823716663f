"""Scores in this process' memory."""

from __future__ import annotations

import struct
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence

from .entries import CachedScore, new_secret

ENTRY_BYTES = 320
"""What one entry takes of memory at most, its key and its part of the table among it."""

_ROW = struct.Struct("<ffIqq")


class MemoryStore:
    """The entries that were used last, as many as fit."""

    quick = True

    def __init__(self, most: int) -> None:
        self.secret = new_secret()
        self._most = most // ENTRY_BYTES
        self._rows: OrderedDict[bytes, bytes] = OrderedDict()
        self._evictions = 0
        self._lock = threading.Lock()

    def get(self, keys: Sequence[bytes]) -> list[CachedScore | None]:
        """What is kept under each of *keys*."""
        with self._lock:
            rows = [self._rows.get(key) for key in keys]
            for key, row in zip(keys, rows, strict=True):
                if row is not None:
                    self._rows.move_to_end(key)
        return [None if row is None else _unpacked(row) for row in rows]

    def put(self, entries: Mapping[bytes, CachedScore]) -> None:
        """Keep *entries*; what was used longest ago makes room."""
        with self._lock:
            for key, entry in entries.items():
                start, end = entry.span or (-1, -1)
                self._rows[key] = _ROW.pack(entry.score, entry.logit, entry.flags, start, end)
                self._rows.move_to_end(key)
            while len(self._rows) > self._most:
                self._rows.popitem(last=False)
                self._evictions += 1

    def size(self) -> tuple[int, int]:
        """(bytes in use, entries forgotten for want of room so far)."""
        return len(self._rows) * ENTRY_BYTES, self._evictions

    def close(self) -> None:
        """Nothing is open."""


def _unpacked(row: bytes) -> CachedScore:
    score, logit, flags, start, end = _ROW.unpack(row)
    return CachedScore.of(score, logit, flags, None if start < 0 else (start, end))
