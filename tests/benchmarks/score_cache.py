"""What a score cache saves: a made log in which 30 % of the queries came before.

Each query reranks the same number of documents of notebooks/corpus. Printed are the passes' pairs,
texts tokenised and seconds, without a cache, with one in memory and with one in a file, and whether
every ranking was the same.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

from rerank_adapters import Ranking, Reranker, ScoreCache

CORPUS = Path(__file__).parents[2] / "notebooks" / "corpus"
REPEATED = 0.3


def lines(name: str) -> list[str]:
    """The texts of one file of the corpus."""
    return [json.loads(line)["text"] for line in (CORPUS / name).read_text("utf-8").splitlines()]


def log(queries: int, seed: int) -> list[str]:
    """So many queries, of which the share REPEATED are drawn from those before them."""
    chance, texts = random.Random(seed), lines("queries.jsonl")
    made: list[str] = []
    repeated = set(chance.sample(range(1, queries), round(REPEATED * queries)))
    for number in range(queries):
        if number in repeated:
            made.append(chance.choice(made))
        else:
            made.append(f"{texts[number % len(texts)]} ({number // len(texts) + 1})")
    return made


def run(queries: list[str], documents: list[str], cache: ScoreCache | None) -> list[Ranking]:
    """Rerank for each query in turn, and print what it cost."""
    with Reranker(cache=cache) as reranker:
        reranker.warm()
        before = reranker.stats()
        started = time.perf_counter()
        rankings = [reranker.rerank(query, documents) for query in queries]
        seconds = time.perf_counter() - started
        after = reranker.stats()
    scored = {name: after[name] - before[name] for name in ("pairs", "tokens") if name in after}
    hits = after.get("cache_hits", 0)
    asked = hits + after.get("cache_misses", 0)
    share = f", {hits / asked:.0%} of pairs known, {after['cache_bytes']:,} bytes" if asked else ""
    print(f"{seconds:7.2f} s, scored {scored}{share}")
    return rankings


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--documents", type=int, default=20)
    arguments = parser.parse_args()
    queries = log(arguments.queries, seed=1)
    documents = lines("corpus.jsonl")[: arguments.documents]
    repeated = 1 - len(set(queries)) / len(queries)
    print(f"{len(queries)} queries, {repeated:.0%} came before, {len(documents)} documents each")
    print("no cache ", end="")
    bare = run(queries, documents, None)
    print("memory   ", end="")
    known = run(queries, documents, ScoreCache.memory(bytes=10_000_000))
    with tempfile.TemporaryDirectory() as folder:
        print("file     ", end="")
        file = ScoreCache.at(Path(folder) / "scores.sqlite", bytes=10_000_000)
        kept = run(queries, documents, file)
        file.close()
    print(f"rankings equal: {bare == known == kept}")


if __name__ == "__main__":
    main()
