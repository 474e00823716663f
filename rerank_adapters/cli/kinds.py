"""A file's bytes to what it says, and on which line, page, cell or paragraph it says it."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import docx
from bs4.dammit import UnicodeDammit
from docx.table import Table
from langchain_text_splitters import Language
from pypdf import PdfReader

from ..errors import InputError

# It logs what it stumbles over beside raising it; without a handler that goes to the terminal.
logging.getLogger("pypdf").addHandler(logging.NullHandler())

CODE = {
    ".py": Language.PYTHON,
    ".js": Language.JS,
    ".jsx": Language.JS,
    ".ts": Language.TS,
    ".tsx": Language.TS,
    ".go": Language.GO,
    ".rs": Language.RUST,
    ".java": Language.JAVA,
    ".c": Language.C,
    ".h": Language.C,
    ".cc": Language.CPP,
    ".cpp": Language.CPP,
    ".hpp": Language.CPP,
    ".cs": Language.CSHARP,
    ".rb": Language.RUBY,
    ".php": Language.PHP,
    ".kt": Language.KOTLIN,
    ".scala": Language.SCALA,
    ".swift": Language.SWIFT,
    ".md": Language.MARKDOWN,
    ".markdown": Language.MARKDOWN,
    ".ipynb": Language.MARKDOWN,
    ".rst": Language.RST,
    ".tex": Language.LATEX,
}
PLAIN = (
    *(".txt", ".text", ".log", ".csv", ".tsv", ".json", ".jsonl", ".toml", ".yaml", ".yml"),
    *(".cfg", ".ini", ".sh", ".sql", ".xml", ".css", ".org", ".adoc", ".srt", ".vtt"),
)
HTML = (".html", ".htm", ".xhtml")
SUFFIXES = {*CODE, *PLAIN, *HTML, ".pdf", ".docx"}

INLINE = frozenset(
    (
        *("a", "abbr", "acronym", "b", "bdi", "bdo", "big", "cite", "code", "data", "del", "dfn"),
        *("em", "font", "i", "img", "ins", "kbd", "label", "mark", "nobr", "q", "rp", "rt"),
        *("ruby", "s", "samp", "small", "span", "strike", "strong", "sub", "sup", "time", "tt"),
        *("u", "var", "wbr"),
    )
)
"""Elements that run on within a line; every other begins and ends one."""

MUTE = frozenset(("script", "style", "template"))

LINE_END = re.compile(r"\r\n|\r|\n")
"""What an editor and `grep -n` take for the end of a line."""


class NoTextError(InputError):
    """A file that holds pictures of text, or nothing."""


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of text to be cut into passages.

    unit     what its places count, as it stands between a file's name and a number
    offsets  where in the text a new place begins, ascending from 0
    numbers  the number of each of these places
    """

    text: str
    unit: str
    offsets: list[int]
    numbers: list[int]

    @classmethod
    def of(cls, unit: str, numbered: Iterable[tuple[int, str]], between: str = "\n") -> Part:
        """(number, text) one after the other."""
        offsets, numbers, texts, at = [], [], [], 0
        for number, text in numbered:
            offsets.append(at)
            numbers.append(number)
            texts.append(text)
            at += len(text) + len(between)
        return cls(between.join(texts), unit, offsets, numbers)


def parts(file: Path, data: bytes) -> Iterator[Part]:
    """What *file*, whose content is *data*, says. InputError where it cannot be read."""
    suffix = file.suffix.lower()
    if suffix == ".pdf":
        pages = _pages(file, data)
        if not any(page.strip() for page in pages):
            raise NoTextError(f"PATH must hold text: got {str(file)!r}, which has none (scanned?)")
        yield from (Part(page, ", page ", [0], [at]) for at, page in enumerate(pages, 1))
    elif suffix == ".docx":
        yield Part.of(", paragraph ", _paragraphs(file, data))
    elif suffix == ".ipynb":
        yield from (Part(cell, ", cell ", [0], [at]) for at, cell in _cells(file, data))
    elif suffix in HTML:
        page = _Page()
        page.feed(UnicodeDammit(data, is_html=True).unicode_markup or "")
        page.close()
        yield page.part()
    else:
        yield Part.of(":", enumerate(LINE_END.split(text_of(file, data)), 1))


def text_of(file: Path, data: bytes) -> str:
    """UTF-8, or UTF-16 with its mark, or else the Windows letters of Western Europe."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", errors="replace")
    if b"\0" in data[:8192]:
        raise InputError(f"PATH must be text: got {str(file)!r}, which is binary")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")


class _Page(HTMLParser):
    """The text of a page: inline elements run on, blocks break, scripts and styles say nothing."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._mute = 0
        self._pieces: list[tuple[int, str]] = []
        self._blocks: list[list[tuple[int, str]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del attrs
        if tag in MUTE:
            self._mute += 1
        elif tag not in INLINE:
            self._break()

    def handle_endtag(self, tag: str) -> None:
        if tag in MUTE:
            self._mute = max(0, self._mute - 1)
        elif tag not in INLINE:
            self._break()

    def handle_data(self, data: str) -> None:
        if not self._mute:
            for line, text in enumerate(LINE_END.split(data), self.getpos()[0]):
                self._pieces.append((line, text.replace("\xad", "")))  # a hyphen that may be

    def part(self) -> Part:
        """All that was fed. A place begins with each line of the source."""
        self._break()
        texts, offsets, numbers, at = [], [], [], 0
        for block in self._blocks:
            for number, text in _lines(block):
                offsets.append(at)
                numbers.append(number)
                texts.append(text)
                at += len(text)
            texts[-1] = f"{texts[-1].rstrip()}\n"
            at = offsets[-1] + len(texts[-1])
        return Part("".join(texts), ":", offsets, numbers)

    def _break(self) -> None:
        if any(text.strip() for _, text in self._pieces):
            self._blocks.append(self._pieces)
        self._pieces = []


def _lines(block: list[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """(line of the source, its text with one blank between words), for each line that says some."""
    by_line: dict[int, list[str]] = {}
    for line, text in block:
        by_line.setdefault(line, []).append(text)
    for line, texts in by_line.items():
        if words := " ".join("".join(texts).split()):
            yield line, f"{words} "


def _pages(file: Path, data: bytes) -> list[str]:
    try:  # pypdf tries the empty password by itself
        return [page.extract_text() for page in PdfReader(io.BytesIO(data)).pages]
    except Exception as error:  # pypdf raises whatever a damaged file makes it stumble over
        raise InputError(f"PATH must be a readable PDF: got {str(file)!r} ({error})") from error


def _paragraphs(file: Path, data: bytes) -> list[tuple[int, str]]:
    """(number, text) of a Word document's paragraphs; a table's row is one."""
    try:
        texts: list[str] = []
        for block in docx.Document(io.BytesIO(data)).iter_inner_content():
            if isinstance(block, Table):
                texts += [" | ".join(cell.text for cell in row.cells) for row in block.rows]
            else:
                texts.append(block.text)
    except Exception as error:  # zip, XML and python-docx each raise their own
        raise InputError(f"PATH must be a readable .docx: got {str(file)!r} ({error})") from error
    return [(number, text) for number, text in enumerate(texts, 1) if text.strip()]


def _cells(file: Path, data: bytes) -> Iterator[tuple[int, str]]:
    """(number, source) of a notebook's cells."""
    try:
        cells: list[dict[str, Any]] = json.loads(text_of(file, data))["cells"]
        sources = ["".join(cell["source"]) for cell in cells]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"PATH must be a readable notebook: got {str(file)!r}") from error
    yield from enumerate(sources, 1)
