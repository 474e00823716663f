"""The commands: what they take. Each loads what it needs when it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .. import __version__
from ..config import OPTIONS, BackendName, DType
from .console import emit, progress, say, table
from .mapping import mapping

app = typer.Typer(
    help="Rerank text with a cross-encoder: search, measure, export.",
    pretty_exceptions_enable=False,
    add_completion=False,
)

Query = Annotated[str, typer.Argument(metavar="QUERY", help="The question.")]
Model = Annotated[str, typer.Option("--model", "-m", help=OPTIONS["model"].text)]
Backend = Annotated[BackendName, typer.Option(help=OPTIONS["backend"].text)]
Device = Annotated[str, typer.Option(help=OPTIONS["device"].text)]
Precision = Annotated[DType, typer.Option(help=OPTIONS["dtype"].text)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for other programs.")]
MaxLength = Annotated[int | None, typer.Option(min=1, help=OPTIONS["max_length"].text)]
Windows = Annotated[
    str | None, typer.Option(metavar="tokens=N,stride=N,...", help=OPTIONS["windows"].text)
]
Cache = Annotated[
    str | None, typer.Option(metavar="bytes=N,path=FILE,...", help=OPTIONS["cache"].text)
]


def _file(text: str) -> Any:
    return typer.Option(help=text, exists=True, dir_okay=False)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Rerank text with a cross-encoder: search, measure, export."""
    if version:
        say(f"rerank-adapters {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def search(
    query: Query,
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Files and folders.")],
    *,
    top_n: Annotated[int, typer.Option("--top-n", "-n", min=1, help="How many to show.")] = 10,
    candidates: Annotated[int, typer.Option(min=1, help="Passages that BM25 hands on.")] = 50,
    model: Model = "default",
    backend: Backend = "auto",
    device: Device = "auto",
    dtype: Precision = "auto",
    max_length: MaxLength = None,
    windows: Windows = None,
    cache: Cache = None,
    as_json: AsJson = False,
) -> None:
    """Search files: BM25 finds candidates, the reranker puts the best first."""
    from ..reranker import Reranker
    from .search import search as search_files

    with Reranker(
        model,
        backend=backend,
        device=device,
        dtype=dtype,
        max_length=max_length,
        windows=mapping("--windows", windows),
        cache=mapping("--cache", cache),
    ) as reranker:
        search_files(
            query, paths, ranker=reranker, candidates=candidates, top_n=top_n, as_json=as_json
        )


@app.command()
def rerank(
    query: Query,
    *,
    top_n: Annotated[
        int | None, typer.Option("--top-n", "-n", min=1, help="How many to keep. None: all.")
    ] = None,
    score_threshold: Annotated[float | None, typer.Option(help="Lowest score kept.")] = None,
    text_field: Annotated[str, typer.Option(help="Where JSON lines keep their text.")] = "text",
    model: Model = "default",
    backend: Backend = "auto",
    device: Device = "auto",
    dtype: Precision = "auto",
    max_length: MaxLength = None,
    windows: Windows = None,
    cache: Cache = None,
    as_json: AsJson = False,
) -> None:
    """Rank the lines (or JSON lines) on standard input, best first.

    A terminal gets a table; a pipe, or --json, gets JSON lines: the fields that came in, and
    index, relevance_score and truncated, which replace fields of these names.
    """
    from ..reranker import Reranker
    from .console import note
    from .search import rerank as rerank_lines

    if sys.stdin.isatty():
        note("type or paste lines to rank, then end the input")
    with Reranker(
        model,
        backend=backend,
        device=device,
        dtype=dtype,
        max_length=max_length,
        windows=mapping("--windows", windows),
        cache=mapping("--cache", cache),
    ) as reranker:
        rerank_lines(
            query,
            sys.stdin.buffer,
            ranker=reranker,
            top_n=top_n,
            score_threshold=score_threshold,
            text_field=text_field,
            as_json=as_json,
        )


