"""The tiny BERT on each backend, tapped, and what tests ask of batches and of time."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rerank_adapters import Reranker
from rerank_adapters.tokens import TokenBatch
from tests.checkpoints import build
from tests.exported import exported
from tests.scorers.tap import Tap, tap_into
from tests.scorers.traffic import PATIENCE

TOLERANCE = {"stub": 0.0, "onnx": 1e-5, "torch": 1e-4}
"""Law 2: how far a score may move when it shares a batch."""


def checkpoint(backend: str) -> Path:
    """The tiny BERT as *backend* reads it."""
    return exported("bert") if backend == "onnx" else build("bert")


def tapped(backend: str, **queue) -> tuple[Reranker, Tap]:
    """A reranker over the tiny BERT on *backend*, and its tap; *queue* limits go to Reranker."""
    return tap_into(backend, checkpoint(backend), **queue)


def until(true: Callable[[], bool]) -> None:
    """Waits for a state that is bound to come; how long it takes is nobody's business."""
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "the awaited state never came"
        time.sleep(0.002)


def has_row(batch: TokenBatch, row: TokenBatch) -> NDArray[np.bool_]:
    """For each pair of *batch*, whether it is the one pair of *row*."""
    return np.array(
        [
            length == row.lengths[0] and np.array_equal(batch.take([at]).input_ids, row.input_ids)
            for at, length in enumerate(batch.lengths)
        ],
        dtype=bool,
    )
