"""Calibrated scores: a logit made into the share of such pairs that are relevant."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from numbers import Integral, Real
from pathlib import Path
from statistics import NormalDist
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import ConfigError, InputError

FORMAT = 1
"""What this version writes, and the newest it reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What makes logits into probabilities: sigmoid(logit / temperature + bias).

    temperature  above 0, so that no order changes
    weights      names of the weights it was fitted for, of which a model must have one; () fits all
    model        what that model was called, for people
    pairs        how many it was fitted on, of which so many were `relevant`

    Raises ConfigError. Sources: Platt, 1999, Probabilistic outputs for support vector machines; Guo
    et al., 2017, arXiv:1706.04599.

    >>> Calibration(temperature=2.0, bias=-1.0).scores([2.0, 6.0]).round(3).tolist()
    [0.5, 0.8809999823570251]
    """

    temperature: float = 1.0
    bias: float = 0.0
    weights: tuple[str, ...] = ()
    model: str = ""
    pairs: int = 0
    relevant: int = 0

    def __post_init__(self) -> None:
        for name in ("temperature", "bias"):
            value = getattr(self, name)
            if not _is_finite(value) or (name == "temperature" and value <= 0):
                rule = "a number above 0" if name == "temperature" else "a number"
                raise ConfigError(f"calibration.{name} must be {rule}: got {value!r:.80}")
            object.__setattr__(self, name, float(value))
        weights = self.weights if isinstance(self.weights, list | tuple) else (None,)
        if not all(isinstance(it, str) and it for it in weights):
            raise ConfigError(
                f"calibration.weights must be a list of str: got {self.weights!r:.80}"
            )
        object.__setattr__(self, "weights", tuple(weights))
        if not isinstance(self.model, str):
            raise ConfigError(f"calibration.model must be a str: got {self.model!r:.80}")
        for name in ("pairs", "relevant"):
            count = getattr(self, name)
            if isinstance(count, bool) or not isinstance(count, Integral) or count < 0:
                raise ConfigError(f"calibration.{name} must be an int of at least 0: got {count!r}")
            object.__setattr__(self, name, int(count))

    @classmethod
    def fit(
        cls, logits: ArrayLike, labels: ArrayLike, *, weights: Sequence[str] = (), model: str = ""
    ) -> Self:
        """Fit temperature and bias to *labels*, true or 1 where a pair is relevant.

        *logits* are of shape (pairs,), before any activation. The likelihood of Platt's smoothed
        labels is made as great as can be, so that perfectly parted labels leave both numbers
        finite. InputError where all labels are alike, or relevant pairs do not have the higher
        logits. Source of the search: Lin, Lin & Weng, 2007, A note on Platt's method.
        """
        values, relevant = _checked("logits", logits, labels)
        count = int(relevant.sum())
        if count in (0, len(relevant)):
            raise InputError(
                "labels must have relevant and other pairs: got "
                f"{count} relevant of {len(relevant)}"
            )
        slope, bias = _platt(values, relevant)
        if slope <= 0:
            raise InputError(
                "labels must be 1 where logits tend to be higher: relevant pairs have a mean of "
                f"{values[relevant].mean():.4g}, others of {values[~relevant].mean():.4g}"
            )
        return cls(
            temperature=1.0 / slope,
            bias=bias,
            weights=tuple(weights),
            model=model,
            pairs=len(relevant),
            relevant=count,
        )

    @classmethod
    def of(cls, value: object) -> Calibration | None:
        """*value* as Calibration: one, the path of a file, a mapping of its fields, or None."""
        if value is None or isinstance(value, cls):
            return value
        if isinstance(value, str | Path) and str(value).strip():
            return cls.load(value)
        if not isinstance(value, Mapping) or not set(value) <= set(cls.__dataclass_fields__):
            raise ConfigError(
                "calibration must be the path of a file, Calibration(temperature, bias), a mapping "
                f"of its fields or None: got {value!r:.80}"
            )
        return cls(**value)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote. ConfigError where there is no such file, or it says else."""
        file = Path(path).expanduser()
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(
                "calibration must be a file that rerank-adapters calibrate wrote: got "
                f"{str(path)!r} ({error})"
            ) from error
        if not isinstance(content, dict) or not isinstance(content.get("format"), int):
            raise ConfigError(f"calibration must be a JSON object with a format: {file} is none")
        if content.pop("format") > FORMAT:
            raise ConfigError(
                f"calibration must be of format {FORMAT} at most: {file} is newer; "
                "pip install --upgrade rerank-adapters"
            )
        try:
            return cls(**content)
        except TypeError as error:
            raise ConfigError(
                f"calibration must have known fields alone: {file}: {error}"
            ) from None

    def save(self, path: str | Path) -> Path:
        """Write a small JSON file, whole or not at all, and return its path."""
        file = Path(path).expanduser()
        part = file.with_name(f".{file.name}.part")
        text = json.dumps({"format": FORMAT, **self.to_dict()}, indent=2, ensure_ascii=False)
        try:
            part.write_text(text + "\n", encoding="utf-8")
            part.replace(file)
        except OSError as error:
            raise ConfigError(
                f"path must be a file in a folder that can be written: got {str(path)!r} ({error})"
            ) from error
        return file

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "weights": list(self.weights)}

    def scores(self, logits: ArrayLike) -> NDArray[np.float32]:
        """float32 probabilities of *logits*, of the same shape; a higher logit is never lower."""
        with np.errstate(over="ignore"):  # beyond what a float holds it is 0 or 1
            values = np.asarray(logits, np.float64) / self.temperature + self.bias
        return np.asarray(_sigmoid(values), dtype=np.float32)

    def __str__(self) -> str:
        sign = "-" if self.bias < 0 else "+"
        return f"sigmoid(logit / {self.temperature:.4g} {sign} {abs(self.bias):.4g})"


