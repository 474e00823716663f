"""Tokenising alone: tokenizers beside nanotoken, texts new in every round and texts seen before.

    python -m tests.benchmarks.tokenising [--count 1000] [--rounds 5]

The bundled model's tokenizer, English of natural length; nanotoken keeps words that it has read, so
both are shown. New texts have a tenth of their words never seen before. Prints markdown.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time

import numpy as np

from rerank_adapters.loading import bundled
from rerank_adapters.tokenization import PairTokenizer
from tests.benchmarks.texts import QUERY, documents, machine


def fresh(count: int, seed: int) -> list[str]:
    """English documents, and in each of them words of no language."""
    random = np.random.default_rng(seed)
    letters = np.array(list("etaoinshrdlucmfw"))
    texts = []
    for text in documents(count, seed=seed):
        words = text.split()
        for at in range(0, len(words), 10):
            words[at] = "".join(random.choice(letters, 7))
        texts.append(" ".join(words))
    return texts


def milliseconds(tokenizer: PairTokenizer, texts: list[str]) -> float:
    """Wall clock of one call."""
    started = time.perf_counter()
    tokenizer.encode([(QUERY, text) for text in texts])
    return 1e3 * (time.perf_counter() - started)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    print(f"# Tokenising {asked.count:,} documents, medians of {asked.rounds}\n\n{machine()}\n")
    print("| | texts new in every round | texts seen before |\n|---|---:|---:|")
    rounds = [fresh(asked.count, seed) for seed in range(asked.rounds + 1)]
    with tempfile.TemporaryDirectory() as cache:
        folder = bundled.unpack(cache)
        for choice in ("huggingface", "fast"):
            tokenizer = PairTokenizer.from_folder(folder, max_length=512, tokenizer=choice)
            milliseconds(tokenizer, rounds[0])
            new = [milliseconds(tokenizer, texts) for texts in rounds[1:]]
            seen = [milliseconds(tokenizer, rounds[-1]) for _ in range(asked.rounds)]
            told = f"{statistics.median(new):.1f} ms | {statistics.median(seen):.1f} ms"
            print(f"| {tokenizer.reads_with} | {told} |", flush=True)


if __name__ == "__main__":
    main()
