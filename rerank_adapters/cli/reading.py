"""Files and folders to passages: text, Markdown, HTML, PDF, source code."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bs4 import BeautifulSoup
from langchain_text_splitters import Language, RecursiveCharacterTextSplitter
from pypdf import PdfReader
from pypdf.errors import PyPdfError

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
PLAIN = {".txt", ".text", ".log", ".csv", ".json", ".toml", ".yaml", ".yml", ".cfg", ".ini", ".sh"}
SUFFIXES = {*CODE, *PLAIN, ".html", ".htm", ".pdf"}


@dataclass(frozen=True, slots=True)
class Excerpt:
    """A passage and where it stands: "file:line", or "file, page n"."""

    place: str
    text: str


def excerpts(paths: Iterable[Path]) -> list[Excerpt]:
    """The passages of every readable file under *paths*, in order of name.

    A file named outright must be readable; in folders, hidden and unknown files are passed over.
    Raises InputError naming the path.
    """
    found = [excerpt for path in paths for file in _files(path) for excerpt in _split(file)]
    if not found:
        raise InputError(
            "PATH must hold text: found none; known kinds: " + " ".join(sorted(SUFFIXES))
        )
    return found


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    if not path.is_dir():
        raise InputError(f"PATH must be a file or a folder: got {str(path)!r}")
    for file in sorted(path.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
        if file.is_file() and not hidden and file.suffix.lower() in SUFFIXES:
            yield file


def _split(file: Path) -> Iterator[Excerpt]:
    suffix = file.suffix.lower()
    if suffix == ".pdf":
        for number, page in enumerate(_pages(file), 1):
            for piece in _splitter(suffix).split_text(page):
                yield Excerpt(f"{file}, page {number}", piece)
        return
    text = _text(file)
    if suffix in (".html", ".htm"):
        text = BeautifulSoup(text, "html.parser").get_text("\n", strip=True)
    for document in _splitter(suffix).create_documents([text]):
        line = text.count("\n", 0, document.metadata["start_index"]) + 1
        yield Excerpt(f"{file}:{line}", document.page_content)


def _text(file: Path) -> str:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InputError(f"PATH must be readable: got {str(file)!r} ({error.strerror})") from error
    return data.decode("utf-8", errors="replace")


def _pages(file: Path) -> list[str]:
    try:
        return [page.extract_text() for page in PdfReader(file).pages]
    except (PyPdfError, OSError, ValueError) as error:
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
