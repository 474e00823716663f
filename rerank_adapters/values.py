"""The values that travel: tokens down, scores and indices up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from .display import Row, Table, table
from .errors import InputError

Item = TypeVar("Item")
Scores = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class TokenBatch:
    """Tokenised pairs laid end to end, without padding.

    `input_ids` and `type_ids` are int32 of shape (tokens,); `lengths` is int64 of shape (pairs,)
    and sums to tokens. The order of pairs is the order of scores. `texts` holds the pairs
    for the rare backend that must tokenise them its own way, and is empty for all others.
    """

    input_ids: NDArray[np.int32]
    type_ids: NDArray[np.int32]
    lengths: NDArray[np.int64]
    texts: tuple[tuple[str, str], ...] = ()

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
        )

    @staticmethod
    def join(batches: Sequence[TokenBatch]) -> TokenBatch:
        """The pairs of several batches, one after the other."""
        return TokenBatch(
            input_ids=_join([batch.input_ids for batch in batches]),
            type_ids=_join([batch.type_ids for batch in batches]),
            lengths=np.concatenate([np.zeros(0, np.int64), *(batch.lengths for batch in batches)]),
            texts=tuple(pair for batch in batches for pair in batch.texts),
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


@dataclass(frozen=True, slots=True)
class RankedDocument:
    """One place in a ranking: `index` into the texts given, its `score`, and whether it was cut."""

    index: int
    score: float
    truncated: bool = False


class Ranking(Sequence[RankedDocument]):
    """An immutable ranking, best first; equal scores keep the order of the texts given."""

    __slots__ = ("_places",)

    def __init__(self, places: Sequence[RankedDocument]) -> None:
        self._places = tuple(places)

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, key: int) -> RankedDocument: ...
    @overload
    def __getitem__(self, key: slice) -> Ranking: ...
    def __getitem__(self, key: int | slice) -> RankedDocument | Ranking:
        return Ranking(self._places[key]) if isinstance(key, slice) else self._places[key]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ranking) and self._places == other._places

    def __hash__(self) -> int:
        return hash(self._places)

    def __repr__(self) -> str:
        return f"Ranking({list(self._places)!r})"

    def select(self, items: Sequence[Item]) -> list[Item]:
        """The *items* this ranking speaks of, in its order: texts, rows, documents, anything."""
        return [items[place.index] for place in self._places]

    def show(self, texts: Sequence[str] | None = None, *, width: int = 100) -> Table:
        """A table of rank, score, a bar from lowest to highest score, index, and text if given.

        It is a string of lines of at most *width* terminal cells (a cut text ends in "…"), and
        shows as HTML in notebooks. *texts* are those that were ranked. Raises InputError.
        """
        if width < 40:
            raise InputError(f"width must be at least 40: got {width!r}")
        return table(
            [
                Row(place.index, place.score, place.truncated, self._text(texts, place.index))
                for place in self._places
            ],
            width=width,
        )

    @staticmethod
    def _text(texts: Sequence[str] | None, index: int) -> str | None:
        if texts is None:
            return None
        if isinstance(texts, str) or index >= len(texts):
            raise InputError(
                f"texts must be those that were ranked, and one of them was texts[{index}]: "
                f"got {type(texts).__name__} of length {len(texts)}"
            )
        text = texts[index]
        if not isinstance(text, str):
            raise InputError(f"texts[{index}] must be a str: got {type(text).__name__}")
        return text

    def __str__(self) -> str:
        return self.show()

    def _repr_html_(self) -> str:
        return self.show().html

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # noqa: ARG002  # IPython's signature
        printer.text(self.show())
