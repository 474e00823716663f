"""The first score of a fresh process: the bundled model beside sentence-transformers.

    python tests/benchmarks/cold_start.py [--rounds 7]

Each run is a new interpreter that imports, loads and scores one pair, on the same weights; the
files are in the system's page cache. Prints a Markdown table of medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time

from texts import machine

from rerank_adapters.loading import bundled

PAIR = '("how do whales breathe", "Whales breathe air through a blowhole.")'
RUN = """
import json, time
start = time.perf_counter()
{imports}
imported = time.perf_counter()
{load}
loaded = time.perf_counter()
{score}
print(json.dumps([imported - start, loaded - imported, time.perf_counter() - loaded]))
"""


def main() -> None:
    """Measure in turns and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        folder = str(bundled.unpack(cache))
        scripts = {
            "rerank-adapters, default (onnx int8)": ours("Reranker.from_pretrained()"),
            "rerank-adapters, onnx float32": ours('Reranker.from_pretrained(dtype="float32")'),
            "rerank-adapters, torch": ours('Reranker.from_pretrained(backend="torch")'),
            "sentence-transformers": RUN.format(
                imports="from sentence_transformers import CrossEncoder",
                load=f'model = CrossEncoder({folder!r}, device="cpu")',
                score=f"model.predict([{PAIR}])",
            ),
        }
        runs = {name: [] for name in scripts}
        for _ in range(options.rounds):
            for name, script in scripts.items():
                runs[name].append(once(script))
    print(f"# From a fresh process to the first score\n\n{machine()}\n")
    print("| | import | load | score | whole process |\n|---|---:|---:|---:|---:|")
    for name, times in runs.items():
        columns = [statistics.median(column) for column in zip(*times, strict=True)]
        print(f"| {name} | " + " | ".join(f"{seconds:.2f} s" for seconds in columns) + " |")


def ours(load: str) -> str:
    """A script that scores with a reranker of ours."""
    return RUN.format(
        imports="from rerank_adapters import Reranker",
        load=f"model = {load}",
        score=f"model.score_pairs([{PAIR}])",
    )


def once(script: str) -> list[float]:
    """Seconds of importing, loading and scoring, and of the process from start to end."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return [*json.loads(done.stdout.splitlines()[-1]), time.perf_counter() - start]


if __name__ == "__main__":
    main()
