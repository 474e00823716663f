"""`tune`: what this machine and this data ask for, measured."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ..backends import BACKENDS
from ..config import RerankerConfig
from ..errors import BackendError, ConfigError, MissingDependencyError, ModelError
from ..reranker import Reranker
from .collection import Collection, Row, read_collection
from .console import emit, say, table
from .corpus import example_folder
from .evaluate import bm25_run, evaluate

TRIED = tuple(
    (name, dtype)
    for name, entry in BACKENDS.items()
    for dtype in entry.dtypes
    if dtype != "float16"  # on CPUs slower than float32, and what a GPU takes by itself
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
    config: RerankerConfig,
    collection: Collection | None,
    *,
    candidates: Sequence[int],
    max_lengths: Sequence[int],
    num_queries: int,
) -> Iterator[Setting | Refused]:
    """Every backend × dtype × candidates × max_length of *config*, as each is measured.

    Quality needs judged queries: without *collection* the example's texts are timed alone.
    """
    judged = collection is not None
    data = _sample(collection or read_collection(example_folder()), num_queries)
    retrieve = bm25_run(data, max(candidates))
    found = {query: retrieve(text) for query, text in data.queries.items()}
    for (backend, dtype), length in itertools.product(TRIED, max_lengths):
        try:
            reranker = Reranker.from_config(_config(config, backend, dtype, length))
        except (BackendError, ConfigError, MissingDependencyError, ModelError) as error:
            yield Refused(backend, dtype, str(error))
            continue
        with reranker:
            for count in candidates:
                yield _measured(reranker, data, found, backend, dtype, count, length, judged=judged)


def _config(config: RerankerConfig, backend: str, dtype: str, length: int) -> RerankerConfig:
    # The registry's names are checked when the value is made, so that no cast hides a wrong one.
    names: dict[str, Any] = {"backend": backend, "dtype": dtype}
    return replace(config, max_length=length, **names)


def _sample(collection: Collection, count: int) -> Collection:
    names = sorted(collection.queries)
    kept = np.random.default_rng(0).permutation(len(names))[:count]
    return Collection(
        {names[index]: collection.queries[names[index]] for index in sorted(kept)},
        collection.qrels,
        collection.documents,
    )


def _measured(
    reranker: Reranker,
    data: Collection,
    found: dict[str, list[Row]],
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


def show(found: Sequence[Setting | Refused], *, budget_ms: float | None, as_json: bool) -> None:
    """Every setting measured, what cannot run here and why, and the best within the budget."""
    settings = [one for one in found if isinstance(one, Setting)]
    refused = list(dict.fromkeys(one for one in found if isinstance(one, Refused)))
    if not settings:
        raise ModelError(f"no setting runs here: {refused[0].why}")
    chosen = best(settings, budget_ms) if budget_ms is not None else None
    if as_json:
        emit(
            {
                "settings": [asdict(one) for one in settings],
                "refused": [asdict(one) for one in refused],
                "best": asdict(chosen) if chosen else None,
            }
        )
        return
    table(
        ["backend", "dtype", "candidates", "max_length", "p50 ms", "p95 ms", "nDCG@10"],
        [_cells(one) for one in settings],
    )
    for one in refused:
        say(f"{one.backend} {one.dtype} does not run here: {one.why}", style="dim")
    if budget_ms is not None:
        say(_verdict(chosen, budget_ms))


def _cells(one: Setting) -> list[str]:
    quality = "–" if one.ndcg10 is None else f"{one.ndcg10:.4f}"
    sizes = [str(one.candidates), str(one.max_length)]
    return [one.backend, one.dtype, *sizes, f"{one.p50_ms:.1f}", f"{one.p95_ms:.1f}", quality]


def _verdict(chosen: Setting | None, budget_ms: float) -> str:
    if chosen is None:
        return f"nothing fits {budget_ms:g} ms: fewer candidates or a shorter max_length would"
    return (
        f"best within {budget_ms:g} ms: backend={chosen.backend!r}, dtype={chosen.dtype!r}, "
        f"{chosen.candidates} candidates, max_length={chosen.max_length}"
    )
