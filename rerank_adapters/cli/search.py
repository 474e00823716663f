"""`search` and `rerank`: a question and text in, a ranking out."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..clean import one_line
from ..protocols import RerankRequest
from ..ranking import Ranking
from ..reranker import Reranker
from .console import (
    Cell,
    counted,
    draw,
    drawn_table,
    emit,
    lines_of,
    note,
    panel,
    progress,
    room,
    say,
)
from .corpus import Bm25
from .lines import Form, Row, rows
from .reading import Excerpt, excerpts

SNIPPET = 160
"""Terminal cells of a passage in the table."""

FRAME = 6
"""Lines of the terminal that the best passage, its frame and the last line take at least."""

UNMATCHED = 500
"""Passages that are ranked where none shares a word with the query: a few seconds' worth."""


@dataclass(frozen=True, slots=True)
class Hit:
    """One passage, with its rank and score before and after; bm25_rank is None without a match.

    stage: the phase that left it behind, see RankedDocument.
    span: the characters of `text` that the score is of, with windows.
    """

    rank: int
    score: float
    bm25_rank: int | None
    bm25_score: float
    file: str
    source: str
    text: str
    truncated: bool
    stage: int | None = None
    span: tuple[int, int] | None = None


def search(
    query: str,
    paths: Iterable[Path],
    *,
    ranker: Reranker,
    candidates: int,
    top_n: int,
    score_threshold: float | None = None,
    as_json: bool,
) -> None:
    """BM25 over the files' passages, then the reranker over the best *candidates*."""
    with progress("reading files") as advance:
        found = excerpts(paths, skipped=note, advance=advance)
    with progress("indexing"):
        matching = Bm25([excerpt.text for excerpt in found]).search(query, candidates)
        retrieved = _filled(matching, len(found), candidates)
    if not matching:
        share = "all" if len(retrieved) == len(found) else f"{len(retrieved)} of"
        note(f"no passage shares a word with the query: {share} {len(found)} passages are ranked")
    with progress("reranking", len(retrieved)) as advance:
        start = time.perf_counter()
        texts = [found[index].text for index, _ in retrieved]
        (ranking,) = ranker.rerank_many(
            [RerankRequest(query, texts, retrieval_scores=[score for _, score in retrieved])],
            top_n=top_n,
            score_threshold=score_threshold,
            on_progress=advance,
        )
        milliseconds = (time.perf_counter() - start) * 1e3
    hits = _hits(found, retrieved, ranking)
    if as_json:
        sizes = {"query": query, "passages": len(found), "candidates": len(retrieved)}
        emit({**sizes, "milliseconds": round(milliseconds, 1), **_answer(ranking, hits)})
        return
    if ranking.unanswered:
        say(str(ranking.below))
    show(hits)
    say(
        f"{counted(len(found), 'passage')}, {counted(len(retrieved), 'candidate')} "
        f"({len(matching)} by BM25), "
        f"reranked in {milliseconds:.0f} ms"
    )


def _answer(ranking: Ranking, hits: Sequence[Hit]) -> dict[str, Any]:
    below = None if ranking.below is None else ranking.below.to_dict()
    return {
        "answered": not ranking.unanswered,
        "below": below,
        "dropped": ranking.dropped,
        "results": [asdict(hit) for hit in hits],
    }


def _filled(
    matching: list[tuple[int, float]], passages: int, candidates: int
) -> list[tuple[int, float]]:
    """BM25's candidates, then passages that share no word, spread evenly, while there is room.

    Without a match there is room for `UNMATCHED`, so that a small folder is ranked whole.
    """
    taken = {index for index, _ in matching}
    rest = [index for index in range(passages) if index not in taken]
    room = max(candidates - len(matching), 0) if matching else max(candidates, UNMATCHED)
    room = min(room, len(rest))
    return matching + [(rest[at * len(rest) // room], 0.0) for at in range(room)]


def _hits(
    found: Sequence[Excerpt], retrieved: Sequence[tuple[int, float]], ranking: Ranking
) -> list[Hit]:
    hits = []
    for rank, document in enumerate(ranking, 1):
        index, bm25_score = retrieved[document.index]
        before = document.index + 1 if bm25_score > 0 else None
        it = found[index]
        hits.append(
            Hit(
                rank,
                document.score,
                before,
                bm25_score,
                it.file,
                it.source,
                it.text,
                document.truncated,
                document.stage,
                document.span,
            )
        )
    return hits


def show(hits: Sequence[Hit]) -> None:
    """A table, passages of one file together, and the best passage, within the terminal's height.

    Passages are cut shorter, then left out with a word, rather than scrolled away; a pipe gets all.
    """
    if not hits:
        return
    order = [hit.file for hit in hits]
    grouped = sorted(hits, key=lambda hit: order.index(hit.file))
    height = room()
    drawn = _drawn(grouped, SNIPPET)
    for snippet, count in ((SNIPPET // 2, len(hits)), *((40, n) for n in range(len(hits), 0, -1))):
        if height is None or lines_of(drawn) + FRAME <= height:
            break
        drawn = _drawn(grouped[:count], snippet)
    draw(drawn)
    left = len(hits) - drawn.row_count
    if left:
        say(f"{left} more: --top-n fewer, --json or a pipe show all")
    best = hits[0]
    rest = None if height is None else max(height - lines_of(drawn) - bool(left) - 3, 1)
    panel(marked(best.text, best.span), f"best passage: {best.source}", most=rest)


def _drawn(hits: Sequence[Hit], snippet: int) -> Table:
    rows: list[list[Cell]] = []
    file = None
    for hit in hits:
        where = hit.source if hit.file != file else "  " + hit.source.removeprefix(hit.file)
        file = hit.file
        passage = Text(one_line(where), style="cyan").append(
            "\n" + one_line(hit.text, snippet), style="bold" if hit.rank == 1 else "default"
        )
        mark = "▶" if hit.rank == 1 else " "
        rows.append(
            [f"{mark}{hit.rank}", moved(hit.bm25_rank, hit.rank), f"{hit.score:.3f}", passage]
        )
    return drawn_table(["rank", "was", "score", "passage"], rows)


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
    data: bytes,
    *,
    ranker: Reranker,
    top_n: int | None,
    score_threshold: float | None,
    text_field: str,
    form: Form = "auto",
    as_json: bool,
) -> None:
    """Ranks the `rows` in *data* by their *text_field*; all fields come back, with the score."""
    read = rows(data, text_field, form)
    texts = [row[text_field] for row in read]
    with progress("reranking", len(texts)) as advance:
        request = RerankRequest(query, texts, ids=[_id(row) for row in read])
        (ranking,) = ranker.rerank_many(
            [request], top_n=top_n, score_threshold=score_threshold, on_progress=advance
        )
    if not as_json and sys.stdout.isatty():
        say(ranking.show(texts, width=max(Console().width, 40)))
        return
    if ranking.unanswered:
        note(str(ranking.below))
    for document in ranking:
        emit(
            read[document.index]
            | {
                "index": document.index,
                "relevance_score": document.score,
                "truncated": document.truncated,
            }
        )


def _id(row: Row) -> str | None:
    """The id of a row, by which its tokens may be stored; None where it has none."""
    found = row.get("_id", row.get("id"))
    return None if found is None else str(found)
