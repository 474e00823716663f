"""Platt scaling: make sigmoid(logit) the probability that a retrieved document answers.

Rule of the mix: held-out questions of every set with their candidates. Each set weighs the same;
inside a set, answers weigh one third, non-answers two thirds, about the share in a short list.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

ANSWER_SHARE = 1 / 3
Fit = tuple[float, float]
Flat = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


def flatten(names: Sequence[str], scores: NDArray, labels: NDArray, there: NDArray) -> Flat:
    """Logits, labels and weights of all candidates, each (n,); weights sum to 1."""
    rows = defaultdict(list)
    for name, line, own, mask in zip(names, scores, labels, there, strict=True):
        for label in (0, 1):
            rows[name, label] += line[mask & (own == label)].tolist()
    sets = sorted({n for n in names if rows.get((n, 0)) and rows.get((n, 1))})
    z, y, weight = [], [], []
    for source in sets:
        for label, share in ((1, ANSWER_SHARE), (0, 1 - ANSWER_SHARE)):
            own = rows[source, label]
            z += own
            y += [float(label)] * len(own)
            weight += [share / len(own) / len(sets)] * len(own)
    return np.array(z), np.array(y), np.array(weight)


def calibrate(flat: Flat) -> Fit:
    """(a, b) of sigmoid(a·logit + b) by maximum likelihood by Newton's method (Platt 1999)."""
    z, y, weight = flat
    design = np.stack([z, np.ones_like(z)], 1)
    fit = np.array([1.0, 0.0])
    for _ in range(100):
        p = 1 / (1 + np.exp(-np.clip(design @ fit, -30, 30)))
        slope = design.T @ (weight * (p - y))
        curve = (design * (weight * p * (1 - p))[:, None]).T @ design + 1e-9 * np.eye(2)
        step = np.linalg.solve(curve, slope)
        fit -= np.clip(step, -1, 1)
        if np.abs(step).max() < 1e-10:
            break
    return float(fit[0]), float(fit[1])


def expected_calibration_error(flat: Flat, fit: Fit, bins: int = 15) -> float:
    """Mean gap of probability and share of answers over equal-width bins (Guo et al. 2017)."""
    z, y, weight = flat
    p = 1 / (1 + np.exp(-(fit[0] * z + fit[1])))
    at = np.minimum((p * bins).astype(int), bins - 1)
    gaps = [abs(float((weight * (p - y))[at == b].sum())) for b in range(bins)]
    return round(sum(gaps) / float(weight.sum()), 4)
