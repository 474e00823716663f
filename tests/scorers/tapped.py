"""Real rerankers whose backend a test can hold, watch and break."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from rerank_adapters import Reranker, RerankerConfig
from rerank_adapters.protocols import Backend
from rerank_adapters.scorers.cross_encoder import CrossEncoder
from rerank_adapters.tokenization import PairTokenizer
from rerank_adapters.values import TokenBatch
from tests.checkpoints import build
from tests.exported import exported
from tests.fakes import CountingBackend, FirstLogitFamily
from tests.scorers.traffic import PATIENCE

TOLERANCE = {"stub": 0.0, "onnx": 1e-5, "torch": 1e-4}
"""Law 2: how far a score may move when it shares a batch."""

Rule = Callable[[TokenBatch], BaseException | None]
Edit = Callable[[TokenBatch, NDArray[np.float32]], NDArray[np.float32]]


class Activations:
    """Stands for what a forward's frames hold: device memory, if the exception is kept."""


class Tap:
    """A Backend around a real one: the first forward after `hold` waits, `rule` may raise instead.

    `edit` changes the logits that come out; `sizes` lists the pairs of every forward; `pinned` counts
    forwards that began while the frames of an earlier error were still alive.
    """

    def __init__(self, inner: Backend) -> None:
        self.inner = inner
        self.rule: Rule = lambda batch: None
        self.edit: Edit = lambda batch, logits: logits
        self.sizes: list[int] = []
        self.pinned = 0
        self.entered = threading.Event()
        self.release = threading.Event()
        self.release.set()
        self._frames: list[weakref.ref[Activations]] = []

    def logits(self, batch: TokenBatch) -> NDArray[np.float32]:
        self.pinned += any(frame() is not None for frame in self._frames)
        self.sizes.append(len(batch))
        self.entered.set()
        assert self.release.wait(PATIENCE), "nobody released the held forward"
        activations = Activations()
        self._frames.append(weakref.ref(activations))
        errors = [self.rule(batch)]
        if errors[0] is not None:
            raise errors.pop()  # no name for it here: its frames must not keep themselves alive
        return self.edit(batch, self.inner.logits(batch))

    def info(self) -> dict[str, str]:
        return self.inner.info()

    def close(self) -> None:
        self.inner.close()

    @contextmanager
    def held(self):
        """Inside, the forward that a first request starts does not end; after, it and all others do."""
        self.entered.clear()
        self.release.clear()
        try:
            yield
        finally:
            self.release.set()


def tapped(backend: str, **queue) -> tuple[Reranker, Tap]:
    """A reranker over the tiny BERT on *backend* ("stub": its tokenizer alone), and its tap."""
    scorer = _scorer(backend)
    tap = Tap(scorer.backends[0])
    scorer.backends = (tap,)
    return Reranker(scorer, **queue), tap


def config(backend: str) -> RerankerConfig:
    """How the tiny BERT is loaded on a real *backend*."""
    folder = exported("bert") if backend == "onnx" else build("bert")
    num_threads = 1 if backend == "onnx" else None
    return RerankerConfig(
        model=str(folder), backend=backend, device="cpu", num_threads=num_threads
    )


def _scorer(backend: str) -> CrossEncoder:
    if backend != "stub":
        return CrossEncoder.from_config(config(backend))
    tokenizer = PairTokenizer.from_folder(build("bert"), max_length=256)
    return CrossEncoder(tokenizer, FirstLogitFamily(), [CountingBackend()])


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
