"""`search` and `rerank`: a question and text in, a ranking out."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ..errors import InputError
from ..reranker import Reranker
from ..values import Ranking
from .corpus import Bm25
from .reading import Excerpt, excerpts


@dataclass(frozen=True, slots=True)
class Hit:
    """One passage, with its rank and score before and after."""

    rank: int
    score: float
    bm25_rank: int
    bm25_score: float
    place: str
    text: str
    truncated: bool


def search(
    console: Console,
    query: str,
    paths: Iterable[Path],
    *,
    reranker: Reranker,
    candidates: int,
    top_n: int,
    as_json: bool,
) -> None:
    """BM25 over the files' passages, then the reranker over the best *candidates*."""
    with console.status("reading and indexing"):
        found = excerpts(paths)
        retrieved = Bm25([excerpt.text for excerpt in found]).search(query, candidates)
    start = time.perf_counter()
    ranking = reranker.rerank(query, [found[place].text for place, _ in retrieved], top_n=top_n)
    milliseconds = (time.perf_counter() - start) * 1e3
    hits = _hits(found, retrieved, ranking)
    if as_json:
        report = {"query": query, "passages": len(found), "candidates": len(retrieved)}
        report |= {"milliseconds": round(milliseconds, 1), "results": [asdict(hit) for hit in hits]}
        print(json.dumps(report, ensure_ascii=False))  # noqa: T201  # the answer itself
        return
    _show(console, hits)
    console.print(
        f"{len(found)} passages, {len(retrieved)} candidates by BM25, "
        f"reranked in {milliseconds:.0f} ms"
    )


def _hits(
    found: Sequence[Excerpt], retrieved: Sequence[tuple[int, float]], ranking: Ranking
) -> list[Hit]:
    hits = []
    for rank, place in enumerate(ranking, 1):
        index, bm25_score = retrieved[place.index]
        excerpt = found[index]
        hits.append(
            Hit(
                rank,
                place.score,
                place.index + 1,
                bm25_score,
                excerpt.place,
                excerpt.text,
                place.truncated,
            )
        )
    return hits


def _show(console: Console, hits: Sequence[Hit]) -> None:
    if not hits:
        console.print("no passage shares a word with the query")
        return
    table = Table(box=None)
    for name in ("rank", "was", "score", "where", "passage"):
        table.add_column(
            name, no_wrap=name != "passage", overflow="ellipsis" if name == "where" else "fold"
        )
    for hit in hits:
        line = " ".join(hit.text.split())
        short = line if len(line) <= 160 else line[:159] + "…"
        table.add_row(
            str(hit.rank),
            moved(hit.bm25_rank, hit.rank),
            f"{hit.score:.3f}",
            hit.place,
            Text(short),
        )
    console.print(table)
    best = hits[0]
    console.print(Panel(Text(best.text), title=f"best passage: {best.place}", title_align="left"))


def moved(before: int, after: int) -> str:
    """The old rank and how far it moved, in rich's colours."""
    if before == after:
        return f"{before}"
    colour, arrow = ("green", "▲") if after < before else ("red", "▼")
    return f"{before} [{colour}]{arrow}{abs(before - after)}[/{colour}]"


def rerank(
    console: Console,
    query: str,
    lines: Iterable[str],
    *,
    reranker: Reranker,
    top_n: int | None,
    score_threshold: float | None,
    text_field: str,
    as_json: bool,
) -> None:
    """Ranks lines, or JSON objects by their *text_field*; all fields come back, with the score."""
    rows = [
        _row(line.rstrip("\n"), number, text_field)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    texts = [str(row[text_field]) for row in rows]
    ranking = reranker.rerank(query, texts, top_n=top_n, score_threshold=score_threshold)
    if not as_json and sys.stdout.isatty():
        console.print(ranking.show(texts, width=console.width), markup=False, highlight=False)
        return
    for place in ranking:
        record = rows[place.index] | {
            "index": place.index,
            "relevance_score": place.score,
            "truncated": place.truncated,
        }
        print(json.dumps(record, ensure_ascii=False))  # noqa: T201  # the answer itself


def _row(line: str, number: int, text_field: str) -> dict[str, Any]:
    if not line.lstrip().startswith("{"):
        return {text_field: line}
    try:
        value = json.loads(line)
    except ValueError as error:
        raise InputError(
            f"line {number} must be text or a JSON object: got {line[:60]!r}"
        ) from error
    if not isinstance(value, dict) or not isinstance(value.get(text_field), str):
        raise InputError(
            f"line {number} must have a text under {text_field!r} (--text-field): got {line[:60]!r}"
        )
    return value
