"""`bulk`: parquet or a TREC run through Ray, and what came of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..ray import Job, rerank_files
from .collection import Documents, read_queries, read_run
from .console import emit, note, say
from .evaluate import trec_writer

RUNS = (".run", ".trec", ".txt")
"""What a TREC run's name ends with."""

ROWS = 1000
"""Lists of a run that are written at once."""


def run(
    source: Path,
    target: Path,
    job: Job,
    ids: str,
    corpus: Path | None,
    queries: Path | None,
    candidates: int,
    *,
    as_json: bool,
) -> None:
    """Rank *source* into *target*; a run goes by way of parquet folders beside *target*."""
    is_run = source.suffix in RUNS
    folder = target.with_name(f"{target.name}.parquet") if target.suffix in RUNS else target
    if is_run:
        lists = target.with_name(f"{target.name}.lists.parquet")
        _write_lists(source, corpus, queries, candidates, job, ids, lists)
        source = lists
    rerank_files(source, folder, job, ids=ids)
    rows, failed = 0, 0
    with trec_writer(target if folder != target else None) as write:
        for row in _rows(folder):
            rows += 1
            failed += row[job.error] is not None
            if folder != target and row[job.error] is None:
                names = _names(row, target)
                scored = zip(row["indices"], row["relevance_scores"], strict=True)
                write(row[ids], [(names[index], score) for index, score in scored])
    if as_json:
        emit({"rows": rows, "failed": failed, "output": str(target)})
        return
    say(f"{target}: {rows} lists ranked, {failed} of them failed")
    if failed:
        note(f"what they failed of stands in {folder}, under {job.error}")


def _names(row: dict[str, Any], target: Path) -> list[str]:
    if row.get("doc_ids") is None:
        raise InputError(f"IN must have the column doc_ids for a TREC run: {target} wants ids")
    return list(row["doc_ids"])


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    import pyarrow.dataset as pads

    for batch in pads.dataset(str(folder), format="parquet").to_batches():
        yield from batch.to_pylist()


def _write_lists(
    file: Path,
    corpus: Path | None,
    queries: Path | None,
    count: int,
    job: Job,
    ids: str,
    lists: Path,
) -> None:
    """The run's lists with their texts as parquet; it appears whole, or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if corpus is None or queries is None:
        raise InputError("--corpus and --queries must be given with a TREC run: it has no texts")
    texts, documents = read_queries(queries), Documents(corpus)
    asked = list(read_run(file, count).items())
    absent = [query for query, _ in asked if query not in texts]
    if absent:
        raise InputError(f"--queries must name every query of the run: got no {absent[0]!r}")
    kinds = [(ids, pa.string()), (job.query, pa.string())]
    kinds += [(name, pa.list_(pa.string())) for name in ("doc_ids", job.documents)]
    part = lists.with_name(f".{lists.name}.{os.getpid()}.part")
    try:
        with pq.ParquetWriter(part, pa.schema(kinds)) as writer:
            for start in range(0, len(asked), ROWS):
                rows = []
                for query, found in asked[start : start + ROWS]:
                    names = [name for name, _ in found]
                    rows.append(
                        {
                            ids: query,
                            job.query: texts[query],
                            "doc_ids": names,
                            job.documents: documents.texts(names),
                        }
                    )
                writer.write_table(pa.Table.from_pylist(rows, pa.schema(kinds)))
        part.replace(lists)
    finally:
        part.unlink(missing_ok=True)
