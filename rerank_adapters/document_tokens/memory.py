"""Stored tokens in this process' memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from .entries import Entry, Ids

ENTRY_BYTES = 300
"""What an entry takes beside its tokens, its keys and its part of the table among it."""


class MemoryStore:
    """Entries by key, the last one of each."""

    def __init__(self) -> None:
        self.facts: Mapping[str, str] = {}
        self._entries: dict[bytes, Entry] = {}

    def get(self, asked: Sequence[tuple[bytes, bytes]]) -> list[Ids | None]:
        """The tokens of each (key, text)."""
        found = [self._entries.get(key) for key, _ in asked]
        return [
            entry.ids if entry is not None and entry.text == text else None
            for entry, (_, text) in zip(found, asked, strict=True)
        ]

    def put(self, entries: Iterable[Entry], facts: Mapping[str, str]) -> int:
        """Keep *entries*; how many documents those are."""
        self.facts = facts
        keys = set()
        for entry in entries:
            self._entries[entry.key] = entry._replace(ids=entry.ids.copy())
            if not entry.cut:
                keys.add(entry.key)
        return len(keys)

    def size(self) -> tuple[int, int]:
        """(documents, bytes)."""
        entries = list(self._entries.values())
        documents = sum(not entry.cut for entry in entries)
        return documents, sum(ENTRY_BYTES + entry.ids.nbytes for entry in entries)
