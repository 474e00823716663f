"""What stored document tokens save: host time per 1,000 documents, with and without.

The network is one that answers at once, so that the host's work is all there is: checks,
tokenising, queue, batches, ranking. Texts are cut from the corpus, none of them twice.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rerank_adapters import DocumentTokens, Reranker, RerankerConfig
from rerank_adapters.loading import assemble, find, read
from rerank_adapters.protocols import BackendTraits, RerankRequest
from rerank_adapters.tokens import TokenBatch

CORPUS = Path(__file__).parents[2] / "notebooks" / "corpus" / "corpus.jsonl"
QUERY = "how do I book an evening at the telescope?"


class AtOnce:
    """A Backend that computes nothing."""

    traits = BackendTraits(batch_tokens=65536)

    def logits(self, batch: TokenBatch) -> NDArray[np.float32]:
        return np.zeros((len(batch), 1), np.float32)

    def info(self) -> Mapping[str, str | int]:
        return {}

    def close(self) -> None:
        return


def documents(count: int, characters: int) -> list[str]:
    """So many texts, none of them twice."""
    passages = [json.loads(line)["text"] for line in CORPUS.read_text("utf-8").splitlines()]
    whole = " ".join(passages)
    step = max(1, (len(whole) - characters) // count)
    return [whole[at * step : at * step + characters] for at in range(count)]


def milliseconds(
    tokens: DocumentTokens | None, texts: list[str], ids: list[str] | None, rounds: int
) -> float:
    """The median time of one request of all *texts*, over *rounds*."""
    meaning = read(find(RerankerConfig()))
    scorer = assemble(meaning.tokenizer, meaning.family, [AtOnce()], document_tokens=tokens)
    with Reranker.over(scorer) as reranker:
        if tokens is not None and not len(tokens):
            tokens.add(zip(ids or [], texts, strict=True))
        request = RerankRequest(QUERY, texts, ids=ids)
        reranker.rerank_many([request])
        taken = []
        for _ in range(rounds):
            started = time.perf_counter()
            reranker.rerank_many([request])
            taken.append((time.perf_counter() - started) * 1e3)
        return statistics.median(taken)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--characters", type=int, nargs="+", default=[300, 900, 2700])
    arguments = parser.parse_args()
    print("| characters | tokenised | stored in memory | stored in a folder |")
    print("|---:|---:|---:|---:|")
    ids = [f"doc-{number}" for number in range(1000)]
    for characters in arguments.characters:
        texts = documents(1000, characters)
        bare = milliseconds(None, texts, None, arguments.rounds)
        memory = milliseconds(DocumentTokens.memory(), texts, ids, arguments.rounds)
        with tempfile.TemporaryDirectory() as folder:
            kept = milliseconds(DocumentTokens.at(folder), texts, ids, arguments.rounds)
        print(f"| {characters} | {bare:.0f} ms | {memory:.0f} ms | {kept:.0f} ms |", flush=True)


if __name__ == "__main__":
    main()
