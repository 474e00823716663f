"""How the commands speak: answers on standard output, all else on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from ..ranking.table import one_line


def emit(value: Any) -> None:
    """One line of JSON. Where the terminal or pipe is not UTF-8, other letters are escaped."""
    utf8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    line = json.dumps(value, ensure_ascii=not utf8, allow_nan=False)
    # half a surrogate, as in a file name that is no UTF-8, can be told but not encoded
    print(line.encode("utf-8", "backslashreplace").decode())  # noqa: T201  # the answer itself


def say(line: str = "", *, style: str | None = None) -> None:
    """A line for people; brackets in it are brackets, not rich's markup."""
    Console().print(line, style=style, markup=False, highlight=False, soft_wrap=True)


def note(line: str) -> None:
    """A remark beside the answer, on standard error."""
    print(f"rerank-adapters: {one_line(line)}", file=sys.stderr)  # noqa: T201  # not the answer


def table(columns: Sequence[str], rows: Sequence[Sequence[str | Text]]) -> None:
    """An aligned table; cells are text, never markup, and numbers stand to the right."""
    shown = Table(box=None, pad_edge=False)
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(_numeric(row[index]) for row in rows)
        shown.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    Console().print(shown)


def _numeric(cell: str | Text) -> bool:
    return str(cell)[:1] in set("0123456789+-–.")


@contextmanager
def progress(title: str, total: int | None = None) -> Iterator[Callable[[], None]]:
    """A bar on standard error while inside, on terminals alone; the value advances it by one."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total)
        yield lambda: bar.advance(task)
