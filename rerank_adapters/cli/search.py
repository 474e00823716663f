"""`search` and `rerank`: a question and text in, a ranking out."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from ..clean import one_line
from ..errors import InputError
from ..protocols import Ranker
from ..ranking import Ranking
from .console import Cell, emit, note, panel, progress, say, table
from .corpus import Bm25
from .reading import Excerpt, excerpts

SNIPPET = 160
"""Terminal cells of a passage in the table."""


@dataclass(frozen=True, slots=True)
class Hit:
    """One passage, with its rank and score before and after; bm25_rank is None without a match.

    span: the characters of `text` that the score is of, with windows.
    """

    rank: int
    score: float
    bm25_rank: int | None
    bm25_score: float
    source: str
    text: str
    truncated: bool
    span: tuple[int, int] | None = None


def search(
    query: str,
    paths: Iterable[Path],
    *,
    ranker: Ranker,
    candidates: int,
    top_n: int,
    as_json: bool,
) -> None:
    """BM25 over the files' passages, then the reranker over the best *candidates*."""
    with progress("reading and indexing"):
        found = excerpts(paths, skipped=note)
        matching = Bm25([excerpt.text for excerpt in found]).search(query, candidates)
        retrieved = _filled(matching, len(found), candidates)
    with progress("reranking"):
        start = time.perf_counter()
        texts = [found[index].text for index, _ in retrieved]
        (ranking,) = ranker.rerank_many([(query, texts)], top_n=top_n)
        milliseconds = (time.perf_counter() - start) * 1e3
    hits = _hits(found, retrieved, ranking)
    if as_json:
        report = {"query": query, "passages": len(found), "candidates": len(retrieved)}
        report |= {"milliseconds": round(milliseconds, 1), "results": [asdict(hit) for hit in hits]}
        emit(report)
        return
    _show(hits)
    say(
        f"{len(found)} passages, {len(retrieved)} candidates ({len(matching)} by BM25), "
        f"reranked in {milliseconds:.0f} ms"
    )


def _filled(
    matching: list[tuple[int, float]], passages: int, candidates: int
) -> list[tuple[int, float]]:
    """BM25's candidates, then passages that share no word, in order, while there is room."""
    taken = {index for index, _ in matching}
    rest = [(index, 0.0) for index in range(passages) if index not in taken]
    return (matching + rest)[:candidates]


def _hits(
    found: Sequence[Excerpt], retrieved: Sequence[tuple[int, float]], ranking: Ranking
) -> list[Hit]:
    hits = []
    for rank, document in enumerate(ranking, 1):
        index, bm25_score = retrieved[document.index]
        before = document.index + 1 if bm25_score > 0 else None
        source, text = found[index].source, found[index].text
        cut, span = document.truncated, document.span
        hits.append(Hit(rank, document.score, before, bm25_score, source, text, cut, span))
    return hits


def _show(hits: Sequence[Hit]) -> None:
    rows: list[list[Cell]] = []
    for hit in hits:
        passage = Text(one_line(hit.source), style="cyan").append(
            "\n" + one_line(hit.text, SNIPPET), style="bold" if hit.rank == 1 else "default"
        )
        mark = "▶" if hit.rank == 1 else " "
        rows.append(
            [f"{mark}{hit.rank}", moved(hit.bm25_rank, hit.rank), f"{hit.score:.3f}", passage]
        )
    table(["rank", "was", "score", "passage"], rows)
    best = hits[0]
    panel(marked(best.text, best.span), f"best passage: {best.source}")


def marked(text: str, span: tuple[int, int] | None) -> str:
    """*text* with » and « around the characters in *span*, where these are not all of it."""
    start, end = span or (0, len(text))
    if not text[:start].strip() and not text[end:].strip():
        return text
    return f"{text[:start]}»{text[start:end]}«{text[end:]}"


def moved(before: int | None, after: int) -> Text:
    """The old rank and how far it moved; "new" where keywords had not found it."""
    if before is None:
        return Text("new", style="green")
    if before == after:
        return Text(f"{before}")
    colour, arrow = ("green", "▲") if after < before else ("red", "▼")
    return Text(f"{before} ").append(f"{arrow}{abs(before - after)}", style=colour)


def rerank(
    query: str,
    lines: Iterable[bytes],
    *,
    ranker: Ranker,
    top_n: int | None,
    score_threshold: float | None,
    text_field: str,
    as_json: bool,
) -> None:
    """Ranks lines, or JSON objects by their *text_field*; all fields come back, with the score."""
    rows = list(_rows(lines, text_field))
    texts = [row[text_field] for row in rows]
    (ranking,) = ranker.rerank_many([(query, texts)], top_n=top_n, score_threshold=score_threshold)
    if not as_json and sys.stdout.isatty():
        say(ranking.show(texts, width=max(Console().width, 40)))
        return
    for document in ranking:
        emit(
            rows[document.index]
            | {
                "index": document.index,
                "relevance_score": document.score,
                "truncated": document.truncated,
            }
        )


def _rows(lines: Iterable[bytes], text_field: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise InputError(f"line {number} must be UTF-8 text: {error}") from error
        if text.strip():
            yield _row(text, number, text_field)


def _row(line: str, number: int, text_field: str) -> dict[str, Any]:
    if not line.lstrip().startswith("{"):
        return {text_field: line}
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"line {number} must be text or a JSON object: got {line[:60]!r}"
        ) from error
    if not isinstance(value.get(text_field), str):
        raise InputError(
            f"line {number} must have a text under {text_field!r} (--text-field): got {line[:60]!r}"
        )
    return dict(value)
