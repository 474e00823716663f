"""The commands: what they take, and how their answers look."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ..config import BackendName, DType
from ..reranker import Reranker
from . import evaluate as evaluation
from . import search as searching
from . import tune as tuning
from .models import known_models

app = typer.Typer(
    help="Rerank text with a cross-encoder: search, measure, export.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Model = Annotated[str, typer.Option("--model", "-m", help="Hub id, local folder or 'default'.")]
Backend = Annotated[BackendName, typer.Option(help="Runtime.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
Precision = Annotated[DType, typer.Option(help="Numbers the model runs in.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for other programs.")]
MaxLength = Annotated[int | None, typer.Option(min=1, help="Tokens per pair.")]
TopN = Annotated[int | None, typer.Option("--top-n", "-n", min=1, help="How many to keep.")]


@app.command()
def search(
    query: Annotated[str, typer.Argument(help="The question.")],
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Files and folders.")],
    *,
    top_n: TopN = 10,
    candidates: Annotated[int, typer.Option(min=1, help="Passages that BM25 hands on.")] = 50,
    model: Model = "default",
    backend: Backend = "auto",
    device: Device = "auto",
    dtype: Precision = "auto",
    max_length: MaxLength = None,
    as_json: AsJson = False,
) -> None:
    """Search files: BM25 finds candidates, the reranker puts the best first."""
    with _load(model, backend, device, dtype, max_length) as reranker:
        searching.search(
            _console(as_json),
            query,
            paths,
            reranker=reranker,
            candidates=candidates,
            top_n=top_n or candidates,
            as_json=as_json,
        )


@app.command()
def rerank(
    query: Annotated[str, typer.Argument(help="The question.")],
    *,
    top_n: TopN = None,
    score_threshold: Annotated[float | None, typer.Option(help="Lowest score kept.")] = None,
    text_field: Annotated[str, typer.Option(help="Where JSON lines keep their text.")] = "text",
    model: Model = "default",
    backend: Backend = "auto",
    device: Device = "auto",
    dtype: Precision = "auto",
    max_length: MaxLength = None,
    as_json: AsJson = False,
) -> None:
    """Rank the lines (or JSON lines) on standard input; JSON lines come out, best first."""
    with _load(model, backend, device, dtype, max_length) as reranker:
        searching.rerank(
            _console(as_json),
            query,
            sys.stdin,
            reranker=reranker,
            top_n=top_n,
            score_threshold=score_threshold,
            text_field=text_field,
            as_json=as_json,
        )


@app.command()
def evaluate(
    data: Annotated[Path, typer.Argument(help="BEIR folder: corpus, queries, qrels.")],
    *,
    run: Annotated[Path | None, typer.Option(help="TREC run to rerank. None: BM25's.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Reranked TREC run.")
    ] = None,
    split: Annotated[str, typer.Option(help="Which qrels/SPLIT.tsv.")] = "test",
    candidates: Annotated[int, typer.Option(min=1, help="Documents reranked per query.")] = 100,
    per_query: Annotated[bool, typer.Option(help="Show every query.")] = False,
    model: Model = "default",
    backend: Backend = "auto",
    device: Device = "auto",
    dtype: Precision = "auto",
    max_length: MaxLength = None,
    as_json: AsJson = False,
) -> None:
    """Measure reranking on judged queries: nDCG@10, MRR@10 and recall, before and after."""
    console = _console(as_json)
    collection = evaluation.read_collection(data, split=split)
    with (
        _load(model, backend, device, dtype, max_length) as reranker,
        evaluation.trec_writer(output) as write,
        Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress,
    ):
        task = progress.add_task("reranking", total=len(collection.queries))
        report = evaluation.evaluate(
            collection,
            _retriever(collection, run, candidates),
            reranker,
            candidates=candidates,
            write=write,
            progress=lambda: progress.advance(task),
        )
    _report(console, report, per_query=per_query, as_json=as_json)


def _retriever(
    collection: evaluation.Collection, run: Path | None, candidates: int
) -> Callable[[str, str], list[tuple[str, float]]]:
    if run is not None:
        rows = evaluation.read_run(run, candidates)
        return lambda query, _: rows.get(query, [])
    retrieve = evaluation.bm25_run(collection, candidates)
    return lambda _, text: retrieve(text)


def _report(console: Console, report: evaluation.Report, *, per_query: bool, as_json: bool) -> None:
    p50, p95 = report.latency()
    rows: list[dict[str, Any]] = [
        {
            "measure": str(measure),
            "before": report.mean("before", measure),
            "after": report.mean("after", measure),
            "p_value": report.p_value(measure),
        }
        for measure in report.measures
    ]
    if as_json:
        answer: dict[str, Any] = {"queries": len(report.after), "measures": rows}
        answer |= {"p50_ms": p50, "p95_ms": p95}
        if per_query:
            answer["per_query"] = {
                name: {"before": report.before[name], "after": row}
                for name, row in report.after.items()
            }
        console.print_json(json.dumps(answer))
        return
    if per_query:
        names = [str(measure) for measure in report.measures]
        cells = [
            [query, *(f"{report.before[query][name]:.3f} → {row[name]:.3f}" for name in names)]
            for query, row in report.after.items()
        ]
        _table(console, ["query", *names], cells)
    _table(
        console,
        ["", "before", "after", "change", "p"],
        [
            [
                row["measure"],
                f"{row['before']:.4f}",
                f"{row['after']:.4f}",
                f"{row['after'] - row['before']:+.4f}",
                f"{row['p_value']:.4f}",
            ]
            for row in rows
        ],
    )
    console.print(
        f"{len(report.after)} queries; reranking took {p50:.0f} ms (p50), {p95:.0f} ms (p95) each"
    )


@app.command()
def tune(
    data: Annotated[Path | None, typer.Argument(help="BEIR folder. None: speed alone.")] = None,
    *,
    budget_ms: Annotated[float | None, typer.Option(help="Name the best within this p95.")] = None,
    candidates: Annotated[
        list[int] | None, typer.Option(min=1, help="Numbers of candidates to try: 20, 50, 100.")
    ] = None,
    max_length: Annotated[
        list[int] | None, typer.Option(min=1, help="Token limits to try: 256, 512.")
    ] = None,
    queries: Annotated[int, typer.Option(min=1, help="Queries per setting.")] = 20,
    model: Model = "default",
    as_json: AsJson = False,
) -> None:
    """Measure this machine and this data: quality and latency of every setting."""
    console = _console(as_json)
    collection = evaluation.read_collection(data) if data is not None else None
    results: list[tuning.Setting] = []
    refused: list[tuning.Refused] = []
    with Console(stderr=True).status("measuring"):
        for found in tuning.tune(
            model,
            collection,
            candidates=candidates or [20, 50, 100],
            max_lengths=max_length or [256, 512],
            num_queries=queries,
        ):
            if isinstance(found, tuning.Setting):
                results.append(found)
            elif (found.backend, found.dtype) not in {(one.backend, one.dtype) for one in refused}:
                refused.append(found)
    chosen = tuning.best(results, budget_ms) if budget_ms is not None else None
    if as_json:
        answer = {
            "settings": [asdict(one) for one in results],
            "refused": [asdict(one) for one in refused],
        }
        answer |= {"best": asdict(chosen) if chosen else None}  # type: ignore[dict-item]  # one object beside lists
        console.print_json(json.dumps(answer))
        return
    _table(
        console,
        ["backend", "dtype", "candidates", "max_length", "p50 ms", "p95 ms", "nDCG@10"],
        [
            [
                one.backend,
                one.dtype,
                str(one.candidates),
                str(one.max_length),
                f"{one.p50_ms:.0f}",
                f"{one.p95_ms:.0f}",
                "–" if one.ndcg10 is None else f"{one.ndcg10:.4f}",
            ]
            for one in results
        ],
    )
    for one in refused:
        console.print(f"{one.backend} {one.dtype} does not run here: {one.why}", style="dim")
    if budget_ms is not None:
        console.print(
            f"best within {budget_ms:g} ms: backend={chosen.backend!r}, dtype={chosen.dtype!r}, "
            f"{chosen.candidates} candidates, max_length={chosen.max_length}"
            if chosen
            else f"nothing fits {budget_ms:g} ms: fewer candidates or a shorter max_length would"
        )


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="Hub id or local folder.")],
    folder: Annotated[Path, typer.Argument(help="Where the ONNX checkpoint goes.")],
    *,
    dtype: Annotated[Literal["float32", "float16", "int8"], typer.Option()] = "float32",
    revision: Annotated[str | None, typer.Option(help="Hub branch, tag or commit.")] = None,
    local_files_only: Annotated[bool, typer.Option(help="Never ask the network.")] = False,
    trust_remote_code: Annotated[bool, typer.Option(help="Run the checkpoint's code.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint as ONNX, checked against torch before it is kept."""
    from ..errors import MissingDependencyError

    try:
        from ..export import FILE_NAMES, export_onnx  # lazy: torch takes seconds
    except ImportError as error:
        raise MissingDependencyError(error.name or "torch", "export") from error
    place = export_onnx(
        model,
        folder,
        dtype,
        revision=revision,
        local_files_only=local_files_only,
        trust_remote_code=trust_remote_code,
    )
    file = place / FILE_NAMES[dtype]
    facts = {"file": str(file), "megabytes": round(file.stat().st_size / 1e6, 1), "dtype": dtype}
    console = _console(as_json)
    if as_json:
        console.print_json(json.dumps(facts))
    else:
        console.print(f"{facts['file']} ({facts['megabytes']} MB), scores checked against torch")


