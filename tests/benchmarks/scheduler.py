"""What the queue costs and gives, over stub forwards.

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
from concurrent.futures import Future, wait
from dataclasses import dataclass

import numpy as np
import psutil

from rerank_adapters.engine.worker import Forward
from rerank_adapters.tokens import Scores, TokenBatch
from tests.engine.traffic import Scheduler

SHORTEST, LONGEST = 16, 256


@dataclass(frozen=True)
class Device:
    """How long a stub forward takes, and the batches that backends ask for on a device of the kind.

    A token takes *seconds*: 20e-6 is 370 pairs of 136 tokens per second, a fast CPU; 2e-6 is 3,700,
    a GPU, whose batches are *packed*: nothing is padded.
    """

    name: str
    seconds: float
    budget: int
    packed: bool = False

    def paced(self, batch: TokenBatch) -> Scores:
        """A forward that takes as long as its tokens, on a device of its own."""
        time.sleep(self.tokens(batch) * self.seconds)
        return free(batch)

    def tokens(self, batch: TokenBatch) -> int:
        """How many tokens are computed."""
        return len(batch.input_ids) if self.packed else len(batch) * int(batch.lengths.max())

    def scheduler(self, forward: Forward | None = None) -> Scheduler:
        """The queue before this device, or before another *forward*."""
        return Scheduler(
            [forward or self.paced],
            max_batch_tokens=self.budget,
            max_padding=0.03,
            free_padding=self.budget if self.packed else 24,
        )


CPU = Device("CPU", 20e-6, 512)
FAST = Device("ten times that CPU, its budget", 2e-6, 512)
GPU = Device("GPU", 2e-6, 65_536, packed=True)


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
    rows.append(
        f"| (to a thread and back: a Condition and a Future) | {hand_over() * 1e6:.0f} µs |"
    )
    return rows


def hand_over() -> float:
    """What any queue costs here: the median seconds of waking a thread and waiting for it."""
    waiting: list[Future[None] | None] = []
    work = threading.Condition()

    def serve() -> None:
        while True:
            with work:
                work.wait_for(lambda: waiting)
                future = waiting.pop()
            if future is None:
                return
            future.set_result(None)

    def call(future: Future[None] | None) -> None:
        with work:
            waiting.append(future)
            work.notify()
        if future:
            future.result()

    server = threading.Thread(target=serve)
    server.start()
    seconds = [timed(lambda: call(Future()), repeats=1)[0] for _ in range(2000)]
    call(None)
    server.join()
    return statistics.median(seconds)


def concurrent_against_bulk() -> list[str]:
    """64 callers with 20 documents each, all waiting at once, against one call of all 1,280."""
    small = requests(64, 20)
    bulk = [TokenBatch.join(small)]
    return [_against_bulk(small, bulk, device) for device in (CPU, FAST, GPU)]


def _against_bulk(small: list[TokenBatch], bulk: list[TokenBatch], device: Device) -> str:
    many, one = [], []
    with device.scheduler() as scheduler:
        for _ in range(5):
            many.append(timed(lambda: gather(scheduler, small), repeats=1)[0])
            one.append(timed(lambda: gather(scheduler, bulk), repeats=1)[0])
    rates = [1280 / statistics.median(runs) for runs in (many, one)]
    padded = [padded_tokens(waiting, device) for waiting in (small, bulk)]
    return (
        f"| {device.name}, {device.budget:,} | {rates[0]:,.0f} | {rates[1]:,.0f} "
        f"| {rates[0] / rates[1]:.3f} | {padded[1] / padded[0]:.3f} |"
    )


def padded_tokens(waiting: list[TokenBatch], device: Device) -> int:
    """The padded tokens the queue's batches of *waiting* add up to, when all wait at once."""
    total = 0
    go = threading.Event()

    def counting(batch: TokenBatch) -> Scores:
        nonlocal total
        go.wait()
        total += device.tokens(batch)
        return free(batch)

    with device.scheduler(counting) as scheduler:
        futures = [scheduler.submit(encoded) for encoded in waiting]
        go.set()
        for future in futures:
            future.result()
    return total


def fairness() -> list[str]:
    """500 documents in a stream of single ones that takes 80 % of the forward's time."""
    return [_fairness(device) for device in (CPU, FAST, GPU)]


def _fairness(device: Device) -> str:
    big = requests(1, 500, seed=1)[0]
    singles = requests(500, 1, seed=2)
    with device.scheduler() as scheduler:
        idle = statistics.median(
            timed(lambda: gather(scheduler, [big]), repeats=1)[0] for _ in range(3)
        )
        each = timed(lambda: [device.paced(it) for it in singles], repeats=1)[0] / len(singles)
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
    return (
        f"| {device.name} | {idle * 1e3:.0f} ms | {loaded * 1e3:.0f} ms | {loaded / idle:.2f}x "
        f"| {statistics.median(waits) * 1e3:.1f} ms | {late * 1e3:.1f} ms |"
    )


def _stream(
    scheduler: Scheduler,
    singles: list[TokenBatch],
    each: float,
    stop: threading.Event,
    waits: list[float],
) -> None:
    """Single documents at 80 % load: one every 1.25 forwards of one, answered or not."""
    due, number, futures = time.perf_counter(), 0, []
    while not stop.is_set():
        began = time.perf_counter()
        future = scheduler.submit(singles[number % len(singles)])
        future.add_done_callback(lambda _, it=began: waits.append(time.perf_counter() - it))
        futures.append(future)
        number += 1
        due += each / 0.8
        time.sleep(max(0.0, due - time.perf_counter()))
    wait(futures)  # the next round finds an empty queue


def main() -> None:
    """Run everything and print it."""
    print("## The engine alone")
    print(
        f"Python {platform.python_version()}, numpy {np.__version__}, {psutil.cpu_count()} CPUs, "
        f"{platform.processor() or platform.machine()}, load {psutil.getloadavg()[0]:.1f}\n"
    )
    print("| capacity | documents/s | documents per CPU second |\n|---|---:|---:|")
    print("\n".join(capacity()))
    print("\n| a lone call of | latency added, median |\n|---|---:|")
    print("\n".join(added_latency()))
    print("\n| device, budget | 64 callers, documents/s | one call | ratio | its padding alone |")
    print("|---|---:|---:|---:|---:|")
    print("\n".join(concurrent_against_bulk()))
    print("\n| fairness at 80 % load | 500 documents, idle | in the stream | ratio ", end="")
    print("| a single document, median | 99th percentile |\n|---|---:|---:|---:|---:|---:|")
    print("\n".join(fairness()))


if __name__ == "__main__":
    main()
