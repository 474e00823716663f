"""Stored tokens in a folder of segments, the newest of which counts."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ..errors import ConfigError
from .entries import Entry, Ids
from .segment import Segment, halves, write

SUFFIX = ".tokens"


class FolderStore:
    """The segments of a folder, by name the oldest first; other files there are left alone.

    `facts` are those that its tokens were read by, {} where there are none yet.
    Raises ModelError for a segment that is damaged, ConfigError for segments of two tokenizers.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._segments = [Segment(path) for path in sorted(folder.glob(f"*{SUFFIX}"))]
        for segment in self._segments[1:]:
            if segment.facts != self._segments[0].facts:
                raise ConfigError(
                    "document_tokens must hold the tokens of one tokenizer: "
                    f"{str(segment.path)!r} was built with another than the rest of its folder"
                )

    @property
    def facts(self) -> Mapping[str, str]:
        """What its tokens depend on beside the texts."""
        return self._segments[0].facts if self._segments else {}

    def get(self, asked: Sequence[tuple[bytes, bytes]]) -> list[Ids | None]:
        """The tokens of each (key, text)."""
        found: list[Ids | None] = [None] * len(asked)
        table = np.array([(*halves(key), *halves(text)) for key, text in asked], np.uint64)
        for segment in reversed(self._segments):
            missing = [row for row, ids in enumerate(found) if ids is None]
            if not missing:
                break
            for row, ids in zip(missing, segment.find(table[missing]), strict=True):
                found[row] = ids
        return found

    def put(self, entries: Iterable[Entry], facts: Mapping[str, str]) -> int:
        """Keep *entries* as a new segment; how many documents those are."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{time.time_ns():020d}-{secrets.token_hex(4)}{SUFFIX}"
        count = write(path, entries, facts)
        if count:
            segment = Segment(path)
            with self._lock:
                self._segments = [*self._segments, segment]
        return count

    def size(self) -> tuple[int, int]:
        """(documents in all segments, bytes on disk)."""
        segments = self._segments
        return sum(map(len, segments)), sum(segment.bytes for segment in segments)
