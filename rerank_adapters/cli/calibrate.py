"""`calibrate`: scores into probabilities, fitted to a collection with judged queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..calibration import Calibration, Reliability, Threshold
from ..calls import Caller
from ..config import RerankerConfig
from ..errors import InputError
from ..loading import load
from ..protocols import Call
from .collection import Collection
from .console import emit, progress, say, table
from .evaluate import Retrieve

FOLDS = 5
BINS = 10


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """Scored pairs and what was judged of them: all of shape (pairs,).

    queries: the number of each pair's query
    """

    logits: NDArray[np.float32]
    scores: NDArray[np.float32]
    relevant: NDArray[np.bool_]
    queries: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Fitted:
    """A calibration, and what it is worth.

    after: of scores whose query was left out of the fit; None where the queries are too few
    """

    calibration: Calibration
    queries: int
    before: Reliability | None
    after: Reliability | None
    thresholds: dict[float, Threshold | None]


def judged(collection: Collection, retrieve: Retrieve, caller: Caller) -> Judged:
    """Score each query's candidates; relevant is what has a grade above 0, and nothing unjudged."""
    scored, relevant, counts = [], list[bool](), list[int]()
    with progress("scoring", len(collection.queries)) as advance:
        for query, text in collection.queries.items():
            names = [name for name, _ in retrieve(query, text)]
            texts = collection.documents.texts(names)
            call = Call(keys=names)
            scored.append(caller.run([(text, document) for document in texts], call))
            grades = collection.qrels[query]
            relevant += [grades.get(name, 0) > 0 for name in names]
            counts.append(len(names))
            advance()
    return Judged(
        np.concatenate([it.keys for it in scored]),
        np.concatenate([it.scores for it in scored]),
        np.array(relevant, dtype=np.bool_),
        np.repeat(np.arange(len(counts)), counts),
    )


def calibrate(
    config: RerankerConfig,
    collection: Collection,
    retrieve: Retrieve,
    precisions: Sequence[float],
) -> Fitted:
    """Fit *config*'s model to the judgements in *collection*. Raises InputError."""
    caller = Caller(load(config))
    try:
        found = judged(collection, retrieve, caller)
        weights = caller.weights()
        model = caller.scorer.info().model
    finally:
        caller.close()
    calibration = Calibration.fit(found.logits, found.relevant, weights=weights, model=model)
    scores = calibration.scores(found.logits)
    held_out = _held_out(found)
    inside_unit = found.scores.min() >= 0 and found.scores.max() <= 1
    return Fitted(
        calibration,
        len(set(found.queries.tolist())),
        Reliability.of(found.scores, found.relevant, bins=BINS) if inside_unit else None,
        None if held_out is None else Reliability.of(held_out, found.relevant, bins=BINS),
        {it: Threshold.for_precision(scores, found.relevant, it) for it in precisions},
    )


def _held_out(found: Judged) -> NDArray[np.float32] | None:
    """Each pair's score by a calibration fitted to the queries of other folds alone."""
    queries = int(found.queries.max()) + 1
    folds = np.random.default_rng(0).permutation(queries) % FOLDS
    scores = np.empty_like(found.logits)
    for fold in range(min(FOLDS, queries)):
        out = folds[found.queries] == fold
        try:
            fitted = Calibration.fit(found.logits[~out], found.relevant[~out])
        except InputError:  # too few queries are left
            return None
        scores[out] = fitted.scores(found.logits[out])
    return scores


def show(fitted: Fitted, file: Path, *, as_json: bool) -> None:
    """What was fitted, the error before and after, and each threshold with its interval."""
    calibration = fitted.calibration
    errors = {
        name: None if it is None else it.expected_calibration_error
        for name, it in (("before", fitted.before), ("after", fitted.after))
    }
    rows: list[dict[str, Any]] = [
        {"wanted": wanted, **({} if it is None else asdict(it))}
        for wanted, it in fitted.thresholds.items()
    ]
    if as_json:
        emit(
            {
                "file": str(file),
                **calibration.to_dict(),
                "queries": fitted.queries,
                "expected_calibration_error": errors,
                "thresholds": rows,
            }
        )
        return
    say(
        f"{file}: {calibration}, fitted to {calibration.pairs} pairs of {fitted.queries} queries, "
        f"{calibration.relevant} of them relevant"
    )
    before, after = ("–" if it is None else f"{it:.4f}" for it in errors.values())
    say(
        f"expected calibration error, {BINS} bins of equal width: {before} before, {after} after, "
        f"each query scored by what was fitted without it"
    )
    if rows:
        say()
        columns = ["precision wanted", "score_threshold", "precision", "95 % interval", "recall"]
        table(columns, [_cells(wanted, it) for wanted, it in fitted.thresholds.items()])


def draw(fitted: Fitted, file: Path) -> None:
    """The reliability diagram, before and after."""
    from ..ranking.plotting import plot_reliability  # lazy: nobody else needs matplotlib

    drawn = [it for it in (fitted.before, fitted.after) if it is not None]
    if not drawn:
        raise InputError("--plot must have scores from 0 to 1, or more queries to fit: got neither")
    figure = plot_reliability(drawn[0], *drawn[1:]).figure
    try:
        figure.savefig(file)  # type: ignore[union-attr]  # of the axes' own
    except (OSError, ValueError) as error:
        raise InputError(f"--plot must be a .png or .svg that can be written: {error}") from error


def _cells(wanted: float, found: Threshold | None) -> list[str]:
    if found is None:
        return [f"{wanted:g}", "none reaches it", "–", "–", "–"]
    return [
        f"{wanted:g}",
        f"{found.score_threshold:.6g}",
        f"{found.precision:.3f}",
        f"{found.low:.3f} to {found.high:.3f}",
        f"{found.recall:.3f}",
    ]
