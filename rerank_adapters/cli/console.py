"""How the commands speak: answers on standard output, all else on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from ..clean import in_json, lines, one_line

Cell = str | list[str] | Text
"""One line, several, or lines with styles."""


def emit(value: Any) -> None:
    """One line of JSON. Letters that a terminal might obey, or that it lacks, are escaped."""
    utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    line = json.dumps(value, ensure_ascii=not utf8, allow_nan=False)
    print(in_json(line))  # noqa: T201  # the answer itself


def say(line: str = "", *, style: str | None = None) -> None:
    """A line for people, or several; brackets in it are brackets, not rich's markup."""
    Console().print(lines(line), style=style, markup=False, highlight=False, soft_wrap=True)


def note(line: str) -> None:
    """A remark beside the answer, on standard error."""
    print(f"rerank-adapters: {one_line(line)}", file=sys.stderr)  # noqa: T201  # not the answer


def table(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    """An aligned table; cells are text, never markup nor escapes, numbers stand to the right."""
    shown = Table(box=None, pad_edge=False)
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(_numeric(row[index]) for row in rows)
        shown.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        shown.add_row(*map(_cell, row))
    Console().print(shown)


def panel(text: str, title: str) -> None:
    """A text in a frame, line by line as it is."""
    shown = lines("\n".join(text.splitlines()))
    Console().print(Panel(Text(shown), title=Text(one_line(title)), title_align="left"))


def _cell(cell: Cell) -> Text:
    """*cell* cleaned: a str is one line, a list several; a Text keeps its lines and styles."""
    if isinstance(cell, str):
        return Text(one_line(cell))
    if isinstance(cell, list):
        return Text("\n".join(map(one_line, cell)))
    return Text(lines(cell.plain), style=cell.style, spans=cell.spans)


def _numeric(cell: Cell) -> bool:
    return str(cell)[:1] in set("0123456789+-–.")


@contextmanager
def progress(title: str, total: int | None = None) -> Iterator[Callable[[], None]]:
    """A bar on standard error while inside, on terminals alone; the value advances it by one."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total)
        yield lambda: bar.advance(task)
