"""Tokenised pairs: what travels from a tokenizer to a backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float32]


class ExitLogits(Protocol):
    """A layer, and how an exit logit is read off what hidden states are there."""

    @property
    def layer(self) -> int:
        """The last one that was run."""
        ...

    def __call__(self, pooled: NDArray[np.float32]) -> Scores:
        """float32 (pairs,) of pooled states, float32 (pairs, width)."""
        ...


KnownTokens = Mapping[str, NDArray[np.int32]]
"""Texts as a tokenizer reads them, and their tokens, all of them."""


class PairText(NamedTuple):
    """A pair as text, for a backend whose own tokenizer writes it.

    prompt is put before the query as the checkpoint does, None for the checkpoint's own; the pair
    is cut to max_length tokens.
    """

    query: str
    document: str
    prompt: str | None
    max_length: int


class Held(Protocol):
    """Keeps one pair's hidden states between parts of a network, as long as it may go on."""

    states: Any

    def offer(self, logit: float, states: Any) -> None:
        """Take what a part made of the pair; *logit* says whether it is worth keeping."""
        ...

    def leave(self) -> None:
        """Free the states: the last part has run."""
        ...


@dataclass(frozen=True, slots=True)
class Stage:
    """The part of a network that a batch is for: the layers behind `after`, 0 for all, to a head's.

    head maps pooled states after its layer, float32 (pairs, width), to exit logits (pairs,); None:
    the batch goes on to the last layer.
    """

    after: int
    head: ExitLogits | None


@dataclass(frozen=True, slots=True, eq=False)
class TokenBatch:
    """Tokenised pairs laid end to end, without padding.

    `input_ids` and `type_ids` are int32 of shape (tokens,); `lengths` is int64 of shape (pairs,)
    and sums to tokens. The order of pairs is the order of scores. `texts` holds the pairs
    for a backend that wants texts, and is empty for all others. `stage` is the part of the network
    that is to run, None for all of it; `held` then has one entry per pair.
    """

    input_ids: NDArray[np.int32]
    type_ids: NDArray[np.int32]
    lengths: NDArray[np.int64]
    texts: tuple[PairText, ...] = ()
    stage: Stage | None = None
    held: tuple[Held, ...] = ()

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Where each pair starts, and the end of the last: int64 of shape (pairs + 1,)."""
        return np.concatenate(([0], np.cumsum(self.lengths)))

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> TokenBatch:
        """The pairs at *rows*, in that order."""
        rows = np.asarray(rows, dtype=np.int64)
        offsets = self.offsets
        bounds = zip(offsets[rows].tolist(), offsets[rows + 1].tolist(), strict=True)
        spans = [slice(start, stop) for start, stop in bounds]
        return TokenBatch(
            input_ids=_join([self.input_ids[span] for span in spans]),
            type_ids=_join([self.type_ids[span] for span in spans]),
            lengths=self.lengths[rows],
            texts=tuple(self.texts[row] for row in rows) if self.texts else (),
            stage=self.stage,
            held=tuple(self.held[row] for row in rows) if self.held else (),
        )

    @staticmethod
    def join(batches: Sequence[TokenBatch]) -> TokenBatch:
        """The pairs of several batches of one stage, one after the other."""
        return TokenBatch(
            input_ids=_join([batch.input_ids for batch in batches]),
            type_ids=_join([batch.type_ids for batch in batches]),
            lengths=np.concatenate([np.zeros(0, np.int64), *(batch.lengths for batch in batches)]),
            texts=tuple(pair for batch in batches for pair in batch.texts),
            stage=batches[0].stage if batches else None,
            held=tuple(held for batch in batches for held in batch.held),
        )

    def padded(
        self, pad_id: int, side: Literal["left", "right"] = "right"
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """(input_ids, attention_mask, type_ids), each int64 of shape (pairs, longest)."""
        longest = int(self.lengths.max(initial=0))
        columns = np.arange(longest)
        if side == "right":
            mask = columns < self.lengths[:, None]
        else:
            mask = columns >= longest - self.lengths[:, None]
        input_ids = np.full(mask.shape, pad_id, dtype=np.int64)
        input_ids[mask] = self.input_ids
        type_ids = np.zeros(mask.shape, dtype=np.int64)
        type_ids[mask] = self.type_ids
        return input_ids, mask.astype(np.int64), type_ids


def _join(arrays: list[NDArray[np.int32]]) -> NDArray[np.int32]:
    return np.concatenate(arrays) if arrays else np.zeros(0, np.int32)
