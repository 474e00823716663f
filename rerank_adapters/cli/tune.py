"""`tune`: what this machine and this data ask for, measured."""

from __future__ import annotations

import itertools
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from ..backends import BACKENDS
from ..config import RerankerConfig
from ..early_exit import EarlyExit
from ..errors import BackendError, ConfigError, MissingDependencyError, ModelError
from ..loading.exits import head_layers
from ..passages import Windows
from ..reranker import Reranker
from .collection import Collection, Row, read_collection
from .console import emit, say, table
from .corpus import example_folder
from .evaluate import LEVEL, Report, bm25_run, evaluate, randomisation_test, say_fusion
from .options import DEFAULTS, mapping

TRIED = tuple(
    (name, dtype)
    for name, entry in BACKENDS.items()
    for dtype in entry.dtypes
    if dtype != "float16"  # on CPUs slower than float32, and what a GPU takes by itself
)


PASTED = ("model", "revision", "device")
"""Options that all settings have in common, and that say what was measured."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to run, and what it cost and gave.

    ndcg10  the mean over queries, which lies within `half_width` of it with 95 % probability
    report  what was measured, by query
    """

    backend: str
    dtype: str
    rerank_count: int
    max_length: int
    windows: Windows | None
    early_exit: EarlyExit | None
    p50_ms: float
    p95_ms: float
    ndcg10: float | None
    half_width: float | None
    report: Report

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        values = {it.name: getattr(self, it.name) for it in fields(self) if it.name != "report"}
        kept = {name: it.to_dict() for name, it in self.grouped.items()}
        return {**values, "windows": None, "early_exit": None, **kept}

    @property
    def grouped(self) -> dict[str, Windows | EarlyExit]:
        """Options of several values, where they are set."""
        both = {"windows": self.windows, "early_exit": self.early_exit}
        return {name: it for name, it in both.items() if it is not None}

    @property
    def quality(self) -> list[float]:
        """NDCG@10 of each query."""
        name = str(self.report.measures[0])
        return [row[name] for row in self.report.after.values()]


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
    rerank_counts: Sequence[int],
    max_lengths: Sequence[int],
    windows: Sequence[Windows | None] = (None,),
    early_exits: Sequence[EarlyExit | None] = (None,),
    num_queries: int,
) -> Iterator[Setting | Refused]:
    """Every backend × dtype × max_length × windows × early exit × rerank_count, as measured.

    Quality needs judged queries: without *collection* the example's texts are timed alone.
    """
    judged = collection is not None
    data = _sample(collection or read_collection(example_folder()), num_queries)
    retrieve = bm25_run(data, max(rerank_counts))
    found = {query: retrieve(text) for query, text in data.queries.items()}
    for (backend, dtype), length, cut, early in itertools.product(
        TRIED, max_lengths, windows, early_exits
    ):
        # The registry's names are checked when the value is made: no cast hides a wrong one.
        names: dict[str, Any] = {"backend": backend, "dtype": dtype, "windows": cut}
        try:
            reranker = Reranker.from_config(
                replace(config, max_length=length, early_exit=early, **names)
            )
        except (BackendError, ConfigError, MissingDependencyError, ModelError) as error:
            yield Refused(backend, dtype, str(error))
            continue
        with reranker:
            for count in rerank_counts:
                report = _measured(reranker, data, found, count, fusing=judged and not early)
                p50, p95 = report.latency()
                mean, half = _mean(report) if judged else (None, None)
                took = (p50, p95, mean, half, report)
                yield Setting(backend, dtype, count, length, cut, early, *took)


def early_exits(config: RerankerConfig, given: Sequence[str]) -> list[EarlyExit | None]:
    """What each text of *given* means: "none", or values such as "layer=3,keep=15".

    Without a layer: each that *config*'s model, or the file of heads in the text, has a head for.
    Raises ConfigError, and ModelError where there is no such model.
    """
    found: list[EarlyExit | None] = []
    for text in given:
        values = None if text == "none" else mapping("--early-exit", text)
        if values is None or "layer" in values:
            found.append(EarlyExit.of(values))
            continue
        layers = head_layers(config, values.get("heads"))
        found += [EarlyExit.of({"layer": layer, **values}) for layer in layers]
    return list(dict.fromkeys(found))


def _sample(collection: Collection, count: int) -> Collection:
    names = sorted(collection.queries)
    kept = np.random.default_rng(0).permutation(len(names))[:count]
    return Collection(
        {names[index]: collection.queries[names[index]] for index in sorted(kept)},
        collection.qrels,
        collection.documents,
    )


def _measured(
    reranker: Reranker, data: Collection, found: dict[str, list[Row]], count: int, *, fusing: bool
) -> Report:
    reranker.rerank("warm up", ["the first call pays for memory"] * 2, timeout=None)
    return evaluate(
        data, lambda query, _: found[query][:count], reranker, candidates=count, fusing=fusing
    )


def _mean(report: Report) -> tuple[float, float]:
    """NDCG@10, and half of its 95 % interval over queries, by the normal distribution."""
    name = str(report.measures[0])
    values = [row[name] for row in report.after.values()]
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else math.inf
    return float(np.mean(values)), 1.96 * spread / math.sqrt(len(values))


