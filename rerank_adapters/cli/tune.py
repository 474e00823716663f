"""`tune`: what this machine and this data ask for, measured."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..config import BackendName, DType
from ..errors import BackendError, ConfigError, MissingDependencyError, ModelError
from ..reranker import Reranker
from .corpus import example_folder
from .evaluate import Collection, bm25_run, evaluate, read_collection

TRIED: tuple[tuple[BackendName, DType], ...] = (
    ("onnx", "float32"),
    ("onnx", "int8"),
    ("torch", "float32"),
    ("torch", "bfloat16"),
)


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to run, and what it cost and gave."""

    backend: str
    dtype: str
    candidates: int
    max_length: int
    p50_ms: float
    p95_ms: float
    ndcg10: float | None


@dataclass(frozen=True, slots=True)
class Refused:
    """A backend and dtype that cannot run here, and why."""

    backend: str
    dtype: str
    why: str


def tune(
    model: str,
    collection: Collection | None,
    *,
    candidates: Sequence[int],
    max_lengths: Sequence[int],
    num_queries: int,
) -> Iterator[Setting | Refused]:
    """Every backend × dtype × candidates × max_length, as each is measured.

    Quality needs judged queries: without *collection* the example's texts are timed alone.
    """
    judged = collection is not None
    data = _sample(collection or read_collection(example_folder()), num_queries)
    retrieve = bm25_run(data, max(candidates))
    found = {query: retrieve(text) for query, text in data.queries.items()}
    for (backend, dtype), length in itertools.product(TRIED, max_lengths):
        try:
            reranker = Reranker.from_pretrained(
                model, backend=backend, dtype=dtype, max_length=length
            )
        except (BackendError, ConfigError, MissingDependencyError, ModelError) as error:
            yield Refused(backend, dtype, str(error))
            continue
        with reranker:
            for count in candidates:
                yield _measured(reranker, data, found, backend, dtype, count, length, judged=judged)


def _sample(collection: Collection, count: int) -> Collection:
    names = sorted(collection.queries)
    kept = np.random.default_rng(0).permutation(len(names))[:count]
    return Collection(
        {names[place]: collection.queries[names[place]] for place in sorted(kept)},
        collection.qrels,
        collection.documents,
    )


def _measured(
    reranker: Reranker,
    data: Collection,
    found: dict[str, list[tuple[str, float]]],
    backend: str,
    dtype: str,
    count: int,
    length: int,
    *,
    judged: bool,
) -> Setting:
    reranker.rerank("warm up", ["the first call pays for memory"] * 2, timeout=None)
    report = evaluate(data, lambda query, _: found[query][:count], reranker, candidates=count)
    p50, p95 = report.latency()
    quality = report.mean("after", report.measures[0]) if judged else None
    return Setting(backend, dtype, count, length, p50, p95, quality)


def best(settings: Sequence[Setting], budget_ms: float) -> Setting | None:
    """The best quality whose 95th percentile fits the budget; without quality, the most candidates
    and longest texts; ties go to the faster. None where nothing fits.
    """
    fitting = [setting for setting in settings if setting.p95_ms <= budget_ms]
    return max(
        fitting,
        key=lambda one: (
            one.ndcg10 or 0.0,
            *((one.candidates, one.max_length) if one.ndcg10 is None else ()),
            -one.p50_ms,
        ),
        default=None,
    )
