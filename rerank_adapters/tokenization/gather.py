"""What encoders return, and how slices of ids are joined into it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..tokens import KnownTokens, TokenBatch
from .truncation import Counts

Ids = NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class EncodedPairs:
    """Tokenised pairs, and for each whether tokens of its document or query were dropped.

    `truncated` is bool of shape (pairs,), in the order of the pairs.
    """

    batch: TokenBatch
    truncated: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.truncated)


class Encoder(Protocol):
    """One way to encode pairs."""

    def encode(
        self, pairs: Sequence[tuple[str, str]], known: KnownTokens | None = None
    ) -> EncodedPairs:
        """Return the tokens of each (query, document), order kept; *known* are not read again."""
        ...

    def least_room(self, limit: int) -> int:
        """Return how many tokens any query leaves to its document in pairs of *limit* tokens."""
        ...

    def uncut(self) -> Encoder:
        """Return the same encoder, over the same tokenizer, that cuts nothing."""
        ...


def gather(
    sources: Sequence[Ids], types: Sequence[Ids | int], starts: Counts, lengths: Counts
) -> TokenBatch:
    """Join, for each pair, one slice out of each of *sources*.

    `starts` and `lengths` are (pairs, sources), counted from the beginning of each source. An int
    in *types* is the type of every token of its source.
    """
    bases = np.cumsum([0, *map(len, sources[:-1])])
    flat = lengths.ravel()
    ends = np.cumsum(flat)
    index = np.repeat((starts + bases).ravel() - (ends - flat), flat) + np.arange(flat.sum())
    of_sources = [
        np.full(len(source), kind, dtype=np.int32) if isinstance(kind, int) else kind
        for source, kind in zip(sources, types, strict=True)
    ]
    return TokenBatch(
        input_ids=np.concatenate(sources)[index],
        type_ids=np.concatenate(of_sources)[index],
        lengths=lengths.sum(axis=1),
    )
