"""Files and folders to passages: text, Markdown, HTML, PDF, source code."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bs4 import BeautifulSoup
from bs4.element import NavigableString
from langchain_text_splitters import Language, RecursiveCharacterTextSplitter
from pypdf import PdfReader

from ..errors import InputError

CHARACTERS = 900
"""About 200 tokens: a passage is read whole by a 512-token model, with room for the query."""

CODE = {
    ".py": Language.PYTHON,
    ".js": Language.JS,
    ".ts": Language.TS,
    ".go": Language.GO,
    ".rs": Language.RUST,
    ".java": Language.JAVA,
    ".c": Language.C,
    ".h": Language.C,
    ".cpp": Language.CPP,
    ".cs": Language.CSHARP,
    ".rb": Language.RUBY,
    ".php": Language.PHP,
    ".kt": Language.KOTLIN,
    ".scala": Language.SCALA,
    ".swift": Language.SWIFT,
    ".md": Language.MARKDOWN,
    ".rst": Language.RST,
}
PLAIN = {
    ".txt",
    ".text",
    ".log",
    ".csv",
    ".json",
    ".jsonl",
    ".toml",
    ".yaml",
    ".yml",
    ".cfg",
    ".ini",
    ".sh",
}
SUFFIXES = {*CODE, *PLAIN, ".html", ".htm", ".pdf"}


@dataclass(frozen=True, slots=True)
class Excerpt:
    """A passage and where it stands: "file:line", or "file, page n"."""

    source: str
    text: str


def excerpts(
    paths: Iterable[Path], *, skipped: Callable[[str], None] = lambda _: None
) -> list[Excerpt]:
    """The passages of every readable file under *paths*, each file once, in order of name.

    A file named outright must be readable: InputError names it. In folders, hidden files and
    unknown kinds are passed over, and *skipped* is told of each file that cannot be read.
    """
    found: list[Excerpt] = []
    seen: set[Path] = set()
    for path in paths:
        for file in _files(path):
            if file.resolve() in seen:
                continue
            seen.add(file.resolve())
            try:
                found.extend(_split(file))
            except InputError as error:
                if file == path:
                    raise
                skipped(f"passed over: {error}")
    if not found:
        raise InputError(
            "PATH must hold text: found none; known kinds: " + " ".join(sorted(SUFFIXES))
        )
    return found


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
            if file.is_file() and not hidden and file.suffix.lower() in SUFFIXES:
                yield file
    elif path.exists():
        yield path
    else:
        raise InputError(f"PATH must be a file or a folder: got {str(path)!r}")


def _split(file: Path) -> Iterator[Excerpt]:
    suffix = file.suffix.lower()
    data = _bytes(file)
    if suffix == ".pdf":
        for number, page in enumerate(_pages(file, data), 1):
            for piece in _splitter(suffix).split_text(page):
                yield Excerpt(f"{file}, page {number}", piece)
        return
    html = suffix in (".html", ".htm")
    lines = _html_lines(data) if html else list(enumerate(_text(file, data).splitlines(), 1))
    text = "\n".join(line for _, line in lines)
    for document in _splitter(suffix).create_documents([text]):
        row = text.count("\n", 0, document.metadata["start_index"])
        yield Excerpt(f"{file}:{lines[row][0]}", document.page_content)


def _html_lines(data: bytes) -> list[tuple[int, str]]:
    """(line in the source, what it says) of a page; scripts and styles say nothing."""
    page = BeautifulSoup(data, "html.parser")
    lines = []
    for string in page.find_all(string=True):
        # scripts, styles, comments are kinds of their own
        if type(string) is NavigableString and string.strip():
            line = string.parent.sourceline if string.parent else None
            lines.append((line or 1, " ".join(string.split())))
    return lines


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"PATH must be readable: got {str(file)!r} ({error.strerror})") from error


def _text(file: Path, data: bytes) -> str:
    """UTF-8, or UTF-16 with its mark, or else the Windows letters of Western Europe."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", errors="replace")
    if b"\0" in data[:8192]:
        raise InputError(f"PATH must be text: got {str(file)!r}, which is binary")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")


def _pages(file: Path, data: bytes) -> list[str]:
    try:
        return [page.extract_text() for page in PdfReader(io.BytesIO(data)).pages]
    except Exception as error:  # pypdf raises whatever a damaged file makes it stumble over
        raise InputError(f"PATH must be a readable PDF: got {str(file)!r} ({error})") from error


def _splitter(suffix: str) -> RecursiveCharacterTextSplitter:
    options: dict[str, Any] = {
        "chunk_size": CHARACTERS,
        "chunk_overlap": 0,
        "add_start_index": True,
    }
    if suffix in CODE:
        return RecursiveCharacterTextSplitter.from_language(CODE[suffix], **options)
    return RecursiveCharacterTextSplitter(**options)
