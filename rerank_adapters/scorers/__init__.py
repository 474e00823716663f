"""Scorers: (query, document) pairs in, scores out. Each file wraps another scorer, or is the core.

A wrapper keeps what it wraps in `inner`, where a queue and a token counter are found through it.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from ..protocols import Call, ModelInfo, Pair, Scored, Scorer
from ..tokenization import EncodedPairs

__all__ = ["Core", "Wrapper"]


class Core(Protocol):
    """A model without its network: what a queue stands between."""

    @property
    def max_length(self) -> int:
        """The most tokens of a pair."""
        ...

    def encode(self, pairs: Sequence[Pair], call: Call) -> EncodedPairs:
        """The tokens of *pairs*, in order, and which of them were cut."""
        ...

    def scored(self, logits: NDArray[np.float32], truncated: NDArray[np.bool_]) -> Scored:
        """What *logits*, float32 of shape (pairs, labels), mean."""
        ...

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each of *texts* has by itself."""
        ...

    def info(self) -> ModelInfo:
        """What really runs."""
        ...


class Wrapper:
    """A scorer around another: what it does not change, it passes on."""

    def __init__(self, inner: Scorer) -> None:
        if not isinstance(inner, Scorer):
            raise ConfigError(f"inner must have submit_pairs, info and close: got {inner!r:.80}")
        self.inner = inner

    def submit_pairs(self, pairs: Sequence[Pair], call: Call) -> Future[Scored]:
        """Score *pairs* by the scorer inside."""
        return self.inner.submit_pairs(pairs, call)

    def info(self) -> ModelInfo:
        """What really runs, inside."""
        return self.inner.info()

    def close(self) -> None:
        """Close the scorer inside."""
        self.inner.close()
