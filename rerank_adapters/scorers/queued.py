"""A core behind a queue: pairs are written as tokens here, and wait there for a device."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from time import perf_counter
from typing import Any

import numpy as np

from ..engine.admission import Admission
from ..futures import done, settle, then
from ..protocols import Call, ModelInfo, Pair, Scored
from . import Core


class Queued:
    """Tokenises in the calling thread, then waits with everybody else for the device.

    Dropped without `close`, it lets the queue finish what it took.
    """

    def __init__(self, core: Core, admission: Admission) -> None:
        self._core = core
        self._admission = admission
        weakref.finalize(self, admission.close, wait=False).atexit = False

    def submit_pairs(self, pairs: Sequence[Pair], call: Call) -> Future[Scored]:
        """Tokenise *pairs* and queue them whole: a Future of their scores, in order.

        Blocks where the queue is full and the caller may wait, else raises OverloadedError.
        """
        if not pairs:
            nothing = np.zeros(0, np.float32)
            return done(Scored(nothing, nothing, np.zeros(0, np.bool_)))
        admission, core = self._admission, self._core
        ticket = call.ticket
        if ticket is None or admission.used(ticket):
            ticket = admission.reserve(len(pairs), call.deadline)
        started = perf_counter()
        try:
            encoded = core.encode(pairs, call)
            rows = admission.submit(
                encoded.batch,
                ticket=ticket,
                tokenise_seconds=perf_counter() - started,
                on_progress=call.on_progress,
            )
        except BaseException as error:
            settle(ticket, error)  # not cancelled: an async caller would hear of nothing else
            raise
        truncated = encoded.truncated
        return then(rows, lambda logits: core.scored(logits, truncated))

    def info(self) -> ModelInfo:
        """What really runs."""
        return self._core.info()

    def close(self) -> None:
        """Fail what waits with ClosedError; the last to close frees the model."""
        self._admission.close()

    @property
    def closed(self) -> bool:
        """Whether it takes no more requests: closed, its engine broke or was lost in a fork."""
        return self._admission.closed

    def reserve(self, pairs: int, deadline: float | None) -> Future[Any]:
        """A place in line for pairs still to be tokenised. Raises OverloadedError, ClosedError."""
        return self._admission.reserve(pairs, deadline)

    def serving(self) -> bool:
        """Whether the calling thread is one of the queue's workers."""
        return self._admission.serving()

    def stats(self) -> dict[str, Any]:
        """A snapshot of the queue and of what was done so far."""
        return self._admission.stats()

    @property
    def max_length(self) -> int:
        """The most tokens of a pair."""
        return self._core.max_length

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each of *texts* has by itself."""
        return self._core.count_tokens(texts)
