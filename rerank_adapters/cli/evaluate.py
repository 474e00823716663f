"""`evaluate`: what reranking is worth on a collection with judged queries."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import ir_measures
import numpy as np
from ir_measures import RR, Measure, Qrel, R, ScoredDoc, nDCG

from ..errors import InputError
from ..reranker import Reranker
from .corpus import Bm25, queries

Run = dict[str, list[tuple[str, float]]]


@dataclass(frozen=True, slots=True)
class Collection:
    """Judged queries, and documents that are read from disk one at a time."""

    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]
    documents: Documents


class Documents:
    """The texts of `corpus.jsonl` by id, kept as places in the file, not as text."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._offsets: dict[str, int] = {}
        with file.open("rb") as lines:
            start = 0
            for line in lines:
                if line.strip():
                    self._offsets[self._parse(line)[0]] = start
                start += len(line)

    def __len__(self) -> int:
        return len(self._offsets)

    @property
    def ids(self) -> list[str]:
        """Document ids, in the order of the file."""
        return list(self._offsets)

    def texts(self, ids: Sequence[str]) -> list[str]:
        """Title and text of each of *ids*. InputError names an id the corpus lacks."""
        missing = [name for name in ids if name not in self._offsets]
        if missing:
            raise InputError(
                f"run names a document that is not in {self._file}: got {missing[0]!r}"
            )
        with self._file.open("rb") as lines:
            return [self._at(lines, self._offsets[name]) for name in ids]

    def _at(self, lines: IO[bytes], offset: int) -> str:
        lines.seek(offset)
        return self._parse(lines.readline())[1]

    def _parse(self, line: bytes) -> tuple[str, str]:
        try:
            row = json.loads(line)
            name = str(row["_id"] if "_id" in row else row["id"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{self._file} must hold JSON objects with _id: got {line[:60]!r}"
            ) from error
        return name, f"{row.get('title', '')} {row.get('text', '')}".strip()


def read_collection(folder: Path, *, split: str = "test") -> Collection:
    """A BEIR folder: corpus.jsonl, queries.jsonl, qrels.tsv or qrels/*split*.tsv (or TREC's).

    Only queries with a judgement are kept. InputError names a file that is missing or malformed.
    """
    names = ["qrels.tsv", f"qrels/{split}.tsv", "qrels.txt", f"qrels.{split}.txt"]
    found = [folder / name for name in names if (folder / name).is_file()]
    for needed in ("corpus.jsonl", "queries.jsonl"):
        if not (folder / needed).is_file():
            raise InputError(f"DATA must hold {needed}: {str(folder)!r} has none")
    if not found:
        raise InputError(
            f"DATA must hold judgements ({', '.join(names)}): {str(folder)!r} has none"
        )
    qrels = read_qrels(found[0])
    texts = {name: text for name, text in queries(folder).items() if name in qrels}
    if not texts:
        raise InputError(f"qrels must judge some of the queries: {found[0]} judges none of them")
    return Collection(texts, qrels, Documents(folder / "corpus.jsonl"))


def read_qrels(file: Path) -> dict[str, dict[str, int]]:
    """Judgements by query: BEIR's three columns (a header is passed over) or TREC's four."""
    qrels: dict[str, dict[str, int]] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        parts = line.split()
        if not parts or (number == 1 and not parts[-1].lstrip("-").isdigit()):
            continue
        try:
            query, document, grade = parts[0], parts[-2], int(parts[-1])
        except (IndexError, ValueError) as error:
            raise InputError(f"{file}:{number} must be a judgement: got {line[:60]!r}") from error
        qrels.setdefault(query, {})[document] = grade
    return qrels


def read_run(file: Path, count: int) -> Run:
    """The best *count* documents of each query of a TREC run, best first."""
    run: Run = {}
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            parts = line.split()
            if len(parts) != 6:
                raise InputError(
                    f"{file}:{number} must have a TREC run's 6 columns: got {line[:60]!r}"
                )
            run.setdefault(parts[0], []).append((parts[2], float(parts[4])))
    return {query: sorted(rows, key=lambda row: -row[1])[:count] for query, rows in run.items()}


def bm25_run(collection: Collection, count: int) -> Callable[[str], list[tuple[str, float]]]:
    """BM25's best *count* documents for a query text."""
    ids = collection.documents.ids
    index = Bm25(collection.documents.texts(ids))
    return lambda text: [(ids[place], score) for place, score in index.search(text, count)]


@dataclass(slots=True)
class Report:
    """Quality of each query before and after, and seconds per query."""

    measures: tuple[Measure, ...]
    before: dict[str, dict[str, float]] = field(default_factory=dict)
    after: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)

    def mean(self, side: str, measure: Measure) -> float:
        """The mean over queries."""
        rows: dict[str, dict[str, float]] = getattr(self, side)
        return float(np.mean([row[str(measure)] for row in rows.values()]))

    def p_value(self, measure: Measure) -> float:
        """Two-sided paired randomisation test (Smucker, Allan & Carterette, 2007), 10,000 draws."""
        name = str(measure)
        deltas = np.array(
            [self.after[query][name] - self.before[query][name] for query in self.after]
        )
        signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(10_000, len(deltas)))
        extreme = np.abs((signs * deltas).mean(1)) >= abs(deltas.mean()) - 1e-12
        return float((extreme.sum() + 1) / (len(extreme) + 1))

    def latency(self) -> tuple[float, float]:
        """Median and 95th percentile milliseconds per query, reranking alone."""
        return tuple(float(1e3 * np.percentile(self.seconds, share)) for share in (50, 95))  # type: ignore[return-value]  # two shares, two numbers


