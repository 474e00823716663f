"""What it costs to give memory back after a long document: onnxruntime's arena, shrunk and kept.

    python tests/benchmarks/arena.py [--rounds 15] [--tokens 512]

The bundled model in float32 scores one short pair, one long one and a short one again, with the
arena shrunk as the backend does it, and with it left alone. Prints medians of the forwards, and the
memory that stayed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
from texts import machine

from rerank_adapters.backends.onnx import OnnxBackend, _Memory
from rerank_adapters.loading import bundled
from rerank_adapters.tokens import TokenBatch

ROWS = 32


def batch(rows: int, tokens: int) -> TokenBatch:
    """So many rows of one word."""
    ids = np.full(rows * tokens, 2000, np.int32)
    return TokenBatch(ids, np.zeros_like(ids), np.full(rows, tokens, np.int64))


def resident() -> float:
    """Megabytes that the process holds."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def run(*, shrinks: bool, rounds: int, tokens: int) -> tuple[float, float, float, float]:
    """Return median milliseconds of (short, long, short after long), and megabytes that stayed."""
    backend = OnnxBackend(bundled.folder() / "model.onnx", num_threads=1)
    backend._memory = _Memory(tokens if shrinks else None)
    short, long = batch(1, 32), batch(ROWS, tokens)
    for _ in range(5):
        backend.logits(short)
    before, times = resident(), []
    for _ in range(rounds):
        marks = [time.perf_counter()]
        for one in (short, long, short):
            backend.logits(one)
            marks.append(time.perf_counter())
        times.append([1000 * (end - start) for start, end in pairwise(marks)])
    stayed = resident() - before
    backend.close()
    medians = [statistics.median(column) for column in zip(*times, strict=True)]
    return medians[0], medians[1], medians[2], stayed


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=512)
    options = parser.parse_args()
    print(machine())
    print(
        f"| arena | short, ms | {ROWS} x {options.tokens} tokens, ms | short after, ms | MB left |"
    )
    print("| --- | --- | --- | --- | --- |")
    for name, shrinks in (("shrunk", True), ("left alone", False)):
        figures = run(shrinks=shrinks, rounds=options.rounds, tokens=options.tokens)
        print(f"| {name} | " + " | ".join(f"{figure:.1f}" for figure in figures) + " |")


if __name__ == "__main__":
    main()
