"""`evaluate`: what reranking is worth on a collection with judged queries."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import ir_measures
import numpy as np
from ir_measures import RR, Measure, Qrel, R, ScoredDoc, nDCG

from ..errors import InputError
from ..protocols import Ranker, RerankRequest
from ..ranking import Fuse, FuseMethod, RankedDocument, Ranking
from .collection import Collection, Row, qrels_file, read_collection, read_qrels, read_run
from .console import emit, note, progress, say, table
from .corpus import Bm25

__all__ = ["Collection", "bm25_run", "evaluate", "read_collection", "read_qrels", "read_run"]

Retrieve = Callable[[str, str], list[Row]]
"""Query id and text to its candidates, best first."""

DRAWS = 10_000
DEPTH = 1000
"""Documents of a run that are compared."""

LEVEL = 0.05
"""A p below this is no chance."""

TEST = "paired randomisation test, two-sided"


def bm25_run(collection: Collection, count: int) -> Callable[[str], list[Row]]:
    """BM25's best *count* documents for a query text."""
    ids = collection.documents.ids
    index = Bm25(collection.documents.stream())
    return lambda text: [(ids[index_], score) for index_, score in index.search(text, count)]


def retriever(collection: Collection, run: Path | None, count: int) -> Retrieve:
    """The best *count* of each query in a TREC run; without one, BM25's."""
    if run is None:
        retrieve = bm25_run(collection, count)
        return lambda _, text: retrieve(text)
    rows = read_run(run, count)
    absent = [query for query in collection.queries if query not in rows]
    if len(absent) == len(collection.queries):
        raise InputError(f"run must hold some of the judged queries: {run} holds none of them")
    if absent:
        note(f"{run} has no candidates for {len(absent)} judged queries: they count as 0")
    return lambda query, _: rows.get(query, [])


FUSED: tuple[FuseMethod, ...] = get_args(FuseMethod)


@dataclass(slots=True)
class Report:
    """Quality of each query before and after, and seconds per query.

    ceiling: the recall that every reranking of these candidates has, None: they are whole runs
    fused: the first measure of each query by each way of fusing with the first stage's scores
    """

    measures: tuple[Measure, ...]
    ceiling: Measure | None = None
    sides: tuple[str, str] = ("before", "after")
    before: dict[str, dict[str, float]] = field(default_factory=dict)
    after: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    fused: dict[FuseMethod, dict[str, float]] = field(default_factory=dict)

    def mean(self, side: str, measure: Measure) -> float:
        """The mean over queries."""
        rows: dict[str, dict[str, float]] = getattr(self, side)
        return float(np.mean([row[str(measure)] for row in rows.values()]))

    def p_value(self, measure: Measure) -> float:
        """Of the mean change, by the paired randomisation test (Smucker, Allan & Carterette, 2007).

        Two-sided. Every pattern of signs where there are at most 10,000, else 10,000 drawn.
        """
        name = str(measure)
        return randomisation_test(
            [self.after[query][name] - self.before[query][name] for query in self.after]
        )

    def fusion(self) -> list[dict[str, Any]]:
        """What each way of fusing changes of the first measure, with p; [] where none was tried."""
        name = str(self.measures[0])
        found = []
        for method, by_query in self.fused.items():
            deltas = [by_query[query] - row[name] for query, row in self.after.items()]
            p = randomisation_test(deltas)
            mean = float(np.mean(list(by_query.values())))
            found.append(
                {"method": method, name: mean, "change": float(np.mean(deltas)), "p_value": p}
            )
        return found

    def fusion_verdict(self) -> str:
        """Whether fusing helps on these queries, in words: by Bonferroni's rule for several."""
        rows, name = self.fusion(), str(self.measures[0])
        sure = [row for row in rows if row["p_value"] * len(rows) < LEVEL]
        best = max(sure, key=lambda row: float(row["change"]), default=None)
        count = len(self.after)
        if best is None:
            return f"fusing with the first stage changes {name} of {count} queries within the noise"
        if best["change"] > 0:
            return f"fusing with the first stage helps {count} queries: --fuse {best['method']}"
        return f"fusing with the first stage makes {name} of {count} queries worse"

    def latency(self) -> tuple[float, float]:
        """Median and 95th percentile milliseconds per query, reranking alone."""
        p50, p95 = np.percentile(self.seconds or [0.0], (50, 95)) * 1e3
        return float(p50), float(p95)


