"""What grows when an engine with a stub forward serves many requests of random length.

    python -m tests.benchmarks.soak [requests]        # 1,000,000 without an argument

Prints a markdown report: memory after each twentieth, its slope, threads and descriptors; ends with
code 1 where something was wrong, left over or grew.
"""

from __future__ import annotations

import gc
import platform
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np
import psutil

from rerank_adapters.tokens import Scores, TokenBatch
from tests.engine.traffic import Scheduler

IN_FLIGHT = 64
POOL = 2_000
MAX_SLOPE = 1.0
"""MB per 100,000 requests."""


@dataclass(slots=True)
class Report:
    """What `soak` saw; memory in MB, one entry per sample, the first before any request."""

    requests: int = 0
    wrong: int = 0
    seconds: float = 0.0
    memory: list[float] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)
    queue_length: int = 0
    unfinished: int = 0

    @property
    def slope(self) -> float:
        """MB per 100,000 requests, a line through the samples after the first quarter."""
        start = len(self.memory) // 4
        steps = np.arange(start, len(self.memory)) * self.requests / (len(self.memory) - 1)
        return float(np.polyfit(steps, self.memory[start:], 1)[0] * 100_000)

    def faults(self) -> list[str]:
        """What a soak must not show; MAX_SLOPE counts from 200,000 requests on."""
        short = self.requests < 200_000  # until then allocators still grow into their pools
        seen = {
            "wrong scores": self.wrong,
            "requests left in the queue": self.queue_length,
            "requests unfinished": self.unfinished,
            "more threads": self.threads[-1] - self.threads[0],
            "more descriptors": self.descriptors[-1] - self.descriptors[0],
            "memory grew": not short and self.slope > MAX_SLOPE,
        }
        return [name for name, count in seen.items() if count]


def first_tokens(batch: TokenBatch) -> Scores:
    """The stub: a pair's score is its first token."""
    return batch.input_ids[batch.offsets[:-1]].astype(np.float32)


def soak(requests: int, *, samples: int) -> Report:
    """Two threads submit *requests*, some are cancelled, all others are checked."""
    report = Report()
    pool = _requests()
    with Scheduler([first_tokens], max_batch_tokens=4096) as scheduler:
        scheduler.submit(pool[0]).result()
        _sample(report)
        started = time.perf_counter()
        for _ in range(samples):
            share = requests // samples // 2
            callers = [
                threading.Thread(target=_call, args=(scheduler, pool, share, report))
                for _ in range(2)
            ]
            for caller in callers:
                caller.start()
            for caller in callers:
                caller.join()
            report.requests += 2 * share
            _sample(report)
        report.seconds = time.perf_counter() - started
        stats = scheduler.stats()
        report.queue_length, report.unfinished = stats["queue_requests"], stats["unfinished"]
    return report


def _requests() -> list[TokenBatch]:
    random = np.random.default_rng(0)
    pool = []
    for _ in range(POOL):
        lengths = random.integers(1, 200, random.integers(1, 8))
        tokens = random.integers(0, 30_000, lengths.sum()).astype(np.int32)
        pool.append(TokenBatch(tokens, np.zeros_like(tokens), lengths))
    return pool


def _call(scheduler: Scheduler, pool: list[TokenBatch], count: int, report: Report) -> None:
    waiting: deque = deque()
    for number in range(count):
        encoded = pool[number % POOL]
        waiting.append((scheduler.submit(encoded), encoded))
        if number % 100 == 99:
            waiting.pop()[0].cancel()
        if len(waiting) >= IN_FLIGHT:
            _check(*waiting.popleft(), report)
    while waiting:
        _check(*waiting.popleft(), report)


def _check(future, encoded: TokenBatch, report: Report) -> None:
    report.wrong += not np.array_equal(future.result(60), first_tokens(encoded))


def _sample(report: Report) -> None:
    gc.collect()
    process = psutil.Process()
    report.memory.append(process.memory_info().rss / 1e6)
    report.threads.append(threading.active_count())
    report.descriptors.append(process.num_fds())


def main() -> None:
    """Run and print."""
    report = soak(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000, samples=20)
    print(f"## Soak: {report.requests:,} requests in {report.seconds:.0f} s")
    print(
        f"Python {platform.python_version()}, numpy {np.__version__}, "
        f"{psutil.cpu_count()} CPUs, {platform.platform()}\n"
    )
    print("| requests | RSS, MB | threads | descriptors |\n|---:|---:|---:|---:|")
    last = len(report.memory) - 1
    for at, row in enumerate(zip(report.memory, report.threads, report.descriptors, strict=True)):
        memory, threads, descriptors = row
        print(f"| {report.requests * at // last:,} | {memory:.1f} | {threads} | {descriptors} |")
    print(f"\nslope {report.slope:.3f} MB per 100,000 requests; wrong {report.wrong}; ", end="")
    print(f"queue {report.queue_length}; unfinished {report.unfinished}")
    if faults := report.faults():
        sys.exit(f"not clean: {', '.join(faults)}")


if __name__ == "__main__":
    main()