@app.command()
def evaluate(
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="BEIR or TREC folder: corpus, queries, qrels.")
    ],
    *,
    run: Annotated[Path | None, _file("TREC run to rerank. None: BM25's.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the reranked TREC run here.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Use qrels/SPLIT.tsv.")] = None,
    corpus: Annotated[Path | None, _file("Documents outside DATA: JSONL, TSV or TREC.")] = None,
    queries: Annotated[Path | None, _file("Queries outside DATA: JSONL, TSV or topics.")] = None,
    qrels: Annotated[Path | None, _file("Judgements outside DATA.")] = None,
    candidates: Annotated[int, typer.Option(min=1, help="Documents reranked per query.")] = 100,
    per_query: Annotated[bool, typer.Option("--per-query", help="Show every query.")] = False,
    model: Model = "default",
    backend: Backend = "auto",
    device: Device = "auto",
    dtype: Precision = "auto",
    max_length: MaxLength = None,
    as_json: AsJson = False,
) -> None:
    """Measure reranking on judged queries: nDCG@10, MRR@10 and recall, before and after."""
    from ..reranker import Reranker
    from .collection import read_collection
    from .evaluate import rerank_collection, show

    collection = read_collection(data, split=split, corpus=corpus, queries=queries, qrels=qrels)
    with Reranker(
        model, backend=backend, device=device, dtype=dtype, max_length=max_length
    ) as reranker:
        report = rerank_collection(
            collection, reranker, run=run, candidates=candidates, output=output
        )
    show(report, per_query=per_query, as_json=as_json)


@app.command()
def tune(
    data: Annotated[
        Path | None,
        typer.Argument(metavar="[DATA]", help="BEIR or TREC folder. None: speed."),
    ] = None,
    *,
    budget_ms: Annotated[
        float | None, typer.Option(min=0, help="Name the best setting with p95 within this.")
    ] = None,
    candidates: Annotated[
        list[int] | None, typer.Option(min=1, help="To try; repeat. [20, 50, 100]")
    ] = None,
    max_length: Annotated[
        list[int] | None, typer.Option(min=1, help="Token limits to try; repeat. [256, 512]")
    ] = None,
    queries: Annotated[int, typer.Option(min=1, help="Queries per setting.")] = 20,
    model: Model = "default",
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Measure this machine and this data: quality and latency of every setting."""
    from .collection import read_collection
    from .tune import show
    from .tune import tune as measure

    with progress("measuring") as advance:
        found = []
        for one in measure(
            model,
            read_collection(data) if data is not None else None,
            candidates=candidates or [20, 50, 100],
            max_lengths=max_length or [256, 512],
            num_queries=queries,
            device=device,
        ):
            found.append(one)
            advance()
    show(found, budget_ms=budget_ms, as_json=as_json)


@app.command()
def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id or local folder.")],
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Where the ONNX checkpoint goes.")
    ],
    *,
    dtype: Annotated[
        Literal["float32", "float16", "int8"], typer.Option(help="Numbers the file holds.")
    ] = "float32",
    revision: Annotated[str | None, typer.Option(help=OPTIONS["revision"].text)] = None,
    local_files_only: Annotated[
        bool, typer.Option("--local-files-only", help=OPTIONS["local_files_only"].text)
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help=OPTIONS["trust_remote_code"].text)
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint as ONNX, checked against torch before it is kept."""
    from ..export import FILE_NAMES, export_onnx

    with progress("exporting and checking"):
        written = export_onnx(
            model,
            folder,
            dtype,
            revision=revision,
            local_files_only=local_files_only,
            trust_remote_code=trust_remote_code,
        )
    file = written / FILE_NAMES[dtype]
    megabytes = round(file.stat().st_size / 1e6, 1)
    if as_json:
        emit({"file": str(file), "megabytes": megabytes, "dtype": dtype})
    else:
        say(f"{file} ({megabytes} MB), scores checked against torch")


@app.command()
def info(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="None: models on this machine.")
    ] = None,
    *,
    backend: Backend = "auto",
    device: Device = "auto",
    dtype: Precision = "auto",
    as_json: AsJson = False,
) -> None:
    """What runs here and why; without MODEL, the families tested and the models at hand."""
    facts: dict[str, Any]
    if model is None:
        from .models import known_models

        facts = known_models()
    else:
        from ..reranker import Reranker

        with Reranker(model, backend=backend, device=device, dtype=dtype) as reranker:
            facts = reranker.info().to_dict()
    if as_json:
        emit(facts)
        return
    table(["what", "here"], [[name, _shown(value)] for name, value in facts.items()])


def _shown(value: Any) -> str | list[str]:
    return list(map(str, value)) if isinstance(value, list) else str(value)


@app.command()
def demo(*, as_json: AsJson = False) -> None:
    """Rerank the example collection offline, through LangChain and LlamaIndex."""
    from .demo import run

    run(as_json=as_json)
