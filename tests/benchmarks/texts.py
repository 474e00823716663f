"""Texts and machine facts that the benchmarks share."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import NormalDist

import numpy as np

CORPUS = Path(__file__).parents[2] / "notebooks" / "corpus" / "corpus.jsonl"
TOKENS_PER_WORD = 1.35  # of this corpus, in BERT's English word pieces
QUERY = "how long does the battery of the tide sensor last in winter"


def documents(count: int = 50, *, mean_tokens: float = 154, seed: int = 0) -> list[str]:
    """*count* texts of log-normal length (sigma 0.6, mean about *mean_tokens*, at most 512 tokens).

    The lengths are the distribution's own quantiles, so that 50 texts have its tail too, which a
    sample may lack. Words come from the example corpus: they split into tokens as real words do.
    """
    lines = CORPUS.read_text(encoding="utf-8").splitlines()
    words = " ".join(json.loads(line)["text"] for line in lines).split()
    rng = np.random.default_rng(seed)
    median = mean_tokens / np.exp(0.6**2 / 2)
    normal = NormalDist(np.log(median), 0.6)
    logs = [normal.inv_cdf((rank + 0.5) / count) for rank in range(count)]
    tokens = np.clip(np.exp(rng.permutation(logs)), 4, 512)
    lengths = np.maximum(1, (tokens / TOKENS_PER_WORD).astype(int))
    starts = rng.integers(0, len(words) - lengths.max(), count)
    return [
        " ".join(words[start : start + length])
        for start, length in zip(starts, lengths, strict=True)
    ]


def medians(runs: Mapping[str, Callable[[], object]], *, rounds: int = 5) -> dict[str, float]:
    """Median seconds of each run; the runs take turns, so that a noisy moment hits them all.

    Each runs once before, but for a single round, which is long.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values() if rounds > 1 else ():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def machine() -> str:
    """One line of hardware and versions, to stand beside every number."""
    names = ("onnxruntime", "torch", "transformers", "sentence-transformers", "tokenizers")
    versions = ", ".join(f"{name} {_version(name)}" for name in names)
    return f"{_cpu()}, {os.cpu_count()} cores; Python {platform.python_version()}, {versions}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor()
    text = info.read_text()
    model = next(line.partition(": ")[2] for line in text.splitlines() if "model name" in line)
    flags = [flag for flag in ("avx512_vnni", "avx512_bf16", "amx_int8") if f" {flag}" in text]
    return f"{model} ({' '.join(flags)})"
