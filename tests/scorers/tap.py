"""A tap between queue and backend: it holds, watches and breaks forwards. Loads no runtime."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rerank_adapters import Reranker
from rerank_adapters.loading import assemble
from rerank_adapters.protocols import Backend, BackendTraits
from rerank_adapters.tokenization import PairTokenizer
from rerank_adapters.tokens import Scores, TokenBatch
from tests.engine.traffic import PATIENCE, checksum
from tests.parts import limits_of, reranker_around

Rule = Callable[[TokenBatch], BaseException | None]
Edit = Callable[[TokenBatch, NDArray[np.float32]], NDArray[np.float32]]


class ChecksumBackend:
    """The stub: a pair's one logit is a checksum of its tokens and their order, from 0 to 1."""

    traits = BackendTraits(max_padding=0.03, free_padding=24)

    def logits(self, batch: TokenBatch) -> NDArray[np.float32]:
        return checksum(batch)[:, None] / np.float32(99_991)

    def info(self) -> dict[str, str]:
        return {"backend": "stub", "device": "cpu", "dtype": "float32"}

    def close(self) -> None:
        """Holds nothing."""


class FirstLogit:
    """The stub's ModelFamily."""

    labels = 1
    activation = "identity"

    def keys(self, logits: NDArray[np.float32]) -> Scores:
        return logits[:, 0]

    def scores(self, logits: NDArray[np.float32]) -> Scores:
        return logits[:, 0]


class Activations:
    """Stands for what a forward's frames hold: device memory, if the exception is kept."""


class Tap:
    """A Backend around another: inside `held()` forwards wait, `rule` may raise in their place.

    `edit` changes the logits that come out; `sizes` lists the pairs of every forward; `pinned`
    counts forwards that began while the frames of an earlier one were still alive.
    """

    def __init__(self, inner: Backend) -> None:
        self.inner = inner
        self.traits = replace(inner.traits, workers=1)  # so that tests say what shares a batch
        self.rule: Rule = lambda batch: None
        self.edit: Edit = lambda batch, logits: logits
        self.sizes: list[int] = []
        self.pinned = 0
        self.entered = threading.Event()
        self.release = threading.Event()
        self.release.set()
        self.frames: list[weakref.ref[Activations]] = []

    def logits(self, batch: TokenBatch) -> NDArray[np.float32]:
        self.pinned += any(frame() is not None for frame in self.frames)
        self.sizes.append(len(batch))
        self.entered.set()
        assert self.release.wait(PATIENCE), "nobody released the held forward"
        activations = Activations()
        self.frames.append(weakref.ref(activations))
        errors = [self.rule(batch)]
        if errors[0] is not None:
            raise errors.pop()  # under no name: its frames must not keep themselves alive
        return self.edit(batch, self.inner.logits(batch))

    def info(self) -> dict[str, str]:
        return self.inner.info()

    def close(self) -> None:
        self.inner.close()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, a forward that begins does not end; `entered` says that one began."""
        self.entered.clear()
        self.release.clear()
        try:
            yield
        finally:
            self.release.set()


def tap_into(backend: str, folder: Path | str, **queue) -> tuple[Reranker, Tap]:
    """A reranker over the checkpoint in *folder*, and its tap; "stub" uses the tokenizer alone."""
    if backend != "stub":
        # One budget for every backend, so that tests may say which pairs share a batch.
        options = {"backend": backend, "device": "cpu", "max_batch_tokens": 2048}
        return reranker_around(folder, Tap, **options, **queue)
    tokenizer = PairTokenizer.from_folder(Path(folder), max_length=256)
    num_workers, limits = queue.pop("num_workers", None), limits_of(**queue)
    tap = Tap(ChecksumBackend())
    scorer = assemble(tokenizer, FirstLogit(), [tap], num_workers=num_workers, limits=limits)
    return Reranker.over(scorer), tap
