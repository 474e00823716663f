"""What is kept of a pair, and what keeps it."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol


class CachedScore(NamedTuple):
    """What is kept of one pair: score and logit as float32 had them, whether it was cut, span."""

    score: float
    logit: float
    truncated: bool
    span: tuple[int, int] | None


class Store(Protocol):
    """Where scores are kept. Safe for threads; no method raises for what happens to a file."""

    quick: bool
    """Whether to keep something takes no time worth another thread."""

    @property
    def secret(self) -> bytes:
        """The key of its hashes."""
        ...

    def get(self, keys: Sequence[bytes]) -> list[CachedScore | None]:
        """What is kept under each of *keys*."""
        ...

    def put(self, entries: Mapping[bytes, CachedScore]) -> None:
        """Keep *entries*, and forget what was used longest ago where there is no room."""
        ...

    def size(self) -> tuple[int, int]:
        """(bytes in use, entries forgotten for want of room so far)."""
        ...

    def close(self) -> None:
        """Let go of what is open."""
        ...


def feed(digest: Any, part: bytes) -> None:
    """Add *part* to *digest*, its length before it, so that no two lists of parts are alike."""
    digest.update(len(part).to_bytes(8, "little"))
    digest.update(part)


def new_secret() -> bytes:
    """A random key for hashes."""
    return secrets.token_bytes(32)
