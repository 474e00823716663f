"""One forward and what it is given: runs a batch, deals scores out, finds who is at fault."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from time import perf_counter
from typing import TypeVar

import numpy as np

from ..errors import BackendError, RerankError
from ..values import Scores, TokenBatch
from ._requests import Batch, settle
from ._stats import Stats

Forward = Callable[[TokenBatch], Scores]
Lock = AbstractContextManager[bool]
Result = TypeVar("Result")

PASSES_UNTIL_GROWTH = 8
"""Forwards between two growths of a budget that was cut, so that a low ceiling is hit rarely."""


class Worker:
    """One forward, and `budget`: the padded tokens it may be given, fewer since memory ran out."""

    def __init__(
        self,
        forward: Forward,
        max_budget: int,
        is_out_of_memory: Callable[[BaseException], bool],
    ) -> None:
        self.forward = forward
        self.budget = float(max_budget)
        self._max_budget = max_budget
        self._is_out_of_memory = is_out_of_memory
        self._passes_until_growth = 0

    def run(self, batch: Batch, stats: Stats, lock: Lock) -> list[Batch]:
        """One forward pass; what of *batch* must be run again, in smaller batches."""
        batch = batch.open()
        if not batch.parts:
            return []
        started = perf_counter()
        outcome = attempt(lambda: self._score(batch))
        seconds = perf_counter() - started
        if isinstance(outcome, Exception):
            try:
                return self._again(batch, outcome, stats, lock)
            finally:
                del outcome  # its traceback knows this frame: a cycle would keep its memory
        tokens, scores = outcome
        if scores.shape != (len(tokens),):
            _refuse(batch, scores.shape)
            return []
        self._recover()
        padded = len(tokens) * int(tokens.lengths.max())
        with lock:
            stats.count_batch(len(tokens), len(tokens.input_ids), padded, seconds)
        return _deliver(batch, scores, stats, lock)

    def _score(self, batch: Batch) -> tuple[TokenBatch, Scores]:
        tokens = batch.tokens()
        return tokens, np.asarray(self.forward(tokens), dtype=np.float32)

    def _again(self, batch: Batch, error: Exception, stats: Stats, lock: Lock) -> list[Batch]:
        """Halves a batch that failed, down to the pair at fault, whose request alone fails.

        The caller holds *error* no longer when the halves run: its frames may hold device memory.
        """
        no_memory = self._is_out_of_memory(error)
        if len(batch) == 1:
            settle(batch.parts[0][0].future, _pair_error(batch, error, no_memory))
            return []
        if no_memory:
            self.budget = max(1.0, batch.padded_tokens() / 2)
            self._passes_until_growth = PASSES_UNTIL_GROWTH
        with lock:
            if no_memory:
                stats.splits += 1
            else:
                stats.retries += 1
        return batch.halves()

    def _recover(self) -> None:
        if self.budget < self._max_budget:
            self._passes_until_growth -= 1
            if self._passes_until_growth <= 0:
                self.budget = min(float(self._max_budget), self.budget * 1.1)
                self._passes_until_growth = PASSES_UNTIL_GROWTH


def _deliver(batch: Batch, scores: Scores, stats: Stats, lock: Lock) -> list[Batch]:
    """Hands scores to their requests; pairs without a finite one are to run again, alone."""
    finite = np.isfinite(scores)
    if len(batch) == 1 and not finite[0]:
        message = f"the score of pair {batch.row()} must be finite: got {scores[0]}"
        settle(batch.parts[0][0].future, BackendError(message))
        return []
    complete = bool(finite.all())
    finished = []
    with lock:
        for request, rows, part in batch.split_scores(scores):
            request.scores[rows] = part
            request.unscored -= len(rows) if complete else int(np.isfinite(part).sum())
            if not request.unscored:
                finished.append(request)
        if not complete:
            stats.retries += int((~finite).sum())
    for request in finished:
        settle(request.future, request.scores)
    return [] if complete else batch.only(np.flatnonzero(~finite))


def _refuse(batch: Batch, shape: tuple[int, ...]) -> None:
    for request, _ in batch.parts:
        message = f"the model returned scores of shape {shape} for {len(batch)} pairs"
        settle(request.future, BackendError(message))


def attempt(work: Callable[[], Result]) -> Result | Exception:
    """What *work* returns, or its exception as a value: retries must run outside the except."""
    try:
        return work()
    except Exception as error:  # noqa: BLE001 - whatever it is, its request gets it
        return error


def _pair_error(batch: Batch, error: Exception, no_memory: bool) -> Exception:
    if isinstance(error, RerankError):
        return error
    row = batch.row()
    tokens = int(batch.parts[0][0].encoded.lengths[row])
    what = f"ran out of memory, even alone, with {tokens} tokens" if no_memory else "failed"
    wrapped = BackendError(f"the forward pass of pair {row} {what}: {error!r}")
    # The frames of an error of memory hold that memory, which others need while the caller reads.
    wrapped.__cause__ = error.with_traceback(None) if no_memory else error
    return wrapped
