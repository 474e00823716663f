"""How a ranking looks: aligned text for terminals, HTML for notebooks."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from ..clean import one_line

BAR = 10
"""Character cells from the lowest score to the highest."""

_EXCERPT = 400
"""Cells of a text that the HTML table holds."""


class Table(str):
    """A string, so that it prints and writes; notebooks show `html`, a prompt the table itself.

    Source: IPython's display protocol, `_repr_html_`.
    """

    __slots__ = ("html",)

    html: str

    def __new__(cls, text: str, html: str) -> Self:
        """*text* as it prints, *html* as a notebook shows it."""
        self = super().__new__(cls, text)
        self.html = html
        return self

    def __reduce__(self) -> tuple[type[Table], tuple[str, str]]:
        return type(self), (str(self), self.html)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return self.html


@dataclass(frozen=True, slots=True)
class Row:
    """One document of a ranking, as it is drawn; `text` is None where no texts were given.

    mark: what its score leaves out, such as "cut", or whose it is, such as "exit 3"; else "".
    """

    index: int
    score: float
    mark: str
    text: str | None


def table(rows: Sequence[Row], *, width: int) -> Table:
    """Rank, score, a bar from lowest to highest score, index, text: in *width* cells, and HTML."""
    shares = _shares([row.score for row in rows])
    return Table(_plain(rows, shares, width), _html(rows, shares))


def note(sentence: str) -> Table:
    """A sentence in a table's place."""
    return Table(sentence, f"<p>{html.escape(sentence)}</p>")


def number(score: float) -> str:
    """Four decimals; a score too wide for them has four digits and a power of ten."""
    return f"{score:.4f}" if abs(score) < 1e5 else f"{score:.4g}"


def _plain(rows: Sequence[Row], shares: Sequence[float], width: int) -> str:
    scores = _column([number(row.score) for row in rows], least=8)
    indices = _column([f"[{row.index}]" for row in rows])
    marks = _column([f" …{row.mark}" if row.mark else "" for row in rows])
    lines = []
    for rank, (row, share) in enumerate(zip(rows, shares, strict=True), 1):
        bar = ("█" * round(share * BAR)).ljust(BAR, "·")
        head = f"{rank:>3}  {scores[rank - 1]}  {bar}  {indices[rank - 1]}{marks[rank - 1]}  "
        text = "" if row.text is None else one_line(row.text, max(width - len(head), 1))
        lines.append((head + text).rstrip())
    return "\n".join(lines)


def _column(values: Sequence[str], *, least: int = 0) -> list[str]:
    width = max(map(len, values), default=0)
    return [value.rjust(max(width, least)) for value in values]


def _html(rows: Sequence[Row], shares: Sequence[float]) -> str:
    marked = any(row.mark for row in rows)
    with_text = any(row.text is not None for row in rows)
    names = ["rank", "index", "score", "", *["mark"] * marked, *["text"] * with_text]
    head = "".join(f"<th>{name}</th>" for name in names)
    lines = []
    for rank, (row, share) in enumerate(zip(rows, shares, strict=True), 1):
        bar = f'<div style="background:#4c78a8;height:.8em;width:{share * 8:.2f}em"></div>'
        values = [str(rank), str(row.index), number(row.score), bar]
        values += [row.mark] * marked
        body = "".join(f"<td>{value}</td>" for value in values)
        if with_text:
            text = html.escape(one_line(row.text or "", _EXCERPT))
            body += f'<td dir="auto" style="text-align:left;white-space:normal">{text}</td>'
        lines.append(f"<tr>{body}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _shares(scores: Sequence[float]) -> list[float]:
    """Where each score stands between the lowest, 0, and the highest, 1; alike they are all 1."""
    finite = [score for score in scores if math.isfinite(score)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)

    def share(score: float) -> float:
        if math.isnan(score) or score < low:
            return 0.0
        # halves, because the span of the widest floats is itself infinite
        span = high / 2 - low / 2
        return min((score / 2 - low / 2) / span, 1.0) if span and score < high else 1.0

    return [share(score) for score in scores]