@dataclass(frozen=True, slots=True)
class Bin:
    """Pairs whose scores lie from `low` to `high`: their mean score, and the share relevant."""

    low: float
    high: float
    count: int
    score: float
    share: float

    @property
    def interval(self) -> tuple[float, float]:
        """Where the share lies with a probability of 95 %, by Wilson, 1927."""
        return wilson(round(self.share * self.count), self.count)


@dataclass(frozen=True, slots=True)
class Reliability:
    """How far scores are from being probabilities: the data of a reliability diagram.

    bins: of equal width, from 0 to 1, those without a pair left out; a bound belongs to the upper
    bin. Source: Niculescu-Mizil & Caruana, 2005, Predicting good probabilities.

    >>> found = Reliability.of([0.1, 0.1, 0.9, 0.9], [0, 1, 1, 1])
    >>> [(it.count, round(it.score, 3), it.share) for it in found.bins]
    [(2, 0.1, 0.5), (2, 0.9, 1.0)]
    """

    bins: tuple[Bin, ...]

    @classmethod
    def of(cls, scores: ArrayLike, labels: ArrayLike, *, bins: int = 10) -> Self:
        """Sort *scores*, from 0 to 1, into *bins* of equal width. Raises InputError."""
        values, relevant = _checked("scores", scores, labels)
        if isinstance(bins, bool) or not isinstance(bins, int) or bins < 1:
            raise InputError(f"bins must be an int of at least 1: got {bins!r:.80}")
        if values.min() < 0 or values.max() > 1:
            raise InputError(
                "scores must lie from 0 to 1, as a sigmoid's do: got "
                f"{values.min():.4g} to {values.max():.4g}"
            )
        rows = np.minimum((values * bins).astype(np.int64), bins - 1)
        return cls(
            tuple(
                Bin(
                    low=row / bins,
                    high=(row + 1) / bins,
                    count=int(chosen.sum()),
                    score=float(values[chosen].mean()),
                    share=float(relevant[chosen].mean()),
                )
                for row in range(bins)
                if (chosen := rows == row).any()
            )
        )

    @property
    def expected_calibration_error(self) -> float:
        """The distance of mean score and share relevant, the mean over pairs.

        Source: Naeini et al., 2015, Obtaining well calibrated probabilities using Bayesian binning.
        """
        pairs = sum(it.count for it in self.bins)
        return sum(it.count * abs(it.score - it.share) for it in self.bins) / pairs


