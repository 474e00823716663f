"""Lists of candidates in bulk: one engine in each actor of a Ray Data pool."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
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
from .notes import go_on

SPARE_CPUS = 2
"""CPUs beside the actors' own: one reads, one leaves out what was done. Without, Ray waits."""

RESULTS: dict[str, tuple[Any, Callable[[RankedDocument], Any]]] = {
    "indices": (pa.int64(), lambda it: it.index),
    "relevance_scores": (pa.float64(), lambda it: float(it.score)),
    "truncated": (pa.bool_(), lambda it: it.truncated),
}
"""The columns of a result: indices into a row's documents, best first, and what goes with them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is done with each list, and by how many engines.

    config           the model: one engine in each actor. What is alive or secret cannot travel
    query            the column of a row's text; null is its error
    documents        the column of its list of texts
    error            the column that a result has for what a row failed of, null where it did not
    top_n, score_threshold   as `Reranker.rerank` has them
    num_actors       engines, each in its own process
    cpus_per_actor, gpus_per_actor   what Ray reserves for each; on CPUs its number of threads too
    batch_size       rows that are ranked together; what is done is noted by as many

    Raises ConfigError and InputError, naming the option.

    >>> Job(num_actors=2, top_n=10).batch_size
    64
    """

    config: RerankerConfig = field(default_factory=RerankerConfig)
    query: str = "query"
    documents: str = "documents"
    error: str = "error"
    top_n: int | None = None
    score_threshold: float | None = None
    num_actors: int = 1
    cpus_per_actor: float = 1.0
    gpus_per_actor: float = 0.0
    batch_size: int = 64

    def __post_init__(self) -> None:
        check_selection(self.top_n, self.score_threshold)
        for name in ("num_actors", "batch_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name} must be an int of at least 1: got {value!r}")
        for name in ("cpus_per_actor", "gpus_per_actor"):
            share = getattr(self, name)
            if isinstance(share, bool) or not isinstance(share, int | float) or share < 0:
                raise ConfigError(f"{name} must be a number of at least 0: got {share!r}")
        travelling(self.config, self.cpus_per_actor, self.gpus_per_actor)

    def travelling(self) -> Job:
        """Give the job as an actor has it, whose engine takes the actor's share of the CPUs."""
        config = travelling(self.config, self.cpus_per_actor, self.gpus_per_actor)
        return replace(self, config=config)


def rerank_dataset(dataset: ray.data.Dataset, job: Job | None = None) -> ray.data.Dataset:
    """Rank the documents of each row for its query, as *job* says; lazy, as Ray Data is.

    A row comes back with all its columns and `indices` (int64, into its documents, best first),
    `relevance_scores` (float64) and `truncated`, lists of equal length. A row that cannot be ranked
    has nulls there, and its error's words beside them. A list is never split. What ends an engine
    for good ends the job. In actors ModelError and BackendError are raised.

    To resume, see `rerank_files`.
    """
    job = _checked(job)
    return dataset.map_batches(
        _Actor,
        batch_size=job.batch_size,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=job.num_actors),
        num_cpus=job.cpus_per_actor,
        num_gpus=job.gpus_per_actor or None,
        fn_constructor_args=(job.travelling(),),
        udf_modifying_row_count=False,
    )


class _Actor:
    """One engine in its process; what breaks is loaded again at the next batch."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._lease = acquire(job.config)
        self._lease.get()

    def __call__(self, table: pa.Table) -> pa.Table:
        job = self._job
        _check_columns(table.column_names, job)
        queries, lists = table[job.query].to_pylist(), table[job.documents].to_pylist()
        requests = [RerankRequest(*row) for row in zip(queries, lists, strict=True)]
        found = self._lease.get().rerank_many(
            requests,
            top_n=job.top_n,
            score_threshold=job.score_threshold,
            return_exceptions=True,
        )
        for one in found:
            if isinstance(one, ClosedError):
                raise one  # nobody's row is at fault: Ray's to start again
        return self._with(table, found)

    def _with(self, table: pa.Table, found: list[Ranking | Exception]) -> pa.Table:
        for name, (kind, value) in RESULTS.items():
            lists = [None if isinstance(one, Exception) else [*map(value, one)] for one in found]
            table = table.append_column(name, pa.array(lists, pa.list_(kind)))
        errors = [_words(one) if isinstance(one, Exception) else None for one in found]
        return table.append_column(self._job.error, pa.array(errors, pa.string()))


def _words(error: Exception) -> str:
    """The kind and the message, without the number that the row had in its batch."""
    message = re.sub(r"^requests\[\d+\]: ", "", str(error))
    return f"{type(error).__name__}: {message}"


def _checked(job: Job | None) -> Job:
    if not isinstance(job, Job | None):
        raise ConfigError(f"job must be a Job: got {job!r:.80}")
    return job or Job()


def _check_columns(names: Collection[str], job: Job) -> None:
    for name in (job.query, job.documents):
        if name not in names:
            raise InputError(f"the rows must have a column {name!r}: got {[*names]}")
    for name in (*RESULTS, job.error):
        if name in names:
            raise InputError(f"the rows must have no column {name!r}: rename it")


def rerank_files(
    source: str | Path, target: str | Path, job: Job | None = None, *, ids: str = "qid"
) -> None:
    """`rerank_dataset` from parquet to a folder of parquet, less the texts; run it again to resume.

    *ids* is a column that tells rows apart. Rows that are on disk are not ranked again, each is
    there once, in no order; Ray keeps account of them in the folder *target*.checkpoint, which may
    go when the job is done. On a cluster both folders must be everybody's. InputError: columns that
    are not there, ids that repeat, a *target* that another job wrote: of other options, of rows
    that were others then. Rows may be added.
    """
    job = _checked(job)
    source, target = _whole(source), _whole(target)
    _check_rows(source, job, ids)
    checkpoint = f"{target}.checkpoint"
    cpus = job.num_actors * job.cpus_per_actor + SPARE_CPUS
    with running(cpus, job.num_actors * job.gpus_per_actor), _noted(ids, checkpoint):
        columns, cut = (ids, job.query, job.documents, job.error), (job.top_n, job.score_threshold)
        go_on(source, target, checkpoint, repr((job.config, columns, cut)))
        read = ray.data.read_parquet(source)
        rows = rerank_dataset(read.repartition(target_num_rows_per_block=job.batch_size), job)
        rows.drop_columns([job.documents]).write_parquet(target, mode="append")


def _whole(path: str | Path) -> str:
    """The path from its root on, for Ray's processes have folders of their own; or a URL."""
    text = str(path)
    return text.rstrip("/") if "://" in text else str(Path(text).absolute())


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


def _check_rows(source: str, job: Job, ids: str) -> None:
    """InputError where a column is missing, or taken, or an id is null or comes twice."""
    found = pads.dataset(source, format="parquet")
    names = found.schema.names
    if ids not in names:
        raise InputError(f"ids must name a column of {source}: got {ids!r} of {names}")
    _check_columns(names, job)
    column = found.to_table(columns=[ids])[ids]
    if column.null_count or len(pc.unique(column)) != len(column):
        raise InputError(f"ids must tell rows apart: {ids!r} of {source} has nulls or repeats")
