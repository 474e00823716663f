"""Files and folders to passages: text, Markdown, HTML, PDF, Word, notebooks, source code."""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langchain_text_splitters import RecursiveCharacterTextSplitter

from ..errors import InputError
from .kinds import CODE, SUFFIXES, NoTextError, parts
from .walking import Left, files

CHARACTERS = 900
"""About 200 tokens: a passage is read whole by a 512-token model, with room for the query."""

STDIN = Path("-")


@dataclass(frozen=True, slots=True)
class Excerpt:
    """A passage, the file that it is of, and where it stands: "file:line", or "file, page n"."""

    file: str
    source: str
    text: str


def excerpts(
    paths: Iterable[Path],
    *,
    skipped: Callable[[str], None] = lambda _: None,
    advance: Callable[[], None] = lambda: None,
) -> list[Excerpt]:
    """The passages of every readable file under *paths*, each file once, in order of name.

    "-" is standard input. A file that is named alone must be readable: InputError names it. Of
    several, and in folders, *skipped* is told what is not read and why, by kind. *advance* is
    called for each file.
    """
    given, found, seen, left = list(paths), list[Excerpt](), set[Path](), Left()
    for path in given:
        for file in _files(path, left):
            if file.resolve() in seen:
                continue
            seen.add(file.resolve())
            advance()
            try:
                found.extend(_split(file))
            except InputError as error:
                if given == [file]:
                    raise
                _count(error, left)
    if not found:
        unread = f"; not read: {left}" if str(left) else ""
        raise InputError(
            f"PATH must hold text: found none{unread}; known kinds: {' '.join(sorted(SUFFIXES))}"
        )
    left.tell(skipped)
    return found


def _count(error: InputError, left: Left) -> None:
    if isinstance(error, NoTextError):
        left.count("without text (scanned?)")
    else:
        left.unreadable(str(error))


def _files(path: Path, left: Left) -> Iterator[Path]:
    if path.is_dir():
        yield from files(path, SUFFIXES, left)
    elif path.exists() or path == STDIN:
        yield path
    else:
        raise InputError(f"PATH must be a file or a folder: got {str(path)!r}")


def _split(file: Path) -> Iterator[Excerpt]:
    splitter = _splitter(file.suffix.lower())
    for part in parts(file, _bytes(file)):
        for document in splitter.create_documents([part.text]):
            at = bisect_right(part.offsets, document.metadata["start_index"]) - 1
            place = f"{file}{part.unit}{part.numbers[at]}"
            yield Excerpt(str(file), place, document.page_content)


def _bytes(file: Path) -> bytes:
    if file == STDIN:
        if sys.stdin is None:
            raise InputError("standard input must be open to be read as -: it is closed")
        return sys.stdin.buffer.read()
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"PATH must be readable: got {str(file)!r} ({error.strerror})") from error


def _splitter(suffix: str) -> RecursiveCharacterTextSplitter:
    options: dict[str, Any] = {
        "chunk_size": CHARACTERS,
        "chunk_overlap": 0,
        "add_start_index": True,
    }
    if suffix in CODE:
        return RecursiveCharacterTextSplitter.from_language(CODE[suffix], **options)
    return RecursiveCharacterTextSplitter(**options)
