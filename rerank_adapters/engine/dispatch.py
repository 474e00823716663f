"""Which worker takes how much of the queue, and when."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter

from .crew import Crew
from .queue import RequestQueue
from .requests import Batch
from .stats import ForwardStats, Snapshot
from .worker import Worker

MOST_RUNNING = 8
"""Pairs longer than a batch may be are batches of their own, and need memory beyond the budget:
workers take no more while this many budgets of tokens (or one per worker) are being computed."""

MIN_BATCH = 4
"""Idle workers share what waits, in batches of at least this many times what one more forward costs
in addition to its tokens (`BatchRule.free_padding`)."""


class Dispatch:
    """Hands batches to workers: each takes what waits at once, a share of it while others are idle.

    Its engine's lock guards it.
    """

    def __init__(
        self,
        lock: threading.RLock,
        queue: RequestQueue,
        workers: Sequence[Worker],
        stats: ForwardStats,
        *,
        is_ending: Callable[[], bool],
    ) -> None:
        """*is_ending* says when *workers* leave."""
        self._lock = lock
        self._queue = queue
        self._stats = stats
        self._is_ending = is_ending
        self._work = threading.Condition(lock)
        self._workers = workers
        self._workers_running = 0  # those inside a forward, and the tokens there
        self._tokens_running = 0
        self._threads: list[threading.Thread] = []

    def start(self, crew: Crew) -> None:
        """Give each worker a thread of *crew*. The lock is held."""
        for number, worker in enumerate(self._workers):
            step = partial(self._serve, worker)
            self._threads.append(crew.spawn(f"rerank-worker-{number}", step))

    def serving(self) -> bool:
        """Whether the calling thread is a worker: it runs the callbacks of what it scored."""
        return threading.current_thread() in self._threads

    def snapshot(self) -> Snapshot:
        """What all forwards did, and the budget that memory allows now. The lock is held."""
        budget = int(min((worker.budget for worker in self._workers), default=0))
        return {"max_batch_tokens": budget, **self._stats.snapshot()}

    def seconds_until_served(self) -> float:
        """About how long it takes to compute what waits; 0 before the first batch."""
        return self._stats.seconds_for(self._queue.load.tokens) / max(1, len(self._workers))

    def notify(self) -> None:
        """There is work for one more worker. The lock is held."""
        self._work.notify()

    def wake(self) -> None:
        """Look again whether all is ending. The lock is held."""
        self._work.notify_all()

    def _serve(self, worker: Worker) -> bool:
        """One round of *worker*: wait for a batch, run it and what it is split into."""
        batches, tokens = self._next_batch(worker)
        if not batches:
            return False
        try:
            while batches:
                batches.extend(worker.run(batches.pop(), self._stats, self._lock))
        finally:
            with self._lock:
                self._workers_running -= 1
                self._tokens_running -= tokens
                self._work.notify()
        return True

    def _next_batch(self, worker: Worker) -> tuple[list[Batch], int]:
        """What *worker* is to run, nothing when it is to leave, and the tokens in it."""
        with self._lock:
            while not self._queue or self._is_full():
                if self._is_ending():
                    return [], 0
                self._work.wait()
            if self._is_ending():
                return [], 0
            batch, tokens = self._queue.take(worker.rule, self._budget(worker))
            self._workers_running += 1
            self._tokens_running += tokens
            now = perf_counter()
            for request, _ in batch.parts:
                if owner := request.ticket.owner:
                    owner.taken(request, now)
            if self._queue:
                self._work.notify()
        return [batch], tokens

    def _is_full(self) -> bool:
        """Whether as many tokens are being computed as should be."""
        if not self._workers_running:
            return False
        budgets = sum(worker.rule.max_tokens for worker in self._workers)
        return self._tokens_running >= budgets * max(1.0, MOST_RUNNING / len(self._workers))

    def _budget(self, worker: Worker) -> int:
        """The tokens *worker* may take: its share of what waits, while others are idle too."""
        idle = len(self._workers) - self._workers_running
        if idle < 2:
            return int(worker.budget)
        share = math.ceil(self._queue.load.tokens / idle)
        return int(min(worker.budget, max(share, MIN_BATCH * worker.rule.free_padding)))
