"""How the commands speak: answers on standard output, all else on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.progress import MofNCompleteColumn, Progress
from rich.table import Table
from rich.text import Text

from ..clean import in_json, lines, one_line

Cell = str | list[str] | Text
"""One line, several, or lines with styles."""


def emit(value: Any) -> None:
    """One line of JSON, NaN and infinities null. Letters that a terminal might obey are escaped."""
    utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    try:
        line = json.dumps(value, ensure_ascii=not utf8, allow_nan=False)
    except ValueError:  # JSON has no NaN, and none of what Python's own writes for it
        value = json.loads(json.dumps(value), parse_constant=lambda _: None)
        line = json.dumps(value, ensure_ascii=not utf8, allow_nan=False)
    print(in_json(line))  # noqa: T201  # the answer itself


def say(line: str = "", *, style: str | None = None) -> None:
    """A line for people, or several; brackets in it are brackets, not rich's markup."""
    Console().print(lines(line), style=style, markup=False, highlight=False, soft_wrap=True)


def note(line: str) -> None:
    """A remark beside the answer, on standard error."""
    if sys.stderr is not None:
        print(f"rerank-adapters: {one_line(line)}", file=sys.stderr)  # noqa: T201  # not the answer


def counted(count: int, word: str) -> str:
    """*count* and *word*, in the plural where there is not one."""
    return f"{count} {word}{'' if count == 1 else 's'}"


def table(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    """An aligned table; cells are text, never markup nor escapes, numbers stand to the right."""
    draw(drawn_table(columns, rows))


def drawn_table(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Table:
    """`table`, to be drawn later."""
    shown = Table(box=None, pad_edge=False)
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(_numeric(row[index]) for row in rows)
        shown.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        shown.add_row(*map(_cell, row))
    return shown


def draw(shown: Table | Panel) -> None:
    """Print it on standard output."""
    Console().print(shown)


def lines_of(shown: Table | Panel) -> int:
    """How many lines it takes on this terminal."""
    console = Console()
    return len(console.render_lines(shown, console.options))


def room() -> int | None:
    """Lines of the terminal that the answer is shown on, less the prompt's; None: it is none."""
    console = Console()
    return console.height - 2 if console.is_terminal and sys.stdout.isatty() else None


def panel(text: str, title: str, *, most: int | None = None) -> None:
    """A text in a frame, line by line as it is, of at most *most* lines on the terminal."""
    shown = lines("\n".join(text.splitlines()))
    framed = Panel(Text(shown), title=Text(one_line(title)), title_align="left")
    while most is not None and lines_of(framed) > most + 2 and len(shown) > 1:
        shown = shown[: int(len(shown) * 0.9)].rstrip()
        framed = Panel(Text(f"{shown} …"), title=Text(one_line(title)), title_align="left")
    draw(framed)


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
def progress(title: str, total: int | None = None) -> Iterator[Callable[..., None]]:
    """A bar with counts and the time left, on a terminal's standard error alone, while inside.

    The value advances it, by one unless told otherwise, from any thread.
    """
    terminal = sys.stderr is not None and sys.stderr.isatty()  # whatever FORCE_COLOR says
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(
        *columns, console=Console(stderr=True), transient=True, disable=not terminal
    ) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count=1: bar.advance(task, count)