def randomisation_test(deltas: Sequence[float]) -> float:
    """The share of sign patterns whose mean is as far from 0 as that of *deltas*."""
    count = len(deltas)
    every = 2**count <= DRAWS
    generator = np.random.default_rng(0)
    patterns: Iterator[Any] = (
        itertools.product((-1.0, 1.0), repeat=count)
        if every
        # one draw at a time: thousands of queries would not fit in memory ten thousand times
        else (generator.choice((-1.0, 1.0), count) for _ in range(DRAWS))
    )
    seen = abs(float(np.sum(deltas))) - 1e-9
    extreme = sum(abs(float(np.dot(signs, deltas))) >= seen for signs in patterns)
    # a drawn test counts what was seen as one draw, so that p is never 0
    return extreme / 2**count if every else (extreme + 1) / (DRAWS + 1)


def measures(depth: int) -> tuple[Measure, ...]:
    """Those that another order of *depth* documents can change."""
    return (nDCG @ 10, RR @ 10, *(R @ cut for cut in (5, 10, 50) if cut < depth))


def compare_runs(a: Path, b: Path, data: Path, *, split: str | None = None) -> Report:
    """The measures of two TREC runs on the judgements in *data*, a folder or a file.

    A query that only one of the runs has counts 0 in the other. Raises InputError.
    """
    qrels = read_qrels(qrels_file(data, split), note)
    runs = [read_run(file, DEPTH) for file in (a, b)]
    report = Report(measures(DEPTH), sides=("A", "B"))
    for query in sorted(qrels):
        if not any(query in run for run in runs):
            continue
        rows = [run.get(query, []) for run in runs]
        report.before[query], report.after[query] = (
            _measure(report.measures, query, found, qrels[query]) for found in rows
        )
    if not report.after:
        raise InputError(f"A and B must hold judged queries: {a} and {b} hold none of {data}'s")
    for file, run in zip((a, b), runs, strict=True):
        if absent := [query for query in report.after if query not in run]:
            note(f"{file} has no documents for {len(absent)} judged queries: they count as 0")
    return report


def evaluate(
    collection: Collection,
    retrieve: Retrieve,
    ranker: Ranker,
    *,
    candidates: int,
    fusing: bool = False,
    write: Callable[[str, list[Row]], None] = lambda *_: None,
    progress: Callable[[], None] = lambda: None,
) -> Report:
    """Reranks each query's candidates, one query at a time; nothing but measures is kept.

    fusing: measure also what fusing with the first stage's scores would make of the rankings
    """
    report = Report(measures(candidates), R @ candidates)
    for query, text in collection.queries.items():
        old = retrieve(query, text)
        names = [name for name, _ in old]
        texts = collection.documents.texts(names)
        start = time.perf_counter()
        scores = [score for _, score in old]
        asked = RerankRequest(text, texts, ids=names, retrieval_scores=scores)
        (ranking,) = ranker.rerank_many([asked])
        if texts:
            report.seconds.append(time.perf_counter() - start)
        for method in FUSED if fusing else ():
            rows = [(names[it.index], it.score) for it in _fused(ranking, method, scores)]
            first = _measure(report.measures[:1], query, rows, collection.qrels[query])
            report.fused.setdefault(method, {})[query] = first[str(report.measures[0])]
        new = [(old[document.index][0], document.score) for document in ranking]
        wanted = [*report.measures, R @ candidates]
        report.before[query] = _measure(wanted, query, old, collection.qrels[query])
        report.after[query] = _measure(report.measures, query, new, collection.qrels[query])
        write(query, new)
        progress()
    return report


def _fused(ranking: Ranking, method: FuseMethod, scores: list[float]) -> list[RankedDocument]:
    """What the model scored, by fused scores, then the others as they stand."""
    scored = Ranking([it for it in ranking if it.bounded])
    others = [it for it in ranking if not it.bounded]
    return [*Fuse(method).fused(scored, scores), *others]


def _measure(
    measures: Sequence[Measure],
    query: str,
    rows: Sequence[Row],
    judged: Mapping[str, int],
) -> dict[str, float]:
    """Measures of one ranking, in its own order: falling ranks stand in for scores that may tie."""
    run = [ScoredDoc(query, name, float(-rank)) for rank, (name, _) in enumerate(rows)]
    qrels = [Qrel(query, name, grade) for name, grade in judged.items()]
    found = ir_measures.calc_aggregate(list(measures), qrels, run)
    return {str(measure): float(found[measure]) for measure in measures}


