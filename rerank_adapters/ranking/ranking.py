"""Rankings: indices and scores, best first, and how they are shown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from numbers import Integral, Real
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..hints import DOCUMENT_NAMES, RANKING_NAMES, method_error
from .table import Row, Table, note, number, table

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class RankedDocument:
    """A document's `index` in what was given, its `score`, and whether it was cut to fit.

    span: the characters of the document that the score is of, (start, end); None: all of it.
    exit: how many layers were run where scoring ended early; None: all of them. The score is then
    the exit head's, and meets no threshold.
    blank: it had no text, so the model scored nothing, and the score meets no threshold.
    stage: the phase that left it behind, 0 for the first stage; None: the last one scored it. The
    score is that phase's and meets no threshold, unless it was rescaled to the last one's.
    Unpacks as (index, score): `for index, score in ranking`.

    >>> index, score = RankedDocument(2, 0.9)
    >>> index, score
    (2, 0.9)
    """

    index: int
    score: float
    truncated: bool = False
    span: tuple[int, int] | None = None
    exit: int | None = None
    blank: bool = False
    stage: int | None = None
    rescaled: bool = False

    @property
    def bounded(self) -> bool:
        """Whether the score is one that a score_threshold can be held against."""
        last = self.exit is None and (self.stage is None or self.rescaled)
        return last and not self.blank

    @property
    def mark(self) -> str:
        """In a word, what the score leaves out or whose it is; "": the model's, of all."""
        words = ["cut"] * self.truncated + ["blank"] * self.blank
        words += [f"exit {self.exit}"] * (self.exit is not None)
        words += [f"stage {self.stage}"] * (self.stage is not None)
        return ", ".join(words)

    def __iter__(self) -> Iterator[int | float]:
        return iter((self.index, self.score))

    def __getattr__(self, name: str) -> Any:
        raise method_error(self, name, DOCUMENT_NAMES)

    def __getitem__(self, key: object) -> Any:
        raise TypeError(f"a RankedDocument has attributes: write .{key} for [{key!r}]")


@dataclass(frozen=True, slots=True)
class Below:
    """What a score_threshold left out of a ranking: how many documents, and the best of them."""

    count: int
    best: float
    score_threshold: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        of = "the one document" if self.count == 1 else f"the best of {self.count} documents"
        return (
            f"nothing here answers that: {of} scores {number(self.best)}, below "
            f"score_threshold={self.score_threshold:g}"
        )


