"""How near is near enough: the numbers, and that what lies beyond them is refused."""

from __future__ import annotations

import numpy as np
import pytest

from rerank_adapters.parity.comparison import (
    BOUNDS,
    TOLERANCES,
    Bound,
    disagreement,
    drift,
    share_of_spread,
    spread_of,
    within,
)

ORACLE = np.array([[0.5], [-0.25], [0.0]], np.float32)


def off(by: float, oracle: np.ndarray = ORACLE) -> np.ndarray:
    """The oracle's logits with one moved."""
    moved = oracle.copy()
    moved[1, 0] += by
    return moved


def test_the_tolerances_are_the_librarys_promise() -> None:
    """Law 1's 1e-4 in float32; a few rounding steps in the half dtypes."""
    assert TOLERANCES == {"float32": 1e-4, "float16": 1e-2, "bfloat16": 8e-2}


@pytest.mark.parametrize(
    ("dtype", "near", "far"),
    [("float32", 9e-5, 1.1e-4), ("float16", 9e-3, 1.1e-2), ("bfloat16", 7e-2, 9e-2)],
)
def test_a_pass_beyond_the_tolerance_disagrees(dtype: str, near: float, far: float) -> None:
    """Just within is well, just beyond is not, and neither is a thousandth in float32."""
    assert disagreement(off(near), ORACLE, dtype) == ""
    assert disagreement(off(-far), ORACLE, dtype) == (
        f"its logits differ by {far:.1e} from sentence-transformers'"
    )
    assert disagreement(off(1e-3), ORACLE, "float32")


def test_the_tolerance_grows_with_the_largest_logit() -> None:
    """Times 20 where a logit is 20, for all rows; below 1 nothing is made stricter."""
    large = ORACLE + np.array([[19.5], [0], [0]], np.float32)
    assert disagreement(off(1.8e-3, large), large, "float32") == ""
    assert disagreement(off(2.2e-3, large), large, "float32")


def test_what_is_no_number_or_has_another_shape_disagrees() -> None:
    """NaN is in no tolerance, infinity neither; one label does not stand for two."""
    assert disagreement(off(np.nan), ORACLE, "bfloat16")
    assert disagreement(off(np.inf), ORACLE, "bfloat16")
    assert "shape (3, 1)" in disagreement(ORACLE, np.repeat(ORACLE, 2, axis=1), "float32")


def test_bounds_of_the_exported_dtypes() -> None:
    """What the gate allows: float32 each logit, halves and int8 their share of the spread."""
    assert {
        "float32": Bound(absolute=1e-4, relative=1e-5, spread=1e-3, batch_drift=1e-5),
        "float16": Bound(absolute=np.inf, relative=0.0, spread=0.05, batch_drift=np.inf),
        "int8": Bound(absolute=np.inf, relative=0.0, spread=0.25, batch_drift=0.0),
    } == BOUNDS


def test_each_logit_is_within_its_bound() -> None:
    """Absolute + relative · |oracle|, as in numpy.allclose; no bound admits what is not finite."""
    bound, large = BOUNDS["float32"], np.full((1, 1), 100, np.float32)
    assert within(large + np.float32(1.0e-3), large, bound)
    assert not within(large + np.float32(1.2e-3), large, bound)
    assert not within(off(1.1e-4), ORACLE, bound)
    assert within(off(5.0), ORACLE, BOUNDS["int8"])
    for value in (np.nan, np.inf):
        assert not within(off(value), ORACLE, BOUNDS["int8"])


def test_drift_and_its_share_of_the_spread() -> None:
    """The largest difference; the root mean square over all batches in standard deviations."""
    batches = [np.array([[3.0], [-1.0]], np.float32), np.array([[-1.0], [3.0]], np.float32)]
    moved = [batches[0] + np.float32(0.3), batches[1] - np.float32(0.1)]
    assert drift(moved[0], batches[0]) == pytest.approx(0.3)
    # Logits 3, -1, -1, 3 have standard deviation 2; drifts of .3, .3, .1, .1 a mean square of .05.
    assert share_of_spread(moved, batches) == pytest.approx(np.sqrt(0.05) / 2, rel=1e-6)


def test_drift_of_long_pairs_is_measured_by_the_logits_spread() -> None:
    """1.5e-4 passes at 3,198 tokens of logits that spread by 2, not at 1,024."""
    bound, oracle = BOUNDS["float32"], np.zeros((3, 1), np.float32)
    logits = oracle + np.float32(1.5e-4)
    assert within(logits, oracle, bound.at(3198, 2.0))
    assert not within(logits, oracle, bound.at(1024, 2.0))
    assert not within(logits, oracle, bound.at(3198, 1.0))
    assert not within(logits + np.float32(1e-4), oracle, bound.at(3198, 2.0))
    assert spread_of([np.array([[0.0], [4.0]]), np.array([[2.0], [2.0]])]) == np.sqrt(2)
