"""The model's ranking and the first stage's scores put together: reciprocal ranks, or a sum."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, Literal, get_args

from ..errors import ConfigError
from .ranking import Ranking

FuseMethod = Literal["rrf", "linear"]


@dataclass(frozen=True, slots=True)
class Fuse:
    """How a ranking is fused with what the first stage gave each document, higher is better.

    method   "rrf": weights[0] / (k + rank by the model) + weights[1] / (k + rank by the first
             stage), ranks from 1; where no scores came in, the order given is its ranking.
             "linear": weights[0] · model + weights[1] · first stage, each spread over 0 to 1 by its
             lowest and highest number (equal numbers: 0.5)
    weights  of the model and of the first stage, at least 0
    k        what "rrf" adds to ranks

    What the first stage did not give (None, NaN, or minus infinity) ranks last, in the order given,
    and is 0 in a sum; infinity ranks first and is 1. Ties keep the model's order. Raises
    ConfigError. Sources: Cormack et al., 2009, SIGIR; Vespa's LinearNormalizer and
    ReciprocalRankNormalizer.

    >>> Fuse("linear", weights=(0.8, 0.2)).method
    'linear'
    """

    method: FuseMethod = "rrf"
    weights: tuple[float, float] = (1.0, 1.0)
    k: float = 60.0

    def __post_init__(self) -> None:
        if self.method not in get_args(FuseMethod):
            words = " or ".join(f'"{word}"' for word in get_args(FuseMethod))
            raise ConfigError(f"fuse.method must be {words}: got {self.method!r:.80}")
        weights = tuple(self.weights) if isinstance(self.weights, list | tuple) else ()
        if len(weights) != 2 or not all(map(_is_weight, weights)) or not sum(weights):
            raise ConfigError(
                "fuse.weights must be two numbers of at least 0, one of them above it, for the "
                f"model and the first stage: got {self.weights!r:.80}"
            )
        if not _is_weight(self.k):
            raise ConfigError(f"fuse.k must be a number of at least 0: got {self.k!r:.80}")
        object.__setattr__(self, "weights", tuple(map(float, weights)))
        object.__setattr__(self, "k", float(self.k))

    @classmethod
    def of(cls, value: object) -> Fuse | None:
        """*value* as Fuse: one, a method's name, a mapping of its fields, or None. ConfigError."""
        if value is None or isinstance(value, cls):
            return value
        if isinstance(value, str):
            value = {"method": value}
        if not isinstance(value, Mapping) or not set(value) <= set(cls.__dataclass_fields__):
            raise ConfigError(
                'fuse must be "rrf", "linear", Fuse(method, weights, k), a mapping of these or '
                f"None: got {value!r:.80}"
            )
        return cls(**value)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"method": self.method, "weights": list(self.weights), "k": self.k}

    def fused(self, ranking: Ranking, retrieval_scores: Sequence[float | None] | None) -> Ranking:
        """*ranking* by fused scores; *retrieval_scores* are of the documents that were given."""
        rows = sorted(range(len(ranking)), key=lambda row: ranking[row].index)
        places = {row: place for place, row in enumerate(rows)}  # in the order given
        if retrieval_scores is None:
            found = [-float(places[row]) for row in range(len(ranking))]
        else:
            found = [known(retrieval_scores[one.index]) for one in ranking]
        if self.method == "linear":
            parts = linear(ranking.scores), linear(found)
        else:
            order = sorted(range(len(found)), key=lambda row: (-found[row], places[row]))
            parts = self._reciprocal(range(len(found))), self._reciprocal(order)
        (model, first), sums = self.weights, zip(*parts, strict=True)
        fused = [model * a + first * b for a, b in sums]
        best = sorted(range(len(fused)), key=lambda row: -fused[row])
        return Ranking([replace(ranking[row], score=fused[row]) for row in best])

    def _reciprocal(self, order: Sequence[int]) -> list[float]:
        """1 / (k + rank) of each row, where *order* is the rows by rank."""
        values = [0.0] * len(order)
        for rank, row in enumerate(order, 1):
            values[row] = 1.0 / (self.k + rank)
        return values


def linear(values: Sequence[float]) -> list[float]:
    """*values* spread over 0 to 1; all equal: 0.5; minus infinity: 0, infinity: 1."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    scale = 1.0 / (high - low) if high > low else 0.0
    middle = low * 0.5 + high * 0.5
    if not math.isfinite(scale) or not math.isfinite(high - low):  # beyond what a float tells apart
        return [0.5 if math.isfinite(value) else float(value > 0) for value in values]
    spread = [0.5 + scale * (it - middle) if math.isfinite(it) else float(it > 0) for it in values]
    return [min(1.0, max(0.0, value)) for value in spread]


def known(score: float | None) -> float:
    """*score* as a number to sort by: minus infinity where there is none."""
    return -math.inf if score is None or math.isnan(score) else float(score)


def _is_weight(value: object) -> bool:
    number = isinstance(value, Real) and not isinstance(value, bool)
    return number and math.isfinite(value) and value >= 0  # type: ignore[arg-type, operator]  # a Real
