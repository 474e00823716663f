"""Scores that are kept: in memory, or in a file that several processes share."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ..errors import ConfigError
from .disk import DiskStore
from .entries import CachedScore, Store, feed
from .memory import MemoryStore

__all__ = ["CachedScore", "ScoreCache", "feed"]


class ScoreCache:
    """Remembers what a pair scored, so that it costs neither tokenising nor a pass again.

    Give one to `Reranker(cache=...)` or to an adapter; several may share it. It is found again only
    by everything that changes the number: the checkpoint's content, how it runs, every option that
    matters, query and document. What was used longest ago is forgotten first.

    Of texts it keeps nothing but a keyed hash. The key of a file is in the file: who holds the file
    cannot read a text from it, but can test whether a text they guess was scored.

    >>> cache = ScoreCache.memory(bytes=1_000_000)
    >>> cache.stats()
    {'hits': 0, 'misses': 0, 'evictions': 0, 'bytes': 0}
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._hits = 0
        self._misses = 0

    @classmethod
    def memory(cls, *, bytes: int) -> ScoreCache:  # noqa: A002  # what it counts
        """A cache of at most *bytes* of this process' memory."""
        return cls(MemoryStore(_checked_bytes(bytes)))

    @classmethod
    def at(
        cls,
        path: str | Path,
        *,
        bytes: int,  # noqa: A002  # what it counts
        ttl: float | None = None,
    ) -> ScoreCache:
        """A cache in the SQLite file *path*, made where there is none, of at most *bytes*.

        ttl: seconds that a score is kept, None: until there is no room. A file that is damaged,
        full, read-only or another program's fails no request: a warning says so, once, and the
        model is asked instead. Raises ConfigError.
        """
        if not isinstance(path, str | Path) or not str(path).strip():
            raise ConfigError(f"cache.path must be a str or a Path: got {path!r:.80}")
        number = isinstance(ttl, int | float) and not isinstance(ttl, bool)
        if ttl is not None and not (number and ttl > 0):
            raise ConfigError(f"cache.ttl must be seconds above 0, or None: got {ttl!r:.80}")
        return cls(DiskStore(Path(path).expanduser(), _checked_bytes(bytes), ttl))

    @classmethod
    def of(cls, value: object) -> ScoreCache | None:
        """*value* as a ScoreCache: one, a mapping of bytes, path and ttl, or None. ConfigError."""
        if value is None or isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            raise ConfigError(
                "cache must be ScoreCache.memory(...), ScoreCache.at(...), a mapping with bytes, "
                f"and path for a file, or None: got {value!r:.80}"
            )
        names = set(value)
        if "bytes" not in names or not names <= {"bytes", "path", "ttl"}:
            raise ConfigError(
                "cache must have bytes, and may have path and ttl: got "
                f"{', '.join(map(str, value)) or 'none of them'}"
            )
        if "path" in names:
            return cls.at(**value)
        if value.get("ttl") is not None:
            raise ConfigError(f"cache.ttl needs cache.path: got {value['ttl']!r:.80}")
        return cls.memory(bytes=value["bytes"])

    def hasher(self, context: bytes) -> Any:
        """A keyed hash of *context*, to be copied and fed with texts."""
        made = hashlib.blake2b(key=self._store.secret, digest_size=16)
        feed(made, context)
        return made

    @property
    def quick(self) -> bool:
        """Whether to keep something takes no time worth another thread."""
        return self._store.quick

    def get(self, keys: Sequence[bytes]) -> list[CachedScore | None]:
        """What is kept under each of *keys*."""
        found = self._store.get(keys)
        missed = found.count(None)
        self._hits += len(found) - missed
        self._misses += missed
        return found

    def put(self, entries: Mapping[bytes, CachedScore]) -> None:
        """Keep *entries*."""
        self._store.put(entries)

    def stats(self) -> dict[str, int]:
        """Pairs found and not found so far, entries forgotten for want of room, bytes in use."""
        used, evictions = self._store.size()
        return {
            "hits": self._hits,
            "misses": self._misses,
            "evictions": evictions,
            "bytes": used,
        }

    def close(self) -> None:
        """Let go of the file; a later use opens it again."""
        self._store.close()

    def __copy__(self) -> ScoreCache:
        return self  # it is alive: a copy of what uses it uses the same

    def __deepcopy__(self, memo: object) -> ScoreCache:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("a ScoreCache is alive and cannot be pickled: make it where it is used")


def _checked_bytes(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"cache.bytes must be an int of at least 1: got {value!r:.80}")
    return value
