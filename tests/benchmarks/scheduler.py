"""What the scheduler costs and gives, over stub forwards.

    python -m tests.benchmarks.scheduler

Prints markdown: capacity, latency added to a lone call, 64 callers against one bulk call, and how a
large request fares in a stream of small ones. Seconds of CPU stand beside seconds of the clock, for
machines that are busy.
"""

from __future__ import annotations

import platform
import statistics
import threading
import time
from collections.abc import Callable

import numpy as np
import psutil

from rerank_adapters.scorers.scheduling import Scheduler
from rerank_adapters.values import Scores, TokenBatch

SHORTEST, LONGEST = 16, 256
SECONDS_PER_TOKEN = 2e-6
"""Of a device that scores 3,700 pairs of 136 tokens per second."""


def requests(count: int, pairs: int, *, seed: int = 0) -> list[TokenBatch]:
    """*count* requests of *pairs* documents of 16 to 256 tokens."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        lengths = random.integers(SHORTEST, LONGEST, pairs)
        tokens = random.integers(0, 30_000, lengths.sum()).astype(np.int32)
        made.append(TokenBatch(tokens, np.zeros_like(tokens), lengths))
    return made


def free(batch: TokenBatch) -> Scores:
    """A forward that costs next to nothing: the first token of each pair."""
    return batch.input_ids[batch.offsets[:-1]].astype(np.float32)


def paced(batch: TokenBatch) -> Scores:
    """A forward that takes as long as its padded tokens, on a device of its own."""
    time.sleep(len(batch) * int(batch.lengths.max()) * SECONDS_PER_TOKEN)
    return free(batch)


def timed(work: Callable[[], object], *, repeats: int = 5) -> tuple[float, float]:
    """The best of *repeats*: (seconds of the clock, seconds of CPU)."""
    runs = []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        runs.append((time.perf_counter() - wall, time.process_time() - cpu))
    return min(run[0] for run in runs), min(run[1] for run in runs)


def gather(scheduler: Scheduler, waiting: list[TokenBatch]) -> None:
    """Submit all of *waiting* at once and take every result."""
    for future in [scheduler.submit(encoded) for encoded in waiting]:
        future.result()


def capacity() -> list[str]:
    """Documents per second through the queue when forwards are free."""
    rows = []
    for calls, pairs in ((200, 100), (2000, 10), (20_000, 1)):
        waiting = requests(calls, pairs)
        with Scheduler([free]) as scheduler:
            wall, cpu = timed(lambda it=waiting, queue=scheduler: gather(queue, it))
        documents = calls * pairs
        rows.append(
            f"| {calls:,} calls of {pairs} | {documents / wall:,.0f} | {documents / cpu:,.0f} |"
        )
    return rows


def added_latency() -> list[str]:
    """What the queue adds to one call of one caller, median of 2,000."""
    rows = []
    for label, lengths in (
        ("1 document", [128]),
        ("20 documents, one batch", [128] * 20),
        ("20 documents, ten batches", [128] * 20),
    ):
        budget = 256 if "ten" in label else 4096
        tokens = np.zeros(sum(lengths), np.int32)
        encoded = TokenBatch(tokens, tokens, np.array(lengths))
        with Scheduler([free], max_batch_tokens=budget) as scheduler:
            queued = [
                timed(lambda it=encoded, queue=scheduler: queue.score(lambda: it), repeats=1)[0]
                for _ in range(2000)
            ]
        bare = [timed(lambda it=encoded: free(it), repeats=1)[0] for _ in range(2000)]
        added = statistics.median(queued) - statistics.median(bare)
        rows.append(f"| {label} | {added * 1e6:.0f} µs |")
    return rows


def concurrent_against_bulk() -> list[str]:
    """64 callers with 20 documents each, all waiting at once, against one call of all 1,280."""
    small = requests(64, 20)
    bulk = [TokenBatch.join(small)]
    return [_against_bulk(small, bulk, budget) for budget in (2048, 16_384)]


def _against_bulk(small: list[TokenBatch], bulk: list[TokenBatch], budget: int) -> str:
    many, one = [], []
    with Scheduler([paced], max_batch_tokens=budget) as scheduler:
        for _ in range(9):
            many.append(timed(lambda: gather(scheduler, small), repeats=1)[0])
            one.append(timed(lambda: gather(scheduler, bulk), repeats=1)[0])
    rates = [1280 / statistics.median(runs) for runs in (many, one)]
    padded = [padded_tokens(waiting, budget) for waiting in (small, bulk)]
    return (
        f"| {budget:,} | {rates[0]:,.0f} | {rates[1]:,.0f} | {rates[0] / rates[1]:.3f} "
        f"| {padded[1] / padded[0]:.3f} |"
    )


def padded_tokens(waiting: list[TokenBatch], budget: int) -> int:
    """The padded tokens the queue's batches of *waiting* add up to, when all wait at once."""
    total = 0
    go = threading.Event()

    def counting(batch: TokenBatch) -> Scores:
        nonlocal total
        go.wait()
        total += len(batch) * int(batch.lengths.max())
        return free(batch)

    with Scheduler([counting], max_batch_tokens=budget) as scheduler:
        futures = [scheduler.submit(encoded) for encoded in waiting]
        go.set()
        for future in futures:
            future.result()
    return total


