"""One forward and what it is given: runs a batch, deals rows out, finds the pair at fault."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from time import perf_counter
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import BackendError, RerankError
from ..futures import settle
from ..tokens import TokenBatch
from .batching import BatchRule
from .requests import Answer, Batch, Request, Rows
from .stats import ForwardStats

Forward = Callable[[TokenBatch], NDArray[np.float32]]
"""Tokenised pairs to float32 rows of shape (pairs,) or (pairs, labels), in their order."""
Lock = AbstractContextManager[bool]
Result = TypeVar("Result")

FORWARDS_UNTIL_GROWTH = 8
"""Forwards between two growths of a budget that was cut, so that a low ceiling is hit rarely."""

OUT_OF_MEMORY = (
    "out of memory",
    "not enough memory",
    "bad_alloc",
    "bad allocation",
    "failed to allocate memory",
    "can't allocate memory",
    "alloc_failed",
)


def looks_out_of_memory(error: BaseException) -> bool:
    """Whether *error* says memory ran out: MemoryError, torch's and ONNX Runtime's words for it."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    message = str(error).lower()
    return any(words in message for words in OUT_OF_MEMORY)


class Worker:
    """One forward, its rule, and `budget`: the padded tokens that memory allows it by now."""

    def __init__(
        self,
        forward: Forward,
        rule: BatchRule,
        is_out_of_memory: Callable[[BaseException], bool],
    ) -> None:
        self.forward = forward
        self.rule = rule
        self.budget = float(rule.max_tokens)
        self._is_out_of_memory = is_out_of_memory
        self._forwards_until_growth = 0

    def allow(self, max_tokens: int) -> None:
        """Let batches hold so many padded tokens, where that is more than the rule says."""
        rule = self.rule
        if max_tokens <= rule.max_tokens:
            return
        # Where padding is free for a whole batch, it stays free.
        free = max_tokens if rule.free_padding >= rule.max_tokens else rule.free_padding
        self.rule = replace(rule, max_tokens=max_tokens, free_padding=free)
        if self.budget == rule.max_tokens:  # memory never ran out
            self.budget = float(max_tokens)

    def run(self, batch: Batch, stats: ForwardStats, lock: Lock) -> list[Batch]:
        """One forward pass; what of *batch* must be run again, in smaller batches."""
        batch = batch.open()
        if not batch.parts:
            return []
        started = perf_counter()
        outcome = attempt(lambda: self._rows(batch))
        seconds = perf_counter() - started
        if isinstance(outcome, Exception):
            try:
                return self._again(batch, outcome, stats, lock)
            finally:
                del outcome  # its traceback knows this frame: a cycle would keep its memory
        tokens, rows = outcome
        if rows.ndim not in (1, 2) or len(rows) != len(tokens) or not rows.size:
            _refuse([request for request, _ in batch.parts], rows.shape, len(tokens))
            return []
        self._recover()
        return _deliver(batch, tokens, rows, seconds, stats, lock)

    def _rows(self, batch: Batch) -> tuple[TokenBatch, Rows]:
        tokens = batch.tokens()
        return tokens, np.asarray(self.forward(tokens), dtype=np.float32)

    def _again(
        self, batch: Batch, error: Exception, stats: ForwardStats, lock: Lock
    ) -> list[Batch]:
        """Halve a batch that failed, down to the pair at fault, whose request alone fails.

        The caller holds *error* no longer when the halves run: its frames may hold device memory.
        """
        no_memory = self._is_out_of_memory(error)
        if len(batch) == 1:
            settle(batch.parts[0][0].ticket, _pair_error(batch, error, no_memory))
            return []
        if no_memory:
            self.budget = max(1.0, batch.padded_tokens() / 2)
            self._forwards_until_growth = FORWARDS_UNTIL_GROWTH
        with lock:
            if no_memory:
                stats.splits += 1
            else:
                stats.retries += 1
        return batch.halves()

    def _recover(self) -> None:
        if self.budget < self.rule.max_tokens:
            self._forwards_until_growth -= 1
            if self._forwards_until_growth <= 0:
                self.budget = min(float(self.rule.max_tokens), self.budget * 1.1)
                self._forwards_until_growth = FORWARDS_UNTIL_GROWTH


def attempt(work: Callable[[], Result]) -> Result | Exception:
    """What *work* returns, or its exception as a value: retries must run outside the except."""
    try:
        return work()
    except Exception as error:  # noqa: BLE001 - its request gets it
        return error


def _deliver(
    batch: Batch,
    tokens: TokenBatch,
    rows: Rows,
    seconds: float,
    stats: ForwardStats,
    lock: Lock,
) -> list[Batch]:
    """Hand rows to their requests; pairs whose row is not finite are to run again, alone."""
    bad = _not_finite(rows)
    if len(bad) and len(rows) == 1:
        got = rows[0] if rows.size > 1 else rows.item()
        message = f"the score of pair {batch.first()[0]} must be finite: got {got}"
        settle(batch.parts[0][0].ticket, BackendError(message))
        return []
    counts: list[tuple[Answer, int]] = []
    misfits: list[Request] = []
    with lock:
        stats.count_batch(tokens, seconds)
        stats.retries += len(bad)
        for request, indices, span in batch.spans():
            if request.answer.takes(rows):
                request.write(indices, rows[span])
                counts.append((request.answer, len(indices) - _within(bad, span)))
            else:
                misfits.append(request)
    _refuse(misfits, rows.shape, len(rows))
    _count_down(counts, lock)
    return batch.only(bad) if len(bad) else []


def _not_finite(rows: Rows) -> NDArray[np.int64]:
    """The pairs whose row has a number that is not finite."""
    finite = np.isfinite(rows)
    if finite.all():
        return np.zeros(0, np.int64)
    return np.flatnonzero(~finite.reshape(len(rows), -1).all(axis=1))


def _within(bad: NDArray[np.int64], span: slice) -> int:
    return int(((bad >= span.start) & (bad < span.stop)).sum()) if len(bad) else 0


def _count_down(counts: list[tuple[Answer, int]], lock: Lock) -> None:
    """Report to callers how many of their rows came, then end those that have them all.

    In this order, because another worker may bring the last rows of a caller meanwhile: it ends
    after every call of its `on_progress`.
    """
    for answer, count in counts:
        if answer.on_progress and count and not answer.ticket.done():
            try:
                answer.on_progress(count)
            except BaseException as error:  # noqa: BLE001 - the caller's own, and not the engine's
                inside = error.__traceback__.tb_next if error.__traceback__ else None
                settle(answer.ticket, error.with_traceback(inside))
    finished = []
    with lock:
        for answer, count in counts:
            answer.missing -= count
            if not answer.missing:
                finished.append(answer)
    for answer in finished:
        settle(answer.ticket, answer.rows)


def _refuse(requests: list[Request], shape: tuple[int, ...], pairs: int) -> None:
    for request in requests:
        message = f"the model returned scores of shape {shape} for {pairs} pairs"
        settle(request.ticket, BackendError(message))


def _pair_error(batch: Batch, error: Exception, no_memory: bool) -> Exception:
    if isinstance(error, RerankError):
        return error
    row, tokens = batch.first()
    what = f"ran out of memory, even alone, with {tokens} tokens" if no_memory else "failed"
    wrapped = BackendError(f"the forward pass of pair {row} {what}: {error!r}")
    # The frames of an error of memory hold that memory, which others need while the caller reads.
    wrapped.__cause__ = error.with_traceback(None) if no_memory else error
    return wrapped