def rerank_collection(
    collection: Collection,
    ranker: Ranker,
    *,
    run: Path | None,
    candidates: int,
    fusing: bool = False,
    output: Path | None,
) -> Report:
    """`evaluate` with BM25's candidates or those of *run*; *output* gets the reranked TREC run."""
    with (
        trec_writer(output) as write,
        progress("reranking", len(collection.queries)) as advance,
    ):
        return evaluate(
            collection,
            retriever(collection, run, candidates),
            ranker,
            candidates=candidates,
            fusing=fusing,
            write=write,
            progress=advance,
        )


@contextmanager
def trec_writer(file: Path | None) -> Iterator[Callable[[str, list[Row]], None]]:
    """Writes a TREC run query by query; the file appears whole at the end, or not at all.

    Scores have nine digits, which tell any two float32 numbers apart. Raises InputError.
    """
    if file is None:
        yield lambda *_: None
        return
    if file.is_dir() or not file.absolute().parent.is_dir():
        raise InputError(f"--output must be a file in a folder that exists: got {str(file)!r}")
    special = file.exists() and not file.is_file()  # a pipe or /dev/null is written, not replaced
    target = file.resolve()  # a link stays a link
    part = target if special else target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8") as out:
            yield lambda query, rows: out.writelines(_run_lines(query, rows))
        if not special:
            part.replace(target)
    except BaseException:
        if not special:
            part.unlink(missing_ok=True)
        raise


def _run_lines(query: str, rows: Sequence[Row]) -> Iterator[str]:
    for rank, (document, score) in enumerate(rows, 1):
        if len(f"{query} {document}".split()) != 2:
            raise InputError(f"ids must hold no white space in a TREC run: got {document!r}")
        yield f"{query} Q0 {document} {rank} {score:.9g} rerank-adapters\n"


def show(report: Report, *, per_query: bool, as_json: bool) -> None:
    """Every measure of both sides, with p; every query if asked; latency where it was measured."""
    rows = [_summary(report, measure) for measure in report.measures]
    first, second = report.sides
    if as_json:
        answer: dict[str, Any] = {"queries": len(report.after), "measures": rows, "test": TEST}
        if report.ceiling is not None:
            p50, p95 = report.latency()
            answer |= {str(report.ceiling): report.mean("before", report.ceiling)}
            answer |= {"p50_ms": p50, "p95_ms": p95}
        if report.fused:
            answer |= {"fusion": report.fusion(), "fusion_says": report.fusion_verdict()}
        if per_query:
            answer["per_query"] = {
                name: {first: report.before[name], second: row}
                for name, row in report.after.items()
            }
        emit(answer)
        return
    if per_query:
        table(["query", *map(str, report.measures)], list(_per_query(report)))
        say()
    table(
        ["measure", first, second, "change", "p"],
        [
            [
                str(row["measure"]),
                *(f"{row[side]:.4f}" for side in report.sides),
                f"{row[second] - row[first]:+.4f}",
                f"{row['p_value']:.4f}",
            ]
            for row in rows
        ],
    )
    say(f"{len(report.after)} queries; p by the {TEST}")
    if report.ceiling is not None:
        _say_cost(report, report.ceiling)
    if report.fused:
        say_fusion(report)


def _say_cost(report: Report, ceiling: Measure) -> None:
    p50, p95 = report.latency()
    found = report.mean("before", ceiling)
    say(f"{ceiling} is {found:.4f}, of whatever order: what was found is what is ranked")
    say(f"reranking took {p50:.0f} ms (p50), {p95:.0f} ms (p95) a query")


def say_fusion(report: Report) -> None:
    """What each way of fusing changes, and whether it helps."""
    name = str(report.measures[0])
    for row in report.fusion():
        change = f"{row['change']:+.4f}, p {row['p_value']:.4f}"
        say(f"--fuse {row['method']}: {name} {row[name]:.4f} ({change})")
    say(report.fusion_verdict())


def _summary(report: Report, measure: Measure) -> dict[str, Any]:
    return {
        "measure": str(measure),
        report.sides[0]: report.mean("before", measure),
        report.sides[1]: report.mean("after", measure),
        "p_value": report.p_value(measure),
    }


def _per_query(report: Report) -> Iterator[list[str]]:
    for query, row in report.after.items():
        before = report.before[query]
        yield [query, *(f"{before[name]:.3f} → {value:.3f}" for name, value in row.items())]
