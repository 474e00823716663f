"""The example collection, and BM25 over texts by bm25s."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bm25s

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


def passages(folder: Path) -> Iterator[Passage]:
    """The passages of `corpus.jsonl` in *folder*."""
    with (folder / "corpus.jsonl").open(encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            yield Passage(row["_id"], row["title"], row["text"])


class Bm25:
    """BM25 (Robertson & Zaragoza, 2009; bm25s' Lucene form, k1 1.5, b 0.75, English stop words)."""

    def __init__(self, texts: Iterable[str]) -> None:
        """*texts* are read once, one at a time; the index keeps their words' numbers, no text."""
        tokens = self._tokens(texts)
        self._count = len(tokens.ids) if tokens.vocab else 0  # bm25s cannot index without a word
        self._index = bm25s.BM25()
        if self._count:
            self._index.index(tokens, show_progress=False)

    def search(self, query: str, count: int) -> list[tuple[int, float]]:
        """The best *count* (index, score), best first; texts that share no word are left out."""
        if not self._count:
            return []
        found, scores = self._index.retrieve(
            self._tokens([query]), k=min(count, self._count), show_progress=False
        )
        hits = zip(found[0].tolist(), scores[0].tolist(), strict=True)
        return [(int(index), float(score)) for index, score in hits if score > 0]

    @staticmethod
    def _tokens(texts: Iterable[str]) -> Any:
        return bm25s.tokenize(texts, stopwords="en", show_progress=False)
