"""The four seams. Everything else is one of these, or one wrapped around another of its kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from .values import Ranking, Scores, TokenBatch


@runtime_checkable
class Ranker(Protocol):
    """Maps a query and texts to a ranking of indices."""

    def rerank(
        self,
        query: str,
        texts: Sequence[str],
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
    ) -> Ranking:
        """The best *top_n* of *texts* (None: all) at or above *score_threshold*, best first."""
        ...


@runtime_checkable
class Scorer(Protocol):
    """Maps (query, text) pairs to scores, order kept."""

    def score_pairs(self, pairs: Sequence[tuple[str, str]]) -> Scores:
        """One finite float32 per pair, shape (pairs,), higher is more relevant."""
        ...


@runtime_checkable
class ModelFamily(Protocol):
    """What a checkpoint means: how a pair is written, and what its logits say."""

    def scores(self, logits: NDArray[np.float32]) -> Scores:
        """float32 logits of shape (pairs, labels) to float32 scores of shape (pairs,)."""
        ...


@runtime_checkable
class Backend(Protocol):
    """Runs a network: token ids in, logits out, nothing else.

    It may have `workers`, how many threads should call it at once (1), and `needs_texts`: then
    `logits_from_pairs` is called with the texts instead.
    """

    def logits(self, batch: TokenBatch) -> NDArray[np.float32]:
        """Raw float32 outputs of shape (pairs, labels), in the batch's order."""
        ...

    def info(self) -> dict[str, str]:
        """What really runs: backend, device or provider, dtype, and why."""
        ...

    def close(self) -> None:
        """Frees the network; later calls of `logits` raise ClosedError."""
        ...
