"""How far logits may be from the oracle's, and whether they are.

The oracle is sentence-transformers on the same checkpoint. Logits are float32 of shape (pairs,
labels).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]

TOLERANCES: Mapping[str, float] = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 8e-2}
"""How far a pass in the oracle's own dtype may be, times the largest logit where that is above 1.

float32 is the library's promise; the half dtypes' are a few of their own rounding steps.
"""


@dataclass(frozen=True, slots=True)
class Bound:
    """What storing a network in another dtype may cost.

    `absolute` and `relative` bound each logit's drift, as in numpy.allclose. `spread` bounds the
    root mean square drift as a share of the logits' standard deviation over all probes, and
    `batch_drift` how far a logit may move with the company it keeps (0: not by one bit).
    """

    absolute: float
    relative: float
    spread: float
    batch_drift: float

    def at(self, tokens: int, spread: float) -> Bound:
        """Return the bound for pairs of so many *tokens*, of logits with this *spread*.

        Rounding grows with what is summed, so beyond LONG it is measured by the logits' standard
        deviation where that is above 1: layers of a decoder drift by 1.5e-4 at 3,198 tokens, of
        logits whose standard deviation is 2.
        """
        return self if tokens <= LONG else replace(self, absolute=self.absolute * max(1.0, spread))


LONG = 1024
"""Tokens of a pair up to which a logit's drift is bounded in itself."""


BOUNDS: Mapping[str, Bound] = {
    # Rounding of float32 sums in another order: measured up to 2e-5 on logits of ±5.
    "float32": Bound(absolute=1e-4, relative=1e-5, spread=1e-3, batch_drift=1e-5),
    "float16": Bound(absolute=np.inf, relative=0.0, spread=0.05, batch_drift=np.inf),
    "int8": Bound(absolute=np.inf, relative=0.0, spread=0.25, batch_drift=0.0),
}


def drift(logits: Logits, oracle: Logits) -> float:
    """Return the largest difference of a logit; NaN where one is not a number."""
    return float(np.abs(logits - oracle).max())


def disagreement(logits: Logits, oracle: Logits, dtype: str) -> str:
    """Return why *logits* are not the oracle's within the tolerance of *dtype*, or ""."""
    if logits.shape != oracle.shape:
        return f"its logits have shape {logits.shape}, sentence-transformers' {oracle.shape}"
    gap = drift(logits, oracle)
    if gap <= TOLERANCES[dtype] * max(1.0, float(np.abs(oracle).max())):
        return ""
    return f"its logits differ by {gap:.1e} from sentence-transformers'"


def within(logits: Logits, oracle: Logits, bound: Bound) -> bool:
    """Whether each logit is finite and as near the oracle's as *bound* asks of each."""
    limit = bound.absolute + bound.relative * np.abs(oracle)
    return bool(np.isfinite(logits).all() and (np.abs(logits - oracle) <= limit).all())


def share_of_spread(logits: Sequence[Logits], oracle: Sequence[Logits]) -> float:
    """Return the root mean square drift over all batches, in the oracle's standard deviations."""
    drifts = [one - other for one, other in zip(logits, oracle, strict=True)]
    squares = np.concatenate(drifts) ** 2
    return float(np.sqrt(squares.mean())) / max(spread_of(oracle), 1e-6)


def spread_of(oracle: Sequence[Logits]) -> float:
    """Return the largest standard deviation of a label's logits over all batches."""
    return float(np.concatenate(oracle).std(axis=0).max())
