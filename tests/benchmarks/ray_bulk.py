"""Pairs per second of Ray's actors beside one process, on this machine: `python -m ... LISTS`.

Both have the same cores: the process all of them, each of two actors its half. Loading and Ray's
start are left out: the second of two runs counts.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any

import ray

from rerank_adapters import Reranker
from rerank_adapters.ray import rerank_dataset
from rerank_adapters.ray.actors import keep_statistics_home

ACTORS = 2
DOCUMENTS = 20
WORDS = "The tower is tall and red, and nobody knows how old it is or who has built it. "


def rows(count: int) -> list[dict[str, Any]]:
    """Lists whose documents have one to five sentences."""
    return [
        {
            "query": f"how tall is tower {n}?",
            "documents": [f"{n} {at} {WORDS * (1 + at % 5)}" for at in range(DOCUMENTS)],
        }
        for n in range(count)
    ]


def second(run: Callable[[], int]) -> float:
    """Pairs per second of the second of two runs."""
    run()
    start = time.perf_counter()
    return run() / (time.perf_counter() - start)


def main(count: int) -> None:
    """Print both."""
    made = rows(count)
    with Reranker() as reranker:
        requests = [(row["query"], row["documents"]) for row in made]
        alone = second(lambda: sum(map(len, reranker.rerank_many(requests))))
    print(f"one process: {alone:.0f} pairs/s")
    cores = os.cpu_count() or 1
    keep_statistics_home()
    ray.init(address="local", num_cpus=cores + 2, include_dashboard=False, log_to_driver=False)
    dataset = ray.data.from_items(made, override_num_blocks=2 * ACTORS).materialize()
    ranked = rerank_dataset(
        dataset, num_actors=ACTORS, cpus_per_actor=cores / ACTORS, batch_size=16
    )
    together = second(lambda: sum(len(row["indices"]) for row in ranked.take_all()))
    ray.shutdown()
    print(f"{ACTORS} actors: {together:.0f} pairs/s, their start within every run")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 400)
