"""Collections in BEIR layout, and BM25 over texts by bm25s."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bm25s

from ..errors import InputError

INSTALLED = Path(__file__).with_name("example")
CHECKOUT = Path(__file__).parents[2] / "notebooks" / "corpus"


@dataclass(frozen=True, slots=True)
class Passage:
    """One document of a collection."""

    id: str
    title: str
    text: str

    @property
    def full_text(self) -> str:
        """Title and text, as they are scored."""
        return f"{self.title} {self.text}".strip()


def example_folder() -> Path:
    """The example collection: beside the notebooks in a checkout, inside the package in a wheel."""
    return INSTALLED if INSTALLED.is_dir() else CHECKOUT


def json_lines(file: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file, one at a time. InputError names the file and line."""
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except ValueError as error:
                raise InputError(
                    f"{file}:{number} must be a JSON object: got {line.strip()[:60]!r}"
                ) from error
            if not isinstance(value, dict) or ("_id" not in value and "id" not in value):
                raise InputError(
                    f"{file}:{number} must be a JSON object with _id: got {line.strip()[:60]!r}"
                )
            yield value


def passages(folder: Path) -> Iterator[Passage]:
    """The passages of `corpus.jsonl` in *folder*."""
    for row in json_lines(folder / "corpus.jsonl"):
        name = str(row.get("_id", row.get("id")))
        yield Passage(name, str(row.get("title", "")), str(row.get("text", "")))


def queries(folder: Path) -> dict[str, str]:
    """Query texts by id, from `queries.jsonl` in *folder*."""
    rows = json_lines(folder / "queries.jsonl")
    return {str(row.get("_id", row.get("id"))): str(row["text"]) for row in rows}


class Bm25:
    """BM25 (Robertson & Zaragoza, 2009; bm25s' Lucene form, k1 1.5, b 0.75, English stop words)."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._index = bm25s.BM25()
        self._count = len(texts)
        self._index.index(self._tokens(texts), show_progress=False)

    def search(self, query: str, count: int) -> list[tuple[int, float]]:
        """The best *count* (index, score), best first; texts that share no word are left out."""
        found, scores = self._index.retrieve(
            self._tokens([query]), k=min(count, self._count), show_progress=False
        )
        places = zip(found[0].tolist(), scores[0].tolist(), strict=True)
        return [(int(index), float(score)) for index, score in places if score > 0]

    @staticmethod
    def _tokens(texts: Sequence[str]) -> Any:
        return bm25s.tokenize(list(texts), stopwords="en", show_progress=False)
