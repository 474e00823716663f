"""What a call costs the host: tokenising, and the library's own work around a forward that is free.

    python -m tests.benchmarks.host [--rounds 5]

The tokenizer is the bundled model's, texts are 40 to 200 words, new in every round, and the device
a stub that answers at once. Prints markdown: when the first forward of a call begins and when the
call ends, tokenised at once and in chunks; and the CPU time of the same call where tokens cost
nothing, which is what the library itself does between texts and scores.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from rerank_adapters import Reranker
from rerank_adapters.loading import assemble, bundled
from rerank_adapters.protocols import BackendTraits
from rerank_adapters.scorers import queued
from rerank_adapters.tokenization import EncodedPairs, PairTokenizer
from rerank_adapters.tokens import TokenBatch
from tests.benchmarks.texts import machine
from tests.fakes import FirstLogitFamily

QUERY = "which river is the longest in the north"


@dataclass
class Stub:
    """A device that answers at once; `began` is when it was first called."""

    traits: BackendTraits
    began: float = 0.0
    forwards: int = 0
    padded: int = 0

    def logits(self, batch: TokenBatch) -> NDArray[np.float32]:
        self.began = self.began or time.perf_counter()
        self.forwards += 1
        self.padded += len(batch) * int(batch.lengths.max())
        return batch.lengths[:, None].astype(np.float32)

    def info(self) -> dict[str, str]:
        return {"backend": "stub", "device": "none"}

    def close(self) -> None:
        """Nothing is held."""


def texts(count: int, seed: int) -> list[str]:
    """Documents of 40 to 200 words, never seen before."""
    random = np.random.default_rng(seed)
    letters = np.array(list("etaoinshrdlucmfw"))
    words = ["".join(random.choice(letters, size)) for size in random.integers(2, 9, 3000)]
    return [" ".join(random.choice(words, size)) for size in random.integers(40, 201, count)]


DEVICES = {
    "CPU, 512": BackendTraits(batch_tokens=512, max_padding=0.03, free_padding=24),
    "GPU, 65,536": BackendTraits(
        device_kind="cuda", batch_tokens=65_536, free_padding=4096, pads=False
    ),
}


@dataclass
class Row:
    """One call: milliseconds to the first forward and to the end; padded per real token; counts."""

    first: float
    end: float
    padded: float
    forwards: int
    calls: int


def measured(tokenizer: PairTokenizer, traits: BackendTraits, documents: list[str]) -> Row:
    """One call with the real tokenizer."""
    stub, calls = Stub(traits), []
    encode = PairTokenizer.encode

    def counted(*args):
        calls.append(args)
        return encode(*args)

    with Reranker.over(assemble(tokenizer, FirstLogitFamily(), [stub])) as reranker:
        PairTokenizer.encode = counted
        try:
            wall = time.perf_counter()
            reranker.score(QUERY, documents)
            end = time.perf_counter() - wall
        finally:
            PairTokenizer.encode = encode
        real = reranker.stats()["batch_tokens"]
    first = stub.began - wall
    return Row(1e3 * first, 1e3 * end, stub.padded / real, stub.forwards, len(calls))


def host_alone(tokenizer: PairTokenizer, traits: BackendTraits, documents: list[str]) -> float:
    """Milliseconds of CPU of one call whose tokens are made up, by letters, less their making."""
    encode = PairTokenizer.encode
    spent = []

    def free(_tokenizer, pairs, *_args):
        began = time.thread_time()
        lengths = np.fromiter((len(document) // 4 + 3 for _, document in pairs), np.int64)
        ids = np.zeros(int(lengths.sum()), np.int32)
        made = EncodedPairs(TokenBatch(ids, ids, lengths), np.zeros(len(pairs), np.bool_))
        spent.append(time.thread_time() - began)
        return made

    with Reranker.over(assemble(tokenizer, FirstLogitFamily(), [Stub(traits)])) as reranker:
        PairTokenizer.encode = free
        try:
            reranker.score(QUERY, documents[:10])
            spent.clear()
            cpu = time.process_time()
            reranker.score(QUERY, documents)
            return 1e3 * (time.process_time() - cpu - sum(spent))
        finally:
            PairTokenizer.encode = encode


def table(tokenizer: PairTokenizer, counts: list[int], rounds: int) -> None:
    """Print one row for each device, count and way to tokenise."""
    chunk = queued.FIRST_CHUNK
    for name, traits in DEVICES.items():
        for count in counts:
            for way, first in (("at once", count), ("in chunks", chunk)):
                queued.FIRST_CHUNK = first
                runs = [measured(tokenizer, traits, texts(count, seed)) for seed in range(rounds)]
                alone = [host_alone(tokenizer, traits, texts(count, 0)) for _ in range(rounds)]
                row = [statistics.median(getattr(it, each.name) for it in runs) for each in COLUMNS]
                began, end, padded, forwards, calls = row
                print(
                    f"| {name} | {count:,} | {way} | {began:.1f} ms | {end:.1f} ms "
                    f"| {min(alone):.1f} ms | {padded:.3f} | {forwards:.0f} | {calls:.0f} |",
                    flush=True,
                )
    queued.FIRST_CHUNK = chunk


COLUMNS = fields(Row)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--counts", type=int, nargs="+", default=[100, 1000, 10_000])
    asked = parser.parse_args()
    print(f"# Host time of one call, a free forward\n\n{machine()}\n")
    print("| device's batches | documents | tokenised | first forward at | end at ", end="")
    print("| the library alone, CPU | padded / real | forwards | tokenizer calls |")
    print("|---|---:|---|" + "---:|" * 6)
    with tempfile.TemporaryDirectory() as cache:
        tokenizer = PairTokenizer.from_folder(bundled.unpack(cache), max_length=512)
        table(tokenizer, asked.counts, asked.rounds)


if __name__ == "__main__":
    main()
