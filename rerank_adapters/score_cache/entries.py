"""What is kept of a pair, and what keeps it."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, Self


class CachedScore(NamedTuple):
    """What is kept of one pair: score and logit as float32 had them, whether it was cut, span.

    exit is how many layers were run where scoring ended early, else 0.
    """

    score: float
    logit: float
    truncated: bool
    span: tuple[int, int] | None
    exit: int = 0

    @property
    def flags(self) -> int:
        """`truncated` and `exit` as one number, which stores keep."""
        return self.exit << 1 | self.truncated

    @classmethod
    def of(cls, score: float, logit: float, flags: int, span: tuple[int, int] | None) -> Self:
        """The entry of which a store kept these."""
        return cls(score, logit, bool(flags & 1), span, flags >> 1)


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
