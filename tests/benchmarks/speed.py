"""One rerank call of 50 documents: sentence-transformers beside this library, on the same weights.

    python tests/benchmarks/speed.py [--rounds 5] [--model FOLDER]

The model is the bundled one (MiniLM-L6 shape) unless a local folder with ONNX files is named.
Prints a Markdown table for one thread and for all; machines are noisy, so read the ratios.
"""

from __future__ import annotations

import argparse
import tempfile

import torch
from sentence_transformers import CrossEncoder
from texts import QUERY, documents, machine, medians

from rerank_adapters import Reranker
from rerank_adapters.backends import available_cpus
from rerank_adapters.loading import bundled


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="default")
    options = parser.parse_args()
    texts = documents()
    print(f"# 50 documents, one call\n\n{machine()}\n")
    with tempfile.TemporaryDirectory() as cache:
        folder = bundled.unpack(cache) if options.model == "default" else options.model
        model = CrossEncoder(str(folder), device="cpu", model_kwargs={"dtype": "float32"})
        lengths = [
            len(ids)
            for ids in model.tokenizer(
                [(QUERY, text) for text in texts], truncation=True, max_length=512
            )["input_ids"]
        ]
        print(f"tokens per pair: mean {sum(lengths) / 50:.0f}, longest {max(lengths)}\n")
        for threads in sorted({1, available_cpus()}):
            _table(model, options.model, texts, threads, options.rounds)


def _table(model: CrossEncoder, name: str, texts: list[str], threads: int, rounds: int) -> None:
    torch.set_num_threads(threads)
    pairs = [(QUERY, text) for text in texts]
    ours = {"num_threads": 1} if threads == 1 else {}  # else what it chooses itself
    loaded = {
        f"rerank-adapters onnx {dtype}": Reranker.from_pretrained(
            name, backend="onnx", dtype=dtype, **ours
        )
        for dtype in ("float32", "int8")
    }
    runs = {
        "sentence-transformers, its default (batch 32)": lambda: model.predict(pairs),
        "sentence-transformers, batch_size=1": lambda: model.predict(pairs, batch_size=1),
        **{
            label: (lambda reranker=reranker: reranker.rerank(QUERY, texts))
            for label, reranker in loaded.items()
        },
    }
    seconds = medians(runs, rounds=rounds)
    default, alone = list(seconds.values())[:2]
    print(f"## {threads} thread{'s' * (threads > 1)}\n")
    print("| | median ms | documents/s | x default | x batch_size=1 |\n|---|---|---|---|---|")
    for label, value in seconds.items():
        ratios = f"{default / value:.1f} | {alone / value:.1f}"
        print(f"| {label} | {value * 1e3:.0f} | {len(texts) / value:.0f} | {ratios} |")
    print()
    for reranker in loaded.values():
        reranker.close()


if __name__ == "__main__":
    main()
