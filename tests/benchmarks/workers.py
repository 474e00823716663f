"""One rerank call on the CPU by onnx: forwards side by side, or one on all cores.

    python tests/benchmarks/workers.py [--rounds 5]

Every row shares this process's CPUs (its affinity) another way: w workers and a pool of t threads,
callers counted in. Same weights, same texts, the runs take turns. Prints a Markdown table of median
milliseconds for lists of 1, 5, 20 and 50 documents; the first row is what the library chooses.
"""

from __future__ import annotations

import argparse
import itertools

from texts import QUERY, documents, machine, medians

from rerank_adapters import Reranker
from rerank_adapters.backends import available_cpus

COUNTS = (1, 5, 20, 50)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    cpus = available_cpus()
    print(f"# Workers and threads on {cpus} CPUs\n\n{machine()}\n")
    texts = documents()
    for dtype in ("float32", "int8"):
        print(f"## {dtype}, median ms\n")
        print("| workers | threads |", " | ".join(f"{count} documents" for count in COUNTS), "|")
        print("|---|---|" + "---|" * len(COUNTS))
        rerankers = {}
        for workers, threads in [(None, None), *_splits(cpus)]:
            rerankers[workers, threads] = Reranker.from_pretrained(
                backend="onnx", dtype=dtype, num_workers=workers, num_threads=threads
            )
        runs = {
            f"{split} {count}": (lambda r=reranker, n=count: r.rerank(QUERY, texts[:n]))
            for split, reranker in rerankers.items()
            for count in COUNTS
        }
        seconds = medians(runs, rounds=options.rounds)
        for split, reranker in rerankers.items():
            info = reranker.info()
            cells = " | ".join(f"{seconds[f'{split} {count}'] * 1e3:.1f}" for count in COUNTS)
            print(f"| {info.workers} | {info.num_threads} | {cells} |")
            reranker.close()
        print()


def _splits(cpus: int) -> list[tuple[int, int]]:
    """One worker on all; two, four, …, with a pool for the rest, and with threads of their own."""
    powers = list(itertools.takewhile(lambda n: n <= cpus, (2**n for n in range(8))))
    shared = [(workers, cpus - workers + 1) for workers in powers]
    apart = [(workers, cpus // workers) for workers in powers]
    return list(dict.fromkeys([*shared, *apart]))


if __name__ == "__main__":
    main()