def evaluate(
    collection: Collection,
    retrieve: Callable[[str, str], list[tuple[str, float]]],
    reranker: Reranker,
    *,
    candidates: int,
    write: Callable[[str, list[tuple[str, float]]], None] = lambda *_: None,
    progress: Callable[[], None] = lambda: None,
) -> Report:
    """Reranks each query's candidates, one query at a time; nothing but measures is kept."""
    report = Report((nDCG @ 10, RR @ 10, R @ candidates))
    for query, text in collection.queries.items():
        old = retrieve(query, text)
        texts = collection.documents.texts([name for name, _ in old])
        start = time.perf_counter()
        ranking = reranker.rerank(text, texts)
        report.seconds.append(time.perf_counter() - start)
        new = [(old[place.index][0], place.score) for place in ranking]
        report.before[query] = _measure(report.measures, query, old, collection.qrels[query])
        report.after[query] = _measure(report.measures, query, new, collection.qrels[query])
        write(query, new)
        progress()
    return report


def _measure(
    measures: Sequence[Measure],
    query: str,
    rows: Sequence[tuple[str, float]],
    judged: Mapping[str, int],
) -> dict[str, float]:
    """Measures of one ranking, in its own order: falling ranks stand in for scores that may tie."""
    run = [ScoredDoc(query, name, float(-rank)) for rank, (name, _) in enumerate(rows)]
    qrels = [Qrel(query, name, grade) for name, grade in judged.items()]
    found = ir_measures.calc_aggregate(list(measures), qrels, run)
    return {str(measure): float(found[measure]) for measure in measures}


@contextmanager
def trec_writer(file: Path | None) -> Iterator[Callable[[str, list[tuple[str, float]]], None]]:
    """Writes a TREC run query by query; the file appears whole at the end, or not at all."""
    if file is None:
        yield lambda *_: None
        return
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:

            def write(query: str, rows: list[tuple[str, float]]) -> None:
                for rank, (document, score) in enumerate(rows, 1):
                    out.write(f"{query} Q0 {document} {rank} {score:.6f} rerank-adapters\n")

            yield write
        os.replace(name, file)  # noqa: PTH105  # atomic, also over an old file on Windows
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