def fairness() -> list[str]:
    """500 documents in a stream of single ones that takes 80 % of the forward's time."""
    big = requests(1, 500, seed=1)[0]
    singles = requests(500, 1, seed=2)
    with Scheduler([paced], max_batch_tokens=2048) as scheduler:
        idle = statistics.median(
            timed(lambda: gather(scheduler, [big]), repeats=1)[0] for _ in range(5)
        )
        each = timed(lambda: [paced(it) for it in singles], repeats=3)[0] / len(singles)
        waits, bigs = [], []
        for _ in range(5):
            stop = threading.Event()
            stream = threading.Thread(target=_stream, args=(scheduler, singles, each, stop, waits))
            stream.start()
            time.sleep(20 * each)
            bigs.append(timed(lambda: gather(scheduler, [big]), repeats=1)[0])
            stop.set()
            stream.join()
    loaded = statistics.median(bigs)
    late = statistics.quantiles(waits, n=100)[98]
    return [
        f"| 500 documents, idle | {idle * 1e3:.1f} ms | |",
        f"| 500 documents in the stream | {loaded * 1e3:.1f} ms | {loaded / idle:.2f}x |",
        f"| a single document in the stream, median | {statistics.median(waits) * 1e3:.2f} ms | |",
        f"| a single document in the stream, 99th percentile | {late * 1e3:.2f} ms | |",
    ]


def _stream(
    scheduler: Scheduler,
    singles: list[TokenBatch],
    each: float,
    stop: threading.Event,
    waits: list[float],
) -> None:
    """Single documents at 80 % load: one every 1.25 forwards of one, answered or not."""
    due, number = time.perf_counter(), 0
    while not stop.is_set():
        began = time.perf_counter()
        future = scheduler.submit(singles[number % len(singles)])
        future.add_done_callback(lambda _, it=began: waits.append(time.perf_counter() - it))
        number += 1
        due += each / 0.8
        time.sleep(max(0.0, due - time.perf_counter()))


def main() -> None:
    """Run everything and print it."""
    print("## The scheduler alone")
    print(
        f"Python {platform.python_version()}, numpy {np.__version__}, {psutil.cpu_count()} CPUs, "
        f"{platform.processor() or platform.machine()}, load {psutil.getloadavg()[0]:.1f}\n"
    )
    print("| capacity | documents/s | documents per CPU second |\n|---|---:|---:|")
    print("\n".join(capacity()))
    print("\n| a lone call of | latency added, median |\n|---|---:|")
    print("\n".join(added_latency()))
    print("\n| budget | 64 callers, documents/s | one call | ratio | padded tokens, ratio |")
    print("|---:|---:|---:|---:|---:|")
    print("\n".join(concurrent_against_bulk()))
    print("\n| fairness at 80 % load | time | of idle |\n|---|---:|---:|")
    print("\n".join(fairness()))


if __name__ == "__main__":
    main()
