"""Lists of candidates in bulk: one engine in each actor of a Ray Data pool."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import ray
from ray.data.checkpoint import CheckpointConfig

from ..checks import check_selection
from ..config import RerankerConfig
from ..errors import ClosedError, ConfigError, InputError
from ..protocols import RerankRequest
from ..ranking import RankedDocument, Ranking
from ..sharing import acquire
from .actors import running, travelling

SPARE_CPUS = 2
"""CPUs beside the actors' own: one reads, one leaves out what was done. Without, Ray waits."""

RESULTS: dict[str, tuple[Any, Callable[[RankedDocument], Any]]] = {
    "indices": (pa.int64(), lambda it: it.index),
    "relevance_scores": (pa.float64(), lambda it: float(it.score)),
    "truncated": (pa.bool_(), lambda it: it.truncated),
}
"""The columns of a result: indices into a row's documents, best first, and what goes with them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Columns:
    query: str
    documents: str
    error: str


def rerank_dataset(
    dataset: ray.data.Dataset,
    *,
    config: RerankerConfig | None = None,
    query: str = "query",
    documents: str = "documents",
    top_n: int | None = None,
    score_threshold: float | None = None,
    num_actors: int = 1,
    cpus_per_actor: float = 1.0,
    gpus_per_actor: float = 0.0,
    batch_size: int = 64,
    error_column: str = "error",
) -> ray.data.Dataset:
    """Rank the documents of each row for its query, by *num_actors* engines; lazy, as Ray Data is.

    A row is a text under *query* and a list of texts under *documents*; both may be null. It comes
    back with all its columns and `indices` (int64, into its documents, best first),
    `relevance_scores` (float64) and `truncated`, lists of equal length. A row that cannot be ranked
    has nulls there, and what was wrong under *error_column*; the others have null there. A list is
    never split. What ends an engine for good ends the job.

    *batch_size* rows are ranked together. *config*: None is the bundled model. To resume, see
    `rerank_files`. Raises ConfigError and InputError at once; in actors ModelError, BackendError.
    """
    check_selection(top_n, score_threshold)
    for name, value, least in (("num_actors", num_actors, 1), ("batch_size", batch_size, 1)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ConfigError(f"{name} must be an int of at least {least}: got {value!r}")
    for name, share in (("cpus_per_actor", cpus_per_actor), ("gpus_per_actor", gpus_per_actor)):
        if isinstance(share, bool) or not isinstance(share, int | float) or share < 0:
            raise ConfigError(f"{name} must be a number of at least 0: got {share!r}")
    config = travelling(config or RerankerConfig(), cpus_per_actor, gpus_per_actor)
    return dataset.map_batches(
        _Actor,
        batch_size=batch_size,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=num_actors),
        num_cpus=cpus_per_actor,
        num_gpus=gpus_per_actor or None,
        fn_constructor_args=(
            config,
            _Columns(query=query, documents=documents, error=error_column),
            top_n,
            score_threshold,
        ),
        udf_modifying_row_count=False,
    )


class _Actor:
    """One engine in its process; what breaks is loaded again at the next batch."""

    def __init__(
        self,
        config: RerankerConfig,
        columns: _Columns,
        top_n: int | None,
        score_threshold: float | None,
    ) -> None:
        self._columns = columns
        self._cut: dict[str, Any] = {"top_n": top_n, "score_threshold": score_threshold}
        self._lease = acquire(config)
        self._lease.get()

    def __call__(self, table: pa.Table) -> pa.Table:
        self._check(table)
        queries = table[self._columns.query].to_pylist()
        lists = table[self._columns.documents].to_pylist()
        requests = [RerankRequest(*row) for row in zip(queries, lists, strict=True)]
        found = self._lease.get().rerank_many(requests, **self._cut, return_exceptions=True)
        for one in found:
            if isinstance(one, ClosedError):
                raise one  # nobody's row is at fault: Ray's to start again
        return self._with(table, found)

    def _check(self, table: pa.Table) -> None:
        for name in (self._columns.query, self._columns.documents):
            if name not in table.column_names:
                raise InputError(f"the dataset must have a column {name!r}: got {table.schema}")
        for name in (*RESULTS, self._columns.error):
            if name in table.column_names:
                raise InputError(f"the dataset must have no column {name!r}: rename it")

    def _with(self, table: pa.Table, found: list[Ranking | Exception]) -> pa.Table:
        for name, (kind, value) in RESULTS.items():
            lists = [None if isinstance(one, Exception) else [*map(value, one)] for one in found]
            table = table.append_column(name, pa.array(lists, pa.list_(kind)))
        errors = [_words(one) if isinstance(one, Exception) else None for one in found]
        return table.append_column(self._columns.error, pa.array(errors, pa.string()))


def _words(error: Exception) -> str:
    """The kind and the message, without the number that the row had in its batch."""
    message = re.sub(r"^requests\[\d+\]: ", "", str(error))
    return f"{type(error).__name__}: {message}"


def rerank_files(
    source: str | Path,
    target: str | Path,
    *,
    ids: str = "qid",
    config: RerankerConfig | None = None,
    query: str = "query",
    documents: str = "documents",
    top_n: int | None = None,
    score_threshold: float | None = None,
    num_actors: int = 1,
    cpus_per_actor: float = 1.0,
    gpus_per_actor: float = 0.0,
    batch_size: int = 64,
    error_column: str = "error",
) -> None:
    """`rerank_dataset` from parquet to a folder of parquet, less the texts; run it again to resume.

    *ids* is a column that tells rows apart. Rows that are on disk are not ranked again, each is
    there once, in no order; Ray keeps account of them in the folder *target*.checkpoint, which may
    go when the job is done. On a cluster both folders must be everybody's. InputError: ids that
    repeat, a *target* that another job wrote.
    """
    _check_ids(str(source), ids)
    checkpoint = f"{target}.checkpoint"
    cpus, gpus = num_actors * cpus_per_actor + SPARE_CPUS, num_actors * gpus_per_actor
    said = repr((config or RerankerConfig(), ids, query, documents, top_n, score_threshold))
    with running(cpus, gpus), _noted(ids, checkpoint):
        read = ray.data.read_parquet(str(source))
        rows = rerank_dataset(
            read.repartition(target_num_rows_per_block=batch_size),
            config=config,
            query=query,
            documents=documents,
            top_n=top_n,
            score_threshold=score_threshold,
            num_actors=num_actors,
            cpus_per_actor=cpus_per_actor,
            gpus_per_actor=gpus_per_actor,
            batch_size=batch_size,
            error_column=error_column,
        )
        _check_target(str(target), checkpoint, said)
        rows.drop_columns([documents]).write_parquet(str(target), mode="append")


@contextmanager
def _noted(ids: str, folder: str) -> Iterator[None]:
    """While inside, what is written is noted in *folder*, and what is noted is not read again."""
    context = ray.data.DataContext.get_current()
    before = context.checkpoint_config
    noted = CheckpointConfig(ids, folder, delete_checkpoint_on_success=False)
    context.checkpoint_config = noted
    try:
        yield
    finally:
        context.checkpoint_config = before


def _check_target(target: str, checkpoint: str, said: str) -> None:
    """InputError where *target* holds what another job wrote: by other options, or who knows by.

    The options stand beside it, in *target*.job. What a URL names is nobody's to look into.
    """
    if "://" in target:
        return
    folder, job = Path(target), Path(f"{target}.job")
    if folder.is_dir() and any(folder.iterdir()):
        if not Path(checkpoint).is_dir():
            raise InputError(
                f"target must be a new folder, or have its .checkpoint: got {target!r}"
            )
        if job.exists() and job.read_text("utf-8") != said:
            raise InputError(f"target must be a new folder where options differ: see {job}")
    job.write_text(said, "utf-8")


def _check_ids(source: str, ids: str) -> None:
    """InputError where there is no such column, or an id is null or comes twice."""
    found = pads.dataset(source, format="parquet")
    if ids not in found.schema.names:
        raise InputError(f"ids must name a column of {source}: got {ids!r} of {found.schema.names}")
    column = found.to_table(columns=[ids])[ids]
    if column.null_count or len(pc.unique(column)) != len(column):
        raise InputError(f"ids must tell rows apart: {ids!r} of {source} has nulls or repeats")
