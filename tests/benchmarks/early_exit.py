"""What an early exit of the bundled model saves and costs: layer-tokens and nDCG@10.

    python -m tests.benchmarks.early_exit DATA [--queries 50] [--candidates 50] [--keep 15]

DATA is a BEIR or TREC folder, such as a measuring set. Layer-tokens are tokens times the layers
that each of them ran, from what the engine counts; no clock is read. The interval is a paired
bootstrap's over queries, 95 %, of the loss of nDCG@10.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from rerank_adapters import EarlyExit, Reranker
from rerank_adapters.cli.collection import Collection, read_collection
from rerank_adapters.cli.evaluate import measures, rerank_collection

LAYERS = 6
STOPS = (2, 3, 4)
DRAWS = 10_000


def measure(
    collection: Collection, early: EarlyExit | None, candidates: int
) -> tuple[np.ndarray, int]:
    """nDCG@10 of each query, and the tokens of all batches, of both stages."""
    with Reranker(early_exit=early) as reranker:
        report = rerank_collection(
            collection, reranker, run=None, candidates=candidates, output=None
        )
        tokens = reranker.stats()["batch_tokens"]
    gain = str(measures(candidates)[0])
    return np.array([report.after[query][gain] for query in collection.queries]), tokens


def bounds(losses: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the mean loss, by a paired bootstrap over queries."""
    generator = np.random.default_rng(0)
    draws = generator.integers(0, len(losses), (DRAWS, len(losses)))
    low, high = np.percentile(losses[draws].mean(axis=1), (2.5, 97.5))
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--candidates", type=int, default=50)
    parser.add_argument("--keep", type=int, default=15)
    arguments = parser.parse_args()
    collection = read_collection(arguments.data)
    chosen = dict(list(collection.queries.items())[: arguments.queries])
    collection = Collection(chosen, collection.qrels, collection.documents)
    whole, tokens = measure(collection, None, arguments.candidates)
    print(f"{len(chosen)} queries, {arguments.candidates} candidates, {tokens} tokens")
    print(f"all layers      nDCG@10 {whole.mean():.4f}")
    for layer in STOPS:
        early = EarlyExit(layer=layer, keep=arguments.keep)
        gains, both = measure(collection, early, arguments.candidates)
        work = layer * tokens + (LAYERS - layer) * (both - tokens)
        low, high = bounds(whole - gains)
        print(
            f"layer {layer} keep {arguments.keep} nDCG@10 {gains.mean():.4f}, loss "
            f"{(whole - gains).mean():+.4f} [{low:+.4f}, {high:+.4f}], "
            f"{LAYERS * tokens / work:.2f}x less layer-tokens"
        )


if __name__ == "__main__":
    main()
