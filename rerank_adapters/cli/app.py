"""The commands: what they take. Each loads what it needs when it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from .. import __version__
from ..config import RerankerConfig
from ..errors import ConfigError, InputError
from ..passages import Windows
from .console import emit, note, progress, say, table
from .options import mapping, takes

app = typer.Typer(
    help="Rerank text with a cross-encoder: search, measure, export.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Query = Annotated[str, typer.Argument(metavar="QUERY", help="The question.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for other programs.")]
Threshold = Annotated[float | None, typer.Option(help="Lowest score kept. None: no bound.")]
Options = dict[str, Any]

RerankCount = Annotated[
    int, typer.Option(min=1, help="How many candidates of a query are scored: the first ones.")
]

KEPT = 1000
"""Candidates that come from the first stage where those that are not scored come back too."""


def _phases(options: Options, rerank_count: int) -> tuple[RerankerConfig, int]:
    """The configuration, and how many candidates the first stage is asked for."""
    if options["rest"] == "drop":
        return RerankerConfig(**options), rerank_count
    return RerankerConfig(**options, rerank_count=rerank_count), max(KEPT, rerank_count)


FETCHED = ("revision", "cache_folder", "local_files_only", "token", "trust_remote_code")
"""What finding a model takes, whatever it is for."""


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
@takes(but=("document_tokens", "rerank_count"))  # passages have no ids
def search(
    query: Query,
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="Files and folders; - is stdin.")
    ],
    *,
    top_n: Annotated[int, typer.Option("--top-n", "-n", min=1, help="How many to show.")] = 10,
    score_threshold: Threshold = None,
    rerank_count: RerankCount = 50,
    as_json: AsJson = False,
    options: Options,
) -> None:
    """Search files: BM25 finds candidates, the reranker puts the best first."""
    from ..reranker import Reranker
    from .search import search as search_files

    config, candidates = _phases(options, rerank_count)
    with Reranker.from_config(config) as reranker:
        search_files(
            query,
            paths,
            ranker=reranker,
            candidates=candidates,
            top_n=top_n,
            score_threshold=score_threshold,
            as_json=as_json,
        )


@app.command()
@takes()
def rerank(
    query: Query,
    *,
    top_n: Annotated[
        int | None, typer.Option("--top-n", "-n", min=1, help="How many to keep. None: all.")
    ] = None,
    score_threshold: Threshold = None,
    text_field: Annotated[str, typer.Option(help="Where JSON lines keep their text.")] = "text",
    text: Annotated[bool, typer.Option("--text", help="Each line is a text.")] = False,
    jsonl: Annotated[
        bool, typer.Option("--jsonl", help="Each line is a JSON object; any other is an error.")
    ] = False,
    as_json: AsJson = False,
    options: Options,
) -> None:
    """Rank the lines on standard input, best first: text, JSON lines or a JSON array.

    Lines are JSON where the first one is a JSON object, else text; --text and --jsonl say which. A
    terminal gets a table; a pipe, or --json, gets JSON lines: the fields that came in, and index,
    relevance_score and truncated, which replace fields of these names.
    """
    from ..reranker import Reranker
    from .search import rerank as rerank_lines

    if text and jsonl:
        raise InputError("--text and --jsonl must not be given both: got both")
    if sys.stdin is None:
        raise InputError("standard input must be open, with lines to rank: it is closed")
    if sys.stdin.isatty():
        note("type or paste lines to rank, then end the input")
    with Reranker.from_config(RerankerConfig(**options)) as reranker:
        rerank_lines(
            query,
            sys.stdin.buffer.read(),
            ranker=reranker,
            top_n=top_n,
            score_threshold=score_threshold,
            text_field=text_field,
            form="text" if text else "jsonl" if jsonl else "auto",
            as_json=as_json,
        )


Data = Annotated[
    Path, typer.Argument(metavar="DATA", help="BEIR or TREC folder: corpus, queries, qrels.")
]
Split = Annotated[str | None, typer.Option(help="Use qrels/SPLIT.tsv.")]
CorpusFile = Annotated[Path | None, _file("Documents outside DATA: JSONL, TSV or TREC.")]
QueriesFile = Annotated[Path | None, _file("Queries outside DATA: JSONL, TSV or topics.")]
QrelsFile = Annotated[Path | None, _file("Judgements outside DATA.")]
PerQuery = Annotated[bool, typer.Option("--per-query", help="Show every query.")]


@app.command()
@takes(but=("rerank_count",))
def evaluate(
    data: Data,
    *,
    run: Annotated[Path | None, _file("TREC run to rerank. None: BM25's.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the reranked TREC run here.")
    ] = None,
    split: Split = None,
    corpus: CorpusFile = None,
    queries: QueriesFile = None,
    qrels: QrelsFile = None,
    rerank_count: RerankCount = 100,
    per_query: PerQuery = False,
    as_json: AsJson = False,
    options: Options,
) -> None:
    """Measure reranking on judged queries: nDCG@10, MRR@10 and recall, before and after.

    Without --fuse and --early-exit also what fusing with the first stage's scores would change, by
    a paired test.
    """
    from ..reranker import Reranker
    from .collection import read_collection
    from .evaluate import rerank_collection, show

    collection = read_collection(
        data, split=split, corpus=corpus, queries=queries, qrels=qrels, tell=note
    )
    config, candidates = _phases(options, rerank_count)
    with Reranker.from_config(config) as reranker:
        report = rerank_collection(
            collection,
            reranker,
            run=run,
            candidates=candidates,
            fusing=config.fuse is None and config.early_exit is None,
            output=output,
        )
    show(report, per_query=per_query, as_json=as_json)


@app.command()
@takes(but=("calibration", "early_exit", "rerank_count", "rest", "fuse"))
def calibrate(
    data: Data,
    *,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where the calibration goes, a small JSON file.")
    ] = Path("calibration.json"),
    run: Annotated[Path | None, _file("TREC run whose documents are scored. None: BM25's.")] = None,
    split: Split = None,
    corpus: CorpusFile = None,
    queries: QueriesFile = None,
    qrels: QrelsFile = None,
    rerank_count: RerankCount = 100,
    precision: Annotated[
        list[float] | None,
        typer.Option(min=0, max=1, help="To find a threshold for; repeat. [0.5, 0.8, 0.9]"),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the reliability diagram here, as .png or .svg.")
    ] = None,
    as_json: AsJson = False,
    options: Options,
) -> None:
    """Make scores probabilities: fit them to judged queries, for --calibration FILE.

    Documents of a grade above 0 are relevant, others and those that nobody judged are not. The
    probabilities are those of such candidates as were scored here.
    """
    from .calibrate import calibrate as fit
    from .calibrate import draw, show
    from .collection import read_collection
    from .evaluate import retriever

    collection = read_collection(
        data, split=split, corpus=corpus, queries=queries, qrels=qrels, tell=note
    )
    retrieve = retriever(collection, run, rerank_count)
    wanted = precision or [0.5, 0.8, 0.9]
    fitted = fit(RerankerConfig(**options), collection, retrieve, wanted)
    fitted.calibration.save(output)
    if plot is not None:
        draw(fitted, plot)
    show(fitted, output, as_json=as_json)


Source = Annotated[
    Path, typer.Argument(metavar="IN", exists=True, help="Parquet file or folder, or TREC run.")
]
Target = Annotated[
    Path, typer.Argument(metavar="OUT", help="Folder for parquet, or a TREC run (.run, .trec).")
]
Candidates = Annotated[int, typer.Option(min=1, help="Of a query of a TREC run: the best.")]


@app.command()
@takes(but=("token", "cache", "document_tokens"))  # they do not travel to actors
def bulk(
    source: Source,
    target: Target,
    *,
    ids: Annotated[str, typer.Option(help="Column that tells rows apart.")] = "qid",
    query: Annotated[str, typer.Option(help="Column of the queries.")] = "query",
    documents: Annotated[str, typer.Option(help="Column of the lists of texts.")] = "documents",
    error: Annotated[str, typer.Option(help="Column for what a row failed of.")] = "error",
    corpus: CorpusFile = None,
    queries: QueriesFile = None,
    candidates: Candidates = 1000,
    top_n: Annotated[
        int | None, typer.Option("--top-n", "-n", min=1, help="How many to keep. None: all.")
    ] = None,
    score_threshold: Threshold = None,
    num_actors: Annotated[int, typer.Option(min=1, help="Engines, each in its process.")] = 1,
    cpus_per_actor: Annotated[float, typer.Option(min=0, help="CPUs of each.")] = 1.0,
    gpus_per_actor: Annotated[float, typer.Option(min=0, help="GPUs of each.")] = 0.0,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows ranked together.")] = 64,
    as_json: AsJson = False,
    options: Options,
) -> None:
    """Rank lists in bulk with Ray: on this machine, or on the cluster of RAY_ADDRESS.

    Run again after a failure, it goes on where it stopped; what was done is told by OUT.checkpoint.
    A TREC run is joined with --corpus and --queries. A bad row has its error beside it.
    """
    from ..ray import Job  # lazy: Ray takes its time
    from .bulk import run

    job = Job(
        config=RerankerConfig(**options),
        query=query,
        documents=documents,
        error=error,
        top_n=top_n,
        score_threshold=score_threshold,
        num_actors=num_actors,
        cpus_per_actor=cpus_per_actor,
        gpus_per_actor=gpus_per_actor,
        batch_size=batch_size,
    )
    run(source, target, job, ids, corpus, queries, candidates, as_json=as_json)


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="TREC run.", exists=True, dir_okay=False)],
    b: Annotated[Path, typer.Argument(metavar="B", help="TREC run.", exists=True, dir_okay=False)],
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="BEIR or TREC folder, or a file of judgements.")
    ],
    *,
    split: Split = None,
    per_query: PerQuery = False,
    as_json: AsJson = False,
) -> None:
    """Compare two runs on judged queries: each measure of both, and a paired test of the change."""
    from .evaluate import compare_runs, show

    show(compare_runs(a, b, data, split=split), per_query=per_query, as_json=as_json)


Budget = Annotated[
    float | None, typer.Option(min=0, help="Name the best setting with p95 within this.")
]
TriedCounts = Annotated[
    list[int] | None, typer.Option(min=1, help="Candidates to try; repeat. [20, 50, 100]")
]
TriedWindows = Annotated[
    list[str], typer.Option(metavar="KEY=VALUE,...", help='To try, or "none"; repeat. [none]')
]
TriedExits = Annotated[
    list[str],
    typer.Option(
        metavar="KEY=VALUE,...",
        help='To try, or "none"; repeat. Without layer: each layer that has a head. [none]',
    ),
]
TriedLengths = Annotated[
    list[int] | None, typer.Option(min=1, help="Token limits to try; repeat. [256, 512]")
]


@app.command()
@takes(("model", "device", *FETCHED))
def tune(
    data: Annotated[
        Path | None,
        typer.Argument(metavar="[DATA]", help="BEIR or TREC folder. None: speed."),
    ] = None,
    *,
    budget_ms: Budget = None,
    rerank_count: TriedCounts = None,
    windows: TriedWindows = ["none"],  # noqa: B006  # typer copies it
    early_exit: TriedExits = ["none"],  # noqa: B006  # typer copies it
    max_length: TriedLengths = None,
    queries: Annotated[int, typer.Option(min=1, help="Queries per setting.")] = 20,
    as_json: AsJson = False,
    options: Options,
) -> None:
    """Measure this machine and this data: quality and latency of every setting, and fusion.

    Quality has the 95 % interval of its mean over queries; what lies within the noise of the best,
    by a paired test, is no worse.
    """
    from .collection import read_collection
    from .tune import TRIED, Setting, early_exits, show
    from .tune import tune as measure

    counts, max_length = rerank_count or [20, 50, 100], max_length or [256, 512]
    cut = [Windows.of(None if it == "none" else mapping("--windows", it)) for it in windows]
    config, found = RerankerConfig(**options), []
    stops = early_exits(config, early_exit)
    loads = len(TRIED) * len(max_length) * len(cut) * len(stops)
    with progress("measuring", loads * len(counts)) as advance:
        for one in measure(
            config,
            read_collection(data, tell=note) if data is not None else None,
            rerank_counts=counts,
            max_lengths=max_length,
            windows=cut,
            early_exits=stops,
            num_queries=queries,
        ):
            found.append(one)
            advance(1 if isinstance(one, Setting) else len(counts))
    show(found, budget_ms=budget_ms, as_json=as_json, options=options)


@app.command()
@takes((*FETCHED, "prompt", "template", "answers", "label", "special_tokens"))
def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id or local folder.")],
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Where the ONNX checkpoint goes.")
    ],
    *,
    dtype: Annotated[
        Literal["float32", "float16", "int8"], typer.Option(help="Numbers the file holds.")
    ] = "float32",
    exits: Annotated[
        Path | None, _file("Exit heads to take along. None: the checkpoint's own.")
    ] = None,
    layout: Annotated[
        Literal["checkpoint", "vespa"],
        typer.Option(help="A checkpoint's files, or an application package for Vespa."),
    ] = "checkpoint",
    as_json: AsJson = False,
    options: Options,
) -> None:
    """Write a checkpoint as ONNX, checked against torch before it is kept."""
    from ..export import FILE_NAMES, export_onnx, export_vespa

    with progress("exporting and checking"):
        if layout == "vespa":
            own = _for_vespa({**options, "exits": exits})
            file = export_vespa(model, folder, dtype, **own) / "models" / "model.onnx"
        else:
            file = export_onnx(model, folder, dtype, exits=exits, **options) / FILE_NAMES[dtype]
    megabytes = round(file.stat().st_size / 1e6, 1)
    if as_json:
        emit({"file": str(file), "megabytes": megabytes, "dtype": dtype})
    else:
        say(f"{file} ({megabytes} MB), scores checked against torch")


def _for_vespa(options: Options) -> Options:
    """Without the words around a pair, which Vespa has no place for; ConfigError where given."""
    around = ("prompt", "template", "answers", "special_tokens", "exits")
    worded = [name for name in around if options.get(name) is not None]
    if worded:
        raise ConfigError(f"layout vespa has no place for {', '.join(worded)}: leave them out")
    return {name: value for name, value in options.items() if name not in around}


@app.command()
@takes(but=("model",))
def info(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="None: models on this machine.")
    ] = None,
    *,
    as_json: AsJson = False,
    options: Options,
) -> None:
    """What runs here and why; without MODEL, the families tested and the models at hand."""
    facts: dict[str, Any]
    if model is None:
        from .models import known_models

        facts = known_models()
    else:
        from ..reranker import Reranker

        with Reranker.from_config(RerankerConfig(model=model, **options)) as reranker:
            facts = reranker.info().to_dict()
    if as_json:
        emit(facts)
        return
    table(["what", "here"], [[name, _shown(value)] for name, value in facts.items()])


def _shown(value: Any) -> str | list[str]:
    return list(map(str, value)) if isinstance(value, list) else str(value)


@app.command()
def models(*, as_json: AsJson = False) -> None:
    """Known rerankers by what is published of them, each fact with its source in --json."""
    from ..published import PUBLISHED
    from .models import HEADINGS, rows

    if as_json:
        emit([one.to_dict() for one in PUBLISHED])
        return
    table(HEADINGS, rows())
    note("nDCG@10: TREC DL 2019; MRR@10: MS MARCO dev; an empty cell: nothing published was found")


@app.command()
def demo(*, as_json: AsJson = False) -> None:
    """Rerank the example collection offline, through LangChain and LlamaIndex."""
    from .demo import run

    run(as_json=as_json)


tokens = typer.Typer(help="Documents' tokens, kept so that they are read once.")
app.add_typer(tokens, name="tokens")

WRITES = (
    "model",
    *FETCHED,
    "prompt",
    "template",
    "answers",
    "special_tokens",
    "backend",
    "windows",
)
"""What decides how a document is written and cut as tokens, and where the model is found."""


@tokens.command()
@takes(WRITES)
def build(
    corpus: Annotated[Path, typer.Argument(metavar="CORPUS", exists=True, dir_okay=False)],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the tokens go.")],
    *,
    as_json: AsJson = False,
    options: Options,
) -> None:
    """Tokenise a corpus (JSONL with _id and text, TSV or TREC) for document_tokens=FOLDER.

    A document is found again by its id and its whole text. What is there already stays, and counts
    for ids that are not in CORPUS.
    """
    from .tokens import build as build_tokens

    documents = build_tokens(corpus, folder, RerankerConfig(**options))
    if as_json:
        emit({"documents": documents, "folder": str(folder)})
    else:
        say(f"{folder}: tokens of {documents} documents")


exits = typer.Typer(help="Heads for early exits, by which weak candidates stop after some layers.")
app.add_typer(exits, name="exits")


@exits.callback()
def _exits() -> None:
    """Heads for early exits, by which weak candidates stop after some layers."""


@exits.command()
@takes(("model", "device", *FETCHED, "prompt", "template", "answers", "label", "backend", "dtype"))
def train(
    corpus: Annotated[Path, typer.Argument(metavar="CORPUS", exists=True, dir_okay=False)],
    queries: Annotated[Path, typer.Argument(metavar="QUERIES", exists=True, dir_okay=False)],
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Where the heads go; the model's own will do.")
    ],
    *,
    run: Annotated[Path | None, _file("TREC run with the candidates. None: BM25's.")] = None,
    candidates: Annotated[int, typer.Option(min=1, help="Documents per query.")] = 50,
    layer: Annotated[
        list[int] | None, typer.Option(min=1, help="To fit a head for; repeat. [2, 3, 4]")
    ] = None,
    as_json: AsJson = False,
    options: Options,
) -> None:
    """Fit heads for early_exit on queries and a corpus, without judgements.

    A head foretells the logit of the last layer from what an earlier one has; the model stays as it
    is. Files are those of `evaluate`: JSONL, tab-separated or TREC.
    """
    from .exits import train as train_exits

    config = RerankerConfig(**options)
    file, fit = train_exits(
        corpus, queries, folder, config, run=run, candidates=candidates, layers=layer or (2, 3, 4)
    )
    rows = [
        {"layer": at, "explained": round(fit.explained[at], 4), "kept": round(fit.kept[at], 4)}
        for at in fit.heads
    ]
    if as_json:
        emit({"file": str(file), "pairs": fit.pairs, "layers": rows})
        return
    say(f"{file}: heads fitted on {fit.pairs} pairs; of queries left out at first:")
    header = ["layer", "variance explained", "ten best among fifteen"]
    table(header, [[str(value) for value in row.values()] for row in rows])
