"""Scores made into probabilities, and whose weights they are of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace

import numpy as np

from ..calibration import Calibration
from ..futures import then
from ..protocols import Call, ModelInfo, Pair, Scored, Scorer
from . import Wrapper


class Calibrated(Wrapper):
    """Maps logits to scores by *calibration*, and leaves logits, so the order, alone.

    Who stopped early keeps the exit head's score.

    Without one it changes nothing, and only knows the names of the weights that run inside:
    *weights* is called when somebody asks, for it may read files.
    """

    def __init__(
        self,
        inner: Scorer,
        calibration: Calibration | None,
        weights: Callable[[], tuple[str, ...]] = tuple,
    ) -> None:
        super().__init__(inner)
        self._calibration = calibration
        self._weights = weights

    def submit_pairs(self, pairs: Sequence[Pair], call: Call) -> Future[Scored]:
        """Score *pairs* by the scorer inside, then calibrate."""
        inner = self.inner.submit_pairs(pairs, call)
        return inner if self._calibration is None else then(inner, self._mapped)

    def _mapped(self, scored: Scored) -> Scored:
        assert self._calibration is not None  # noqa: S101  # said to type checkers
        scores = self._calibration.scores(scored.keys)
        if scored.exits is not None:  # an exit head's logit is of another scale
            scores = np.where(scored.exits > 0, scored.scores, scores)
        return replace(scored, scores=scores, logits=scored.keys)

    def info(self) -> ModelInfo:
        """What really runs, and by what its scores are calibrated."""
        info = super().info()
        if self._calibration is None:
            return info
        return replace(info, details={**info.details, "calibration": str(self._calibration)})

    def weights(self) -> tuple[str, ...]:
        """Names of the weights, of which forms of one checkpoint share one."""
        return self._weights()
