"""What a child of multiprocessing runs: importable, so that `spawn` finds it."""

from __future__ import annotations

import numpy as np

from tests.scorers.tap import tap_into


def check(backend, folder, query, texts, expected, inherited) -> None:
    """Score with the parent's reranker, or with one of its own where none was inherited."""
    reranker = inherited or tap_into(backend, folder)[0]
    assert np.array_equal(reranker.score(query, texts, timeout=60), expected)
