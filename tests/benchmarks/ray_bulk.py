"""Pairs per second of two of Ray's actors beside one process, on this machine.

    python tests/benchmarks/ray_bulk.py [--lists 200] [--rounds 3]

Both have the same cores: the process all of them, each actor its half; Ray is told of two more,
which it wants to itself, and its workers are as nice as any process. A run of few lists and one of
many take turns; what the many take longer is the pace, and the rest of it the start, which is
loading and, of actors, their processes. Seconds of CPU, Ray's own among them, stand beside seconds
of the clock, for machines that are busy.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil
import ray
from texts import documents, machine

from rerank_adapters import Reranker
from rerank_adapters.ray import Job, rerank_dataset

ACTORS, DOCUMENTS, BATCH = 2, 20, 16
Row = dict[str, Any]
Pace = tuple[float, float, float]
"""Pairs per second, pairs per second of CPU, seconds of the start."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lists", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    cores = os.cpu_count() or 1
    os.environ.setdefault("RAY_worker_niceness", "0")  # 15 by itself
    ray.init(address="local", num_cpus=cores + 2, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    runs = {"one process": alone, f"{ACTORS} actors of Ray Data": actors}
    found: dict[str, list[Pace]] = {name: [] for name in runs}
    made = rows(options.lists)
    loads = [os.getloadavg()[0]]
    for _ in range(options.rounds):
        for name, run in runs.items():
            found[name].append(pace(run, made))
            loads.append(os.getloadavg()[0])
    ray.shutdown()
    report(found, made, loads)


def rows(count: int) -> list[Row]:
    """Lists whose documents have other words each, and lengths as passages have them."""
    return [
        {
            "query": f"how long does the battery of tide sensor {n} last in winter",
            "documents": documents(DOCUMENTS, mean_tokens=112, seed=n),
        }
        for n in range(count)
    ]


def alone(made: list[Row]) -> int:
    """Rank them all in this process, whose engine is loaded first."""
    with Reranker() as reranker:
        found = reranker.rerank_many([(row["query"], row["documents"]) for row in made])
    return sum(map(len, found))


def actors(made: list[Row]) -> int:
    """Rank them all in actors, which are started first."""
    job = Job(num_actors=ACTORS, cpus_per_actor=(os.cpu_count() or 1) / ACTORS, batch_size=BATCH)
    dataset = ray.data.from_items(made, override_num_blocks=max(ACTORS, len(made) // BATCH))
    return sum(len(row["indices"]) for row in rerank_dataset(dataset, job).take_all())


def pace(run: Callable[[list[Row]], int], made: list[Row]) -> Pace:
    """What all lists take longer than a fifth of them."""
    few, many = (timed(run, part) for part in (made[: len(made) // 5], made))
    pairs, clock, cpu = (more - less for more, less in zip(many, few, strict=True))
    return pairs / clock, pairs / cpu, many[1] - many[0] * clock / pairs


def timed(run: Callable[[list[Row]], int], made: list[Row]) -> tuple[float, float, float]:
    """Pairs, seconds, and seconds of CPU of this process and all below it, dead ones too."""
    seen: dict[int, float] = {}
    done = threading.Event()
    watch(seen)
    before, start = sum(seen.values()), time.perf_counter()
    watcher = threading.Thread(
        target=lambda: [watch(seen) for _ in iter(lambda: done.wait(0.2), True)]
    )
    watcher.start()
    pairs = run(made)
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    watch(seen)
    return pairs, seconds, sum(seen.values()) - before


def watch(seen: dict[int, float]) -> None:
    """Note the seconds of each living process: of dead ones Ray tells nobody."""
    here = psutil.Process()
    for it in [here, *here.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            seen[it.pid] = sum(it.cpu_times()[:2])


def report(found: dict[str, list[Pace]], made: list[Row], loads: list[float]) -> None:
    """Medians as a Markdown table."""
    with Reranker() as reranker:
        pairs = [f"{row['query']} {text}" for row in made[:50] for text in row["documents"]]
        tokens = statistics.mean(reranker.count_tokens(pairs)) + 1
    print(f"# Ray's actors beside one process, on {os.cpu_count()} CPUs\n\n{machine()}\n")
    print(
        f"ray {ray.__version__}; {len(made)} lists of {DOCUMENTS} documents, {tokens:.0f} tokens a "
        f"pair, the bundled model in int8; median of {len(next(iter(found.values())))}; load "
        f"{min(loads):.1f} to {max(loads):.1f}, of which these runs are {os.cpu_count()}\n"
    )
    print("| | pairs/s | pairs per CPU second | start |\n|---|---:|---:|---:|")
    for name, paces in found.items():
        clock, cpu, start = map(statistics.median, zip(*paces, strict=True))
        print(f"| {name} | {clock:.0f} | {cpu:.0f} | {start:.1f} s |")


if __name__ == "__main__":
    main()