@dataclass(frozen=True, slots=True)
class Threshold:
    """A score_threshold, and what it kept of judged pairs.

    precision  the share of relevant ones among those `kept`, which lies from `low` to `high` with
               the probability asked for, by Wilson, 1927
    recall     the share of the relevant ones that was kept

    >>> found = Threshold.for_precision([0.9, 0.8, 0.6, 0.2], [1, 1, 0, 0], precision=0.6)
    >>> round(found.score_threshold, 6), found.kept, found.recall
    (0.4, 3, 1.0)
    """

    score_threshold: float
    precision: float
    low: float
    high: float
    recall: float
    kept: int

    @classmethod
    def for_precision(
        cls, scores: ArrayLike, labels: ArrayLike, precision: float, *, confidence: float = 0.95
    ) -> Self | None:
        """The lowest threshold that keeps *precision* of *scores*; None where none does.

        It stands halfway between the lowest score kept and the highest that is not.
        """
        values, relevant = _checked("scores", scores, labels)
        if not _is_finite(precision) or not 0 < precision <= 1:
            raise InputError(f"precision must be above 0 and at most 1: got {precision!r:.80}")
        if not _is_finite(confidence) or not 0 < confidence < 1:
            raise InputError(f"confidence must be above 0 and below 1: got {confidence!r:.80}")
        order = np.argsort(-values, kind="stable")
        ordered, hits = values[order], np.cumsum(relevant[order])
        kept = np.arange(1, len(ordered) + 1)
        ends = np.append(ordered[1:] < ordered[:-1], True)  # equal scores are kept together
        enough = np.flatnonzero(ends & (hits >= precision * kept - 1e-9))
        if not len(enough) or not hits[-1]:
            return None
        last = int(enough[-1])
        below = ordered[last + 1] if last + 1 < len(ordered) else ordered[last]
        low, high = wilson(int(hits[last]), last + 1, confidence)
        return cls(
            score_threshold=float((ordered[last] + below) / 2),
            precision=float(hits[last] / kept[last]),
            low=low,
            high=high,
            recall=float(hits[last] / hits[-1]),
            kept=last + 1,
        )


def wilson(hits: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """The bounds between which the share lies of which *hits* of *count* were seen.

    Source: Wilson, 1927, Probable inference, the law of succession, and statistical inference.
    """
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share, spread = hits / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread * spread / 4) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def _platt(values: NDArray[np.float64], relevant: NDArray[np.bool_]) -> tuple[float, float]:
    """(slope, bias) of the likeliest sigmoid(slope · value + bias), by Newton's steps, halved."""
    ones = int(relevant.sum())
    others = len(relevant) - ones
    targets = np.where(relevant, (ones + 1) / (ones + 2), 1 / (others + 2))
    inputs = np.stack([values, np.ones_like(values)])
    found = np.array([0.0, math.log((ones + 1) / (others + 1))])

    def loss(at: NDArray[np.float64]) -> float:
        sums = at @ inputs
        return float(np.sum(np.logaddexp(0.0, sums) - targets * sums))

    before = loss(found)
    for _ in range(100):
        shares = _sigmoid(found @ inputs)
        slope = inputs @ (shares - targets)
        bend = (inputs * (shares * (1 - shares))) @ inputs.T + 1e-12 * np.eye(2)
        step = -np.linalg.solve(bend, slope)
        gain, size = float(slope @ step), 1.0
        if gain > -1e-9:  # the loss no longer tells how much nearer this last step is
            found = found + step
            break
        while (after := loss(found + size * step)) > before + 1e-4 * size * gain and size > 1e-10:
            size /= 2
        if after >= before:
            break
        found, before = found + size * step, after
    return float(found[0]), float(found[1])


def _sigmoid(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.exp(-np.logaddexp(0.0, -values)), dtype=np.float64)


def _checked(
    name: str, numbers: ArrayLike, labels: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Both as arrays of shape (pairs,), labels as bool. Raises InputError."""
    values, given = np.asarray(numbers), np.asarray(labels)
    if values.ndim != 1 or given.shape != values.shape or not len(values):
        raise InputError(
            f"{name} and labels must be one number for each pair: got shapes {values.shape} and "
            f"{given.shape}"
        )
    if values.dtype.kind not in "fiu" or not np.isfinite(values).all():
        raise InputError(f"{name} must be finite numbers: got {values!r:.80}")
    if given.dtype.kind not in "bfiu" or not np.isin(given, (0, 1)).all():
        raise InputError(f"labels must be 0 or 1, or bool: got {given!r:.80}")
    return values.astype(np.float64), given.astype(np.bool_)


def _is_finite(value: object) -> bool:
    number = isinstance(value, Real) and not isinstance(value, bool)
    return number and math.isfinite(value)  # type: ignore[arg-type]  # a Real
