"""Does time grow with the documents and memory not: 10² to 10⁶ through rerank_iter and the shell.

    python -m tests.benchmarks.growth [--most 1000000] [--per-query 100]

Queue and tokenizer are the library's, the forward a stub that answers at once, so that what is
measured is everything around it. The command line has the bundled model, which computes, and so
goes to a hundredth of that, for one query. Each row is a process of its own. Prints markdown:
microseconds a document, and the peak of memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rerank_adapters import Reranker
from rerank_adapters.loading import assemble, bundled
from rerank_adapters.protocols import BackendTraits
from rerank_adapters.tokenization import PairTokenizer
from rerank_adapters.tokens import TokenBatch
from tests.benchmarks.texts import QUERY, documents, machine

TEXTS = 1000
"""Different texts; each document is one of them and its number, so that none is seen twice."""


class Stub:
    """A device that answers at once: a pair's logit is its length. No torch, which is memory."""

    traits = BackendTraits(device_kind="cuda", batch_tokens=65_536, free_padding=4096, pads=False)

    def logits(self, batch: TokenBatch) -> NDArray[np.float32]:
        return batch.lengths[:, None].astype(np.float32)

    def info(self) -> dict[str, str]:
        return {"backend": "stub", "device": "none"}

    def close(self) -> None:
        """Nothing is held."""


class Lengths:
    """A family whose score is the logit."""

    labels, activation = 1, "identity"

    def keys(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        return logits[:, 0]

    scores = keys


def requests(count: int, per_query: int) -> Iterator[tuple[str, list[str]]]:
    """*count* documents, made when they are asked for."""
    texts = documents(TEXTS, mean_tokens=60)
    for start in range(0, count, per_query):
        rows = range(start, min(start + per_query, count))
        yield f"{QUERY} {start}", [f"{row} {texts[row % TEXTS]}" for row in rows]


def stream(count: int, per_query: int) -> None:
    """Rank *count* documents through rerank_iter; print seconds and peak."""
    with tempfile.TemporaryDirectory() as cache:
        tokenizer = PairTokenizer.from_folder(bundled.unpack(cache), max_length=512)
        scorer = assemble(tokenizer, Lengths(), [Stub()])
        with Reranker.over(scorer) as reranker:
            started = time.perf_counter()
            ranked = sum(len(it) for it in reranker.rerank_iter(requests(count, per_query)))
            _told(count, ranked, time.perf_counter() - started, resource.RUSAGE_SELF)


def shell(count: int, per_query: int) -> None:
    """Rank *count* documents through the command line; print seconds and peak of that process."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "lines.jsonl"
        with file.open("w", encoding="utf-8") as lines:
            for _, texts in requests(count, per_query):
                lines.writelines(json.dumps({"text": text}) + "\n" for text in texts)
        command = [sys.executable, "-m", "rerank_adapters", "rerank", QUERY, "--jsonl"]
        started = time.perf_counter()
        with (
            file.open(encoding="utf-8") as lines,
            subprocess.Popen(command, stdin=lines, stdout=subprocess.PIPE, text=True) as process,
        ):
            ranked = sum(1 for _ in process.stdout)
        seconds = time.perf_counter() - started
        if process.returncode:
            raise SystemExit(f"the command line ended with {process.returncode}")
        _told(count, ranked, seconds, resource.RUSAGE_CHILDREN)


def _told(count: int, ranked: int, seconds: float, whose: int) -> None:
    if ranked != count:
        raise SystemExit(f"{ranked} of {count} documents came back")
    peak = resource.getrusage(whose).ru_maxrss / 1024
    print(f"{seconds:.2f} | {1e6 * seconds / count:.0f} | {peak:.0f}")


WAYS = {"rerank_iter": stream, "command line": shell}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, default=1_000_000)
    parser.add_argument("--per-query", type=int, default=100)
    parser.add_argument("--only", nargs=2, metavar=("WAY", "COUNT"))
    asked = parser.parse_args()
    if asked.only:
        WAYS[asked.only[0]](int(asked.only[1]), asked.per_query)
        return
    print(f"# Growth\n\n{machine()}\n")
    print("| | documents | s | µs a document | peak MB |\n|---|---:|---:|---:|---:|", flush=True)
    for way, most in (("rerank_iter", asked.most), ("command line", asked.most // 100)):
        count = 100
        while count <= most:
            command = [sys.executable, "-m", "tests.benchmarks.growth", "--only", way, str(count)]
            command += ["--per-query", str(asked.per_query)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            told = (done.stdout or done.stderr).strip().splitlines()[-1]
            print(f"| {way} | {count:,} | {told} |", flush=True)
            count *= 10


if __name__ == "__main__":
    main()
