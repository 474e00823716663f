"""The tiny BERT on each backend, tapped, and what tests ask of batches and of time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, wait
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from rerank_adapters import Ranking, Reranker
from rerank_adapters.tokens import Scores, TokenBatch
from tests.checkpoints import build
from tests.engine.traffic import PATIENCE
from tests.engine.traffic import until as until
from tests.exported import exported
from tests.fakes import encoded
from tests.scorers.fault_table import backends_for
from tests.scorers.tap import Tap, tap_into

TOLERANCE = {"stub": 0.0, "onnx": 1e-5, "torch": 1e-4}
"""Law 2: how far a score may move when it shares a batch."""

QUERY = "how do whales breathe"
POISON = "the poisoned document"


def checkpoint(backend: str) -> Path:
    """The tiny BERT as *backend* reads it."""
    return exported("bert") if backend == "onnx" else build("bert")


def tapped(backend: str, **queue) -> tuple[Reranker, Tap]:
    """A reranker over the tiny BERT on *backend*, and its tap; *queue* limits go to Reranker."""
    return tap_into(backend, checkpoint(backend), **queue)


def has_row(batch: TokenBatch, row: TokenBatch) -> NDArray[np.bool_]:
    """For each pair of *batch*, whether it is the one pair of *row*."""
    return np.array(
        [
            length == row.lengths[0] and np.array_equal(batch.take([at]).input_ids, row.input_ids)
            for at, length in enumerate(batch.lengths)
        ],
        dtype=bool,
    )


def on(number: int) -> pytest.MarkDecorator:
    """Run a test on the backends that the fault table says."""
    return pytest.mark.parametrize("backend", backends_for(number))


def texts(count: int, *, start: int = 0) -> list[str]:
    """Distinct short documents."""
    return [f"document {n} about whales and the sea" for n in range(start, start + count)]


def poison_row() -> TokenBatch:
    """The tokens of the poisoned pair, which are the same for every backend."""
    return encoded([(QUERY, POISON)])


def poisoned(error: Callable[[], BaseException]) -> Callable[[TokenBatch], BaseException | None]:
    """A rule that raises when the poisoned document is in the batch."""
    row = poison_row()
    return lambda batch: error() if has_row(batch, row).any() else None


def behind_a_held_forward(reranker: Reranker, tap: Tap, requests: list[list[str]]) -> list[Future]:
    """Submit all *requests* while a first one is being scored, so that they share what follows."""
    with tap.held():
        first = reranker.submit(QUERY, ["held"])
        assert tap.entered.wait(PATIENCE)
        futures = [reranker.submit(QUERY, documents) for documents in requests]
    wait([first, *futures], PATIENCE)
    return futures


def in_order(ranking: Ranking) -> Scores:
    """The scores of *ranking*, float32 in the order of the documents."""
    scores = np.empty(len(ranking), np.float32)
    scores[ranking.indices] = ranking.scores
    return scores


def assert_serves(reranker: Reranker) -> None:
    """Whatever happened before, a new request is answered, and nothing is left over."""
    assert np.isfinite(reranker.score(QUERY, texts(3))).all()
    stats = reranker.stats()
    assert (stats["queue_pairs"], stats["queue_tokens"], stats["unfinished"]) == (0, 0, 0)