def best(settings: Sequence[Setting], budget_ms: float = math.inf) -> list[Setting]:
    """Those whose 95th percentile fits the budget and that are not worse than the best of them.

    Worse is what a paired randomisation test says is, at `LEVEL`. The fastest comes first. Without
    quality it is the one with the most candidates, longest texts and all layers. [] where nothing
    fits.
    """
    fitting = [setting for setting in settings if setting.p95_ms <= budget_ms]
    if not fitting:
        return []
    if fitting[0].ndcg10 is None:
        return [max(fitting, key=_most)]
    top = max(fitting, key=lambda one: (one.ndcg10 or 0.0, -one.p50_ms))
    even = [one for one in fitting if one is top or _even(one, top)]
    return sorted(even, key=lambda one: one.p50_ms)


def _most(one: Setting) -> tuple[int, int, bool, float]:
    return one.rerank_count, one.max_length, one.early_exit is None, -one.p50_ms


def _even(one: Setting, top: Setting) -> bool:
    deltas = [a - b for a, b in zip(top.quality, one.quality, strict=True)]
    return randomisation_test(deltas) >= LEVEL


def show(
    found: Sequence[Setting | Refused],
    *,
    budget_ms: float | None,
    as_json: bool,
    options: Mapping[str, Any] = DEFAULTS,
) -> None:
    """Every setting measured, what cannot run here and why, and the best within the budget.

    options: what they have in common; the model and its device are among the lines to paste.
    """
    settings = [one for one in found if isinstance(one, Setting)]
    refused = list(dict.fromkeys(one for one in found if isinstance(one, Refused)))
    if not settings:
        raise ModelError(f"no setting runs here: {refused[0].why}")
    judged = settings[0].ndcg10 is not None
    asked = judged or budget_ms is not None
    even = best(settings, math.inf if budget_ms is None else budget_ms) if asked else []
    common = {name: options[name] for name in PASTED if options[name] != DEFAULTS[name]}
    if as_json:
        emit(_report(settings, refused, even, common))
        return
    columns = ["backend", "dtype", "rerank_count", "max_length", "windows", "early exit"]
    table([*columns, "p50 ms", "p95 ms", "nDCG@10"], [_cells(one) for one in settings])
    for refusal in refused:
        say(f"{refusal.backend} {refusal.dtype} does not run here: {refusal.why}", style="dim")
    if even:
        _recommend(even, len(settings), budget_ms, common)
    elif asked:
        say(f"nothing fits {budget_ms:g} ms: fewer candidates or a shorter max_length would")


def _report(
    settings: Sequence[Setting],
    refused: Sequence[Refused],
    even: Sequence[Setting],
    common: Mapping[str, Any],
) -> dict[str, Any]:
    report = even[0].report if even else None
    return {
        "settings": [one.to_dict() for one in settings],
        "refused": [{"backend": it.backend, "dtype": it.dtype, "why": it.why} for it in refused],
        "even": [one.to_dict() for one in even],
        "best": even[0].to_dict() if even else None,
        "fusion": report.fusion() if report else [],
        "paste": list(_paste(even[0], common)) if even else [],
    }


def _recommend(
    even: Sequence[Setting], count: int, budget_ms: float | None, common: Mapping[str, Any]
) -> None:
    """The fastest of those that no test tells from the best, as lines to paste, and fusion."""
    first = even[0]
    within = "" if budget_ms is None else f" within {budget_ms:g} ms"
    say()
    if len(even) == 1:
        say(f"best{within}:")
    else:
        say(
            f"no winner{within}: {len(even)} of {count} settings differ by no more than noise on "
            f"{len(first.report.after)} queries; the fastest of them:"
        )
    for line in _paste(first, common):
        say(f"  {line}")
    if first.report.fused:
        say_fusion(first.report)


def _paste(one: Setting, common: Mapping[str, Any]) -> tuple[str, str]:
    """The setting in Python and on the command line."""
    values: dict[str, Any] = {
        **common,
        "backend": one.backend,
        "dtype": one.dtype,
        "max_length": one.max_length,
        "rerank_count": one.rerank_count,
    }
    for name, group in one.grouped.items():
        values[name] = {key: it for key, it in group.to_dict().items() if it is not None}
    python = ", ".join(f"{name}={value!r}" for name, value in values.items())
    words = [f"--{name.replace('_', '-')} {_word(value)}" for name, value in values.items()]
    flags = " ".join(words)
    return f"Reranker({python})", f"rerank-adapters search {flags} QUESTION FOLDER"


def _word(value: Any) -> str:
    """An option's value as a shell takes it."""
    if isinstance(value, dict):
        value = ",".join(f"{name}={it}" for name, it in value.items())
    return shlex.quote(",".join(value) if isinstance(value, tuple) else str(value))


def _cells(one: Setting) -> list[str]:
    quality = "–"
    if one.ndcg10 is not None and one.half_width is not None:
        quality = f"{one.ndcg10:.4f} ± {one.half_width:.4f}"
    cut = "–" if one.windows is None else f"{one.windows.tokens}/{one.windows.step}"
    steps = () if one.early_exit is None else one.early_exit.steps
    early = " ".join(f"{layer}/{keep}" for layer, keep in steps) or "–"
    sizes = [str(one.rerank_count), str(one.max_length), cut, early]
    return [one.backend, one.dtype, *sizes, f"{one.p50_ms:.1f}", f"{one.p95_ms:.1f}", quality]
