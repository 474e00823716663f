"""The example collection, and BM25 over texts by bm25s."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bm25s
import Stemmer

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
    """BM25 (Robertson & Zaragoza, 2009; bm25s' Lucene form, k1 1.5, b 0.75) over texts' words.

    A word is a run of letters, digits and their marks, in lower case, less English stop words and
    's, stemmed (Snowball's English). In scripts without blanks (Chinese, Japanese, Thai, Lao,
    Burmese, Khmer) and in Korean every two neighbouring characters are one.
    """

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
        return bm25s.tokenize(
            map(words, texts),
            token_pattern=r"\S+",  # noqa: S106 (no password)
            stopwords="en",
            stemmer=Stemmer.Stemmer("english"),
            show_progress=False,
        )


def words(text: str) -> str:
    """The words of *text*, as BM25 takes them, with a blank between two; not yet stemmed."""
    return _NO_BLANKS.sub(_pairs, _POSSESSIVE.sub(" ", text).translate(_LETTERS))


def _pairs(run: re.Match[str]) -> str:
    letters = run[0]
    pairs = [letters[at : at + 2] for at in range(len(letters) - 1)] or [letters]
    return f" {' '.join(pairs)} "


class _Letters(dict[int, str]):
    """For `str.translate`: letters, digits and marks as they are, all else a blank."""

    def __missing__(self, code: int) -> str:
        letter = chr(code)
        self[code] = letter if unicodedata.category(letter)[0] in "LNM" else " "
        return self[code]


_LETTERS = _Letters()
_POSSESSIVE = re.compile(r"['\u2019]s\b")
_NO_BLANKS = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]+"
)
"""Thai, Lao, Burmese, Khmer, kana, Han and Hangul."""