@app.command()
def info(
    model: Annotated[str | None, typer.Argument(help="None: models on this machine.")] = None,
    *,
    backend: Backend = "auto",
    device: Device = "auto",
    dtype: Precision = "auto",
    as_json: AsJson = False,
) -> None:
    """What runs here and why; without MODEL, the families tested and the models at hand."""
    console = _console(as_json)
    if model is None:
        facts: dict[str, Any] = known_models()
    else:
        with _load(model, backend, device, dtype, None) as reranker:
            facts = reranker.info()
    if as_json:
        console.print_json(json.dumps(facts))
        return
    _table(console, ["", ""], [[name, _shown(value)] for name, value in facts.items()])


@app.command()
def demo() -> None:
    """Rerank the example collection offline, through LangChain and LlamaIndex."""
    from . import demo as room  # lazy: it brings both frameworks

    room.run(Console())


def _load(
    model: str, backend: BackendName, device: str, dtype: DType, max_length: int | None
) -> Reranker:
    return Reranker.from_pretrained(
        model, backend=backend, device=device, dtype=dtype, max_length=max_length
    )


def _console(as_json: bool) -> Console:
    # JSON is for pipes: no colours, no wrapping, and nothing else on standard output.
    return Console(stderr=False, soft_wrap=True, no_color=True) if as_json else Console()


def _table(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(box=None)
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _shown(value: Any) -> str:
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)
