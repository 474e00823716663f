"""Rankings: indices and scores, best first, and how they are shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .table import Row, Table, table

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class RankedDocument:
    """A document's `index` in what was given, its `score`, and whether it was cut to fit.

    span: the characters of the document that the score is of, (start, end); None: all of it.
    """

    index: int
    score: float
    truncated: bool = False
    span: tuple[int, int] | None = None


class Ranking(Sequence[RankedDocument]):
    """An immutable ranking, best first; equal ones keep the order given."""

    __slots__ = ("_documents",)

    def __init__(self, documents: Sequence[RankedDocument]) -> None:
        self._documents = tuple(documents)

    def __len__(self) -> int:
        return len(self._documents)

    @overload
    def __getitem__(self, key: int) -> RankedDocument: ...
    @overload
    def __getitem__(self, key: slice) -> Ranking: ...
    def __getitem__(self, key: int | slice) -> RankedDocument | Ranking:
        return Ranking(self._documents[key]) if isinstance(key, slice) else self._documents[key]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ranking) and self._documents == other._documents

    def __hash__(self) -> int:
        return hash(self._documents)

    def __repr__(self) -> str:
        return f"Ranking({list(self._documents)!r})"

    def select(self, items: Sequence[Item]) -> list[Item]:
        """The *items* this ranking speaks of, in its order: texts, rows, documents, anything."""
        return [items[document.index] for document in self._documents]

    def top(self, n: int | None = None, *, score_threshold: float | None = None) -> Ranking:
        """The best *n* (None: all) of those at or above *score_threshold* (None: no bound)."""
        scores = [document.score for document in self._documents]
        return Ranking([self._documents[at] for at in kept(scores, n, score_threshold)])

    def show(self, texts: Sequence[str] | None = None, *, width: int = 100) -> Table:
        """A table of rank, score, a bar from lowest to highest score, index, and text if given.

        It is a string of lines of at most *width* terminal cells (a cut text ends in "…"), and
        shows as HTML in notebooks. *texts* are those that were ranked. Raises InputError.
        """
        if width < 40:
            raise InputError(f"width must be at least 40: got {width!r}")
        return table(
            [
                Row(it.index, it.score, it.truncated, self._text(texts, it.index))
                for it in self._documents
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


def kept(scores: Sequence[float], top_n: int | None, score_threshold: float | None) -> list[int]:
    """Which of *scores*, best first, a selection keeps: the bound first (inclusive), then the cut.

    The bound is compared with the Python floats that are handed out.
    """
    found: Sequence[int] = range(len(scores))
    if score_threshold is not None:
        bound = float(score_threshold)
        found = [at for at in found if scores[at] >= bound]
    return list(found[:top_n])


def ranked(
    scores: NDArray[np.float32],
    keys: NDArray[np.float32],
    truncated: NDArray[np.bool_],
    spans: NDArray[np.int64] | None = None,
    *,
    top_n: int | None = None,
    score_threshold: float | None = None,
) -> Ranking:
    """The ranking of rows by *keys*, higher first, ties by index; *scores* are what it shows.

    All of shape (documents,), but *spans* of shape (documents, 2).
    """
    order = np.argsort(-keys, kind="stable")
    shown = scores[order].tolist()
    indices, cut = order.tolist(), truncated[order].tolist()
    return Ranking(
        [
            RankedDocument(
                indices[at],
                shown[at],
                cut[at],
                None if spans is None else (int(spans[indices[at], 0]), int(spans[indices[at], 1])),
            )
            for at in kept(shown, top_n, score_threshold)
        ]
    )
