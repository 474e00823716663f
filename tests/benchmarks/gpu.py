"""Rerank calls on a GPU: sentence-transformers' default and best half precision, and this library.

    python tests/benchmarks/gpu.py [--model default|base|FOLDER] [--rounds 7] [--dry-run]

On a GPU, in this order: `pytest -m "" tests/backends/test_torch_gpu.py`, then this with the default
model (1,000 documents: at least 20 times the default and 10 times the best half; 50: at most 4 ms)
and with --model base (12 times). --dry-run goes the same way on the CPU, over a few documents.

The model is the bundled one (MiniLM-L6's shape), or of BERT-base's shape with seeded weights under
the bundled tokenizer: there the speed means something and the order of the documents does not.
Same weights, passages of natural length (log-normal, mean 154 tokens), the runs take turns.
Its best half precision is the fastest of its batch sizes in float16 and bfloat16, found first.
Prints a Markdown table for one call of 50 documents and one of 1000, and the operators that take
most of the device's time in the second.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.stats import kendalltau
from sentence_transformers import CrossEncoder
from texts import QUERY, documents, machine, medians
from torch.profiler import ProfilerActivity, profile
from transformers import BertConfig, BertForSequenceClassification

from rerank_adapters import Reranker
from rerank_adapters.loading import bundled

BATCH_SIZES = (32, 64, 128, 256, 512)
HALVES = (torch.float16, torch.bfloat16)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="default")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args()
    if not (options.dry_run or torch.cuda.is_available()):
        raise SystemExit("torch sees no CUDA device: this benchmark needs one, or --dry-run")
    device = "cpu" if options.dry_run else "cuda"
    where = device if options.dry_run else torch.cuda.get_device_name()
    print(f"# Rerank calls on {where}\n\n{machine()}\n")
    folder = _folder(options.model)
    ours = {
        f"{dtype}, {workers} worker{'s' * (workers > 1)}": Reranker.from_pretrained(
            folder, backend="torch", device=device, dtype=dtype, num_workers=workers
        )
        for dtype, workers in (("float32", 1), ("auto", 1), ("auto", 2))
    }
    halves, sizes = (HALVES[1:], BATCH_SIZES[:1]) if options.dry_run else (HALVES, BATCH_SIZES)
    settings = [(dtype, size) for dtype in halves for size in sizes]
    theirs = {dtype: _cross_encoder(folder, dtype, device) for dtype in (torch.float32, *halves)}
    for label, reranker in ours.items():
        info = reranker.info()
        print(f"{label}: {info.dtype}, {info.details['layout']}, {info.details.get('attention')}\n")
    for count in (1, 2) if options.dry_run else (50, 1000):
        _table(theirs, ours, settings, documents(count), options.rounds)
    _profile(ours["auto, 1 worker"], documents(2 if options.dry_run else 1000), device)
    for reranker in ours.values():
        reranker.close()


def _folder(model: str) -> str:
    if model not in ("default", "base"):
        return model
    folder = bundled.unpack(Path(tempfile.mkdtemp()))
    if model == "base":
        torch.manual_seed(0)
        settings = json.loads((folder / "config.json").read_text())
        # Weights three times the usual size, so that scores differ from text to text.
        shape = {"hidden_size": 768, "num_hidden_layers": 12, "intermediate_size": 3072}
        config = BertConfig(**{**settings, **shape, "initializer_range": 0.06})
        BertForSequenceClassification(config).save_pretrained(folder)
    return str(folder)


def _cross_encoder(folder: str, dtype: torch.dtype, device: str) -> CrossEncoder:
    return CrossEncoder(folder, device=device, model_kwargs={"dtype": dtype})


def _profile(reranker: Reranker, texts: list[str], device: str) -> None:
    """Print what takes most of the time of one call, and the device's share of the wall."""
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=kinds) as recorded:
        started = time.perf_counter()
        reranker.score(QUERY, texts)
        wall = time.perf_counter() - started
    averages = recorded.key_averages()
    kind = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    busy = sum(getattr(it, kind) for it in averages) / 1e6
    print(f"## Profile of {len(texts)} documents: {device} busy {busy / wall:.0%} of the wall\n")
    print("```")
    print(averages.table(sort_by=kind, row_limit=15, max_name_column_width=60))
    print("```\n")


def _table(
    theirs: dict[torch.dtype, CrossEncoder],
    ours: dict[str, Reranker],
    settings: list[tuple[torch.dtype, int]],
    texts: list[str],
    rounds: int,
) -> None:
    pairs = [(QUERY, text) for text in texts]
    dtype, size = _best_half(theirs, settings, pairs)
    runs: dict[str, Callable[[], object]] = {
        "sentence-transformers, its default": lambda: theirs[torch.float32].predict(pairs),
        f"sentence-transformers, {str(dtype)[6:]}, batch {size}": lambda: theirs[dtype].predict(
            pairs, batch_size=size
        ),
        **{
            f"rerank-adapters, {label}": (lambda reranker=reranker: reranker.score(QUERY, texts))
            for label, reranker in ours.items()
        },
    }
    scores = {label: np.asarray(run()) for label, run in runs.items()}
    reference = next(iter(scores.values()))
    seconds = medians(runs, rounds=rounds)
    default, half = list(seconds.values())[:2]
    print(f"## {len(texts)} documents, median of {rounds}\n")
    print("| | median ms | pairs/s | x default | x best half | largest score gap | Kendall tau |")
    print("|---|---|---|---|---|---|---|")
    for label, value in seconds.items():
        gap = np.abs(scores[label] - reference).max()
        tau = kendalltau(scores[label], reference).statistic
        print(
            f"| {label} | {value * 1e3:.1f} | {len(texts) / value:.0f} | {default / value:.2f} "
            f"| {half / value:.2f} | {gap:.0e} | {tau:.4f} |"
        )
    print()


def _best_half(
    theirs: dict[torch.dtype, CrossEncoder],
    settings: list[tuple[torch.dtype, int]],
    pairs: list[tuple[str, str]],
) -> tuple[torch.dtype, int]:
    """The fastest half dtype and batch size of sentence-transformers for these pairs."""
    seconds = medians(
        {
            str(number): (
                lambda dtype=dtype, size=size: theirs[dtype].predict(pairs, batch_size=size)
            )
            for number, (dtype, size) in enumerate(settings)
        },
        rounds=3,
    )
    return settings[int(min(seconds, key=seconds.__getitem__))]


if __name__ == "__main__":
    main()
