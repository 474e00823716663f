"""A core behind a queue: pairs are written as tokens here, and wait there for a device."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from operator import itemgetter
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine.admission import Admission
from ..engine.requests import Answer
from ..futures import done, settle, then
from ..protocols import Call, ModelInfo, Pair, Scored
from . import Core

FIRST_CHUNK = 128
"""Pairs that a device is given to begin with; calls of twice as many are tokenised in chunks."""

MOST_CHUNK = 1024
"""Each chunk has twice the pairs of the one before, up to so many: few chunks cost little, and when
the last one comes most is done."""


class Queued:
    """Tokenises in the calling thread, then waits with everybody else for the device.

    A large call is tokenised in chunks, longest texts first, and the device begins with the first
    of them. It stays one request, admitted whole by the most tokens that it may have.

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
        try:
            answer = self._opened(len(pairs), call, ticket)
            if answer is None:
                rows, truncated = self._whole(pairs, call, ticket)
            else:
                rows, truncated = ticket, self._in_chunks(pairs, call, answer)
        except BaseException as error:
            settle(ticket, error)  # not cancelled: an async caller would hear of nothing else
            raise
        return then(rows, lambda logits: core.scored(logits, truncated))

    def _whole(
        self, pairs: Sequence[Pair], call: Call, ticket: Future[Any]
    ) -> tuple[Future[Any], NDArray[np.bool_]]:
        """Queue *pairs* at once: a Future of their rows, and which of them were cut."""
        started = perf_counter()
        encoded = self._core.encode(pairs, call)
        rows = self._admission.submit(
            encoded.batch,
            ticket=ticket,
            tokenise_seconds=perf_counter() - started,
            on_progress=call.on_progress,
        )
        return rows, encoded.truncated

    def _opened(self, pairs: int, call: Call, ticket: Future[Any]) -> Answer | None:
        """Room for *pairs* that come in chunks, None where they are few or have to wait anyway."""
        if pairs < 2 * FIRST_CHUNK:
            return None
        most = self._core.max_length
        return self._admission.open(
            ticket, pairs=pairs, most_tokens=most, on_progress=call.on_progress
        )

    def _in_chunks(self, pairs: Sequence[Pair], call: Call, answer: Answer) -> NDArray[np.bool_]:
        """Tokenise *pairs* chunk by chunk while the device computes; which of them were cut.

        Stops where the request has its end already.
        """
        truncated = np.zeros(len(pairs), np.bool_)
        for rows in _chunks(pairs):
            if answer.ticket.done():
                break
            started = perf_counter()
            try:
                encoded = self._core.encode(*_part(pairs, call, rows))
            except Exception:
                self._core.encode(pairs, call)  # says it of the pair as the caller counts them
                raise
            truncated[rows] = encoded.truncated
            seconds = perf_counter() - started
            self._admission.add(answer, encoded.batch, rows, tokenise_seconds=seconds)
        return truncated

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


def _chunks(pairs: Sequence[Pair]) -> Iterator[NDArray[np.int64]]:
    """The rows of each chunk, longest document first: a chunk's batches then pad little."""
    lengths = np.fromiter(map(len, map(itemgetter(1), pairs)), np.int64, len(pairs))
    order = np.argsort(-lengths, kind="stable")
    start, size = 0, FIRST_CHUNK
    while start < len(order):
        yield order[start : start + size]
        start, size = start + size, min(2 * size, MOST_CHUNK)


def _part(
    pairs: Sequence[Pair], call: Call, rows: NDArray[np.int64]
) -> tuple[Sequence[Pair], Call]:
    """The pairs at *rows*, in any order, and what their tokens depend on."""
    chosen = rows.tolist()
    prompts = None if call.prompts is None else [call.prompts[row] for row in chosen]
    return [pairs[row] for row in chosen], Call(prompts=prompts, tokens=call.tokens)
