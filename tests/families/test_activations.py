"""Logits to scores, on numbers worked out by hand; the checkpoints' own are in test_families."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rerank_adapters.families import activations


@pytest.mark.parametrize(
    ("logits", "activation", "wanted"),
    [
        ([[0.0], [math.log(3)], [-200.0], [200.0]], "sigmoid", [0.5, 0.75, 0.0, 1.0]),
        ([[0.0], [-2.5]], "identity", [0.0, -2.5]),
        ([[0.0, math.log(3)], [5.0, 5.0], [300.0, 0.0]], "softmax", [0.75, 0.5, 0.0]),
        ([[1.0, 3.5], [2.0, 0.0]], "identity", [2.5, -2.0]),
    ],
    ids=["one label", "one label as it is", "two labels", "the lead of the second"],
)
def test_scores_are_those_worked_out_by_hand(logits, activation, wanted):
    """Sigmoid of ln 3 is 3 / 4; of two labels it is that of their difference; no overflow warns."""
    with np.errstate(all="raise", under="ignore"):
        scores = activations.scores(np.array(logits, np.float32), activation)
    assert scores.dtype == np.float32
    assert scores == pytest.approx(wanted, abs=1e-7)  # a rounding step of float32


def test_a_lead_beyond_float32_is_its_largest_number():
    """Two finite logits may differ by more than float32 holds: their key is finite all the same."""
    most = np.finfo(np.float32).max
    assert activations.keys(np.array([[-most, most], [most, -most]])).tolist() == [most, -most]