class Ranking(Sequence[RankedDocument]):
    """An immutable ranking, best first; equal ones keep the order given.

    below    what a score_threshold left out, None where it left out nothing
    dropped  how many documents rerank_count or an earlier stage left out

    Two are equal where their documents are.

    >>> ranking = Ranking([RankedDocument(1, 0.9), RankedDocument(0, 0.2)])
    >>> ranking.select(["bread", "towers"]), ranking.scores
    (['towers', 'bread'], [0.9, 0.2])
    """

    __slots__ = ("_documents", "below", "dropped")

    def __init__(
        self, documents: Sequence[RankedDocument], *, below: Below | None = None, dropped: int = 0
    ) -> None:
        self._documents = tuple(documents)
        self.below = below
        self.dropped = dropped

    def __len__(self) -> int:
        return len(self._documents)

    @overload
    def __getitem__(self, key: int) -> RankedDocument: ...
    @overload
    def __getitem__(self, key: slice) -> Ranking: ...
    def __getitem__(self, key: int | slice) -> RankedDocument | Ranking:
        return self._with(self._documents[key]) if isinstance(key, slice) else self._documents[key]

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
        """The best *n* (None: all) of those at or above *score_threshold* (None: no bound).

        >>> ranking = Ranking([RankedDocument(1, 0.9), RankedDocument(0, 0.2)])
        >>> ranking.top(score_threshold=0.5).indices
        [1]
        """
        check_selection(n, score_threshold)
        free = score_threshold is None
        documents = [it for it in self._documents if free or it.bounded]
        scores = [it.score for it in documents]
        below = left_below(scores, score_threshold) or self.below
        return self._with([documents[at] for at in kept(scores, n, score_threshold)], below)

    def _with(self, documents: Sequence[RankedDocument], below: Below | None = None) -> Ranking:
        return Ranking(documents, below=below or self.below, dropped=self.dropped)

    @property
    def unanswered(self) -> bool:
        """Whether documents were ranked and none of them met the score_threshold.

        >>> Ranking([RankedDocument(0, 0.2)]).top(score_threshold=0.5).unanswered
        True
        """
        return not self._documents and self.below is not None

    @property
    def indices(self) -> list[int]:
        """The index of each document, best first."""
        return [document.index for document in self._documents]

    @property
    def scores(self) -> list[float]:
        """The score of each document, best first."""
        return [document.score for document in self._documents]

    def scored(self, items: Sequence[Item]) -> list[tuple[Item, float]]:
        """(item, score) of the *items* this ranking speaks of, in its order.

        >>> Ranking([RankedDocument(1, 0.9), RankedDocument(0, 0.2)]).scored(["a", "b"])
        [('b', 0.9), ('a', 0.2)]
        """
        return [(items[document.index], document.score) for document in self._documents]

    def to_dicts(self, items: Sequence[Item] | None = None) -> list[dict[str, Any]]:
        """Plain dicts for JSON: index, score, truncated, the item, and what else is set.

        >>> Ranking([RankedDocument(1, 0.9)]).to_dicts(["a", "b"])
        [{'index': 1, 'score': 0.9, 'truncated': False, 'document': 'b'}]
        """
        rows: list[dict[str, Any]] = []
        for it in self._documents:
            row: dict[str, Any] = {"index": it.index, "score": it.score, "truncated": it.truncated}
            if it.span is not None:
                row["span"] = list(it.span)
            if it.exit is not None:
                row["exit"] = it.exit
            if it.blank:
                row["blank"] = True
            if it.stage is not None:
                row["stage"] = it.stage
            if it.rescaled:
                row["rescaled"] = True
            rows.append(row if items is None else {**row, "document": items[it.index]})
        return rows

    def __getattr__(self, name: str) -> Any:
        raise method_error(self, name, RANKING_NAMES)

    def show(self, texts: Sequence[str] | None = None, *, width: int = 100) -> Table:
        """A table of rank, score, a bar from lowest to highest score, index, and text if given.

        Of a ranking that a score_threshold left empty it is the sentence that says so. It is a
        string of lines of at most *width* terminal cells (a cut text ends in "…"), and shows as
        HTML in notebooks. *texts* are those that were ranked. Raises InputError.
        """
        if width < 40:
            raise InputError(f"width must be at least 40: got {width!r}")
        if self.unanswered:
            return note(str(self.below))
        return table(
            [
                Row(it.index, it.score, it.mark, self._text(texts, it.index))
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
    exits: NDArray[np.int64] | None = None,
    *,
    indices: Sequence[int] | None = None,
    blank: Sequence[int] = (),
    top_n: int | None = None,
    score_threshold: float | None = None,
) -> Ranking:
    """The ranking of rows by *keys*, higher first, ties by index; *scores* are what it shows.

    All of shape (rows,), but *spans* of shape (rows, 2). *indices* are the documents' that rows
    are of, ascending (None: the rows' own); those of *blank* documents stand last, with 0.0 or the
    lowest score where that is lower, and meet no *score_threshold*. Neither do rows whose scoring
    ended early, after *exits* layers (0: it did not): they stand behind those that went further.
    """
    if exits is not None and exits.any():
        order = np.lexsort((-keys, np.where(exits > 0, -exits, -exits.max() - 1)))
        whole = order[: int((exits == 0).sum())]
    else:
        order = whole = np.argsort(-keys, kind="stable")
        exits = None
    bounded = whole if score_threshold is not None else order
    shown = scores[bounded].tolist()
    rows, cut = order.tolist(), truncated[order].tolist()
    documents = [
        RankedDocument(
            rows[at] if indices is None else indices[rows[at]],
            shown[at],
            cut[at],
            None if spans is None else (int(spans[rows[at], 0]), int(spans[rows[at], 1])),
            None if exits is None else int(exits[rows[at]]) or None,
        )
        for at in kept(shown, top_n, score_threshold)
    ]
    if blank and score_threshold is None:
        documents += _blank_after(shown, blank)
    return Ranking(documents[:top_n], below=left_below(shown, score_threshold))


def left_below(scores: Sequence[float], score_threshold: float | None) -> Below | None:
    """What of *scores* is below *score_threshold*, None where nothing is."""
    if score_threshold is None:
        return None
    bound = float(score_threshold)
    left = [score for score in scores if score < bound]
    return Below(len(left), max(left), bound) if left else None


def with_blank(ranking: Ranking, blank: Sequence[int]) -> Ranking:
    """*ranking* with *blank* documents last, with 0.0 or the lowest score where that is lower."""
    if not blank:
        return ranking
    return Ranking([*ranking, *_blank_after(ranking.scores, blank)], dropped=ranking.dropped)


def with_dropped(ranking: Ranking, dropped: int) -> Ranking:
    """*ranking*, of which so many documents were left out before it."""
    return Ranking(ranking, below=ranking.below, dropped=dropped) if dropped else ranking


def _blank_after(scores: Sequence[float], blank: Sequence[int]) -> list[RankedDocument]:
    lowest = min([0.0, *scores])
    return [RankedDocument(index, lowest, blank=True) for index in blank]


def check_selection(top_n: int | None, score_threshold: float | None) -> None:
    """Raise InputError unless top_n is None or ≥ 1 and score_threshold is None or a real number."""
    whole = isinstance(top_n, Integral) and not isinstance(top_n, bool)
    if top_n is not None and (not whole or top_n < 1):
        raise InputError(f"top_n must be an int of at least 1, or None for all: got {top_n!r:.80}")
    if score_threshold is not None and not _is_number(score_threshold):
        raise InputError(f"score_threshold must be a number or None: got {score_threshold!r:.80}")


def _is_number(value: object) -> bool:
    """Whether *value* is real (NumPy's scalars too), not NaN and within what a float holds."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and not math.isnan(value)
    except OverflowError:
        return False
