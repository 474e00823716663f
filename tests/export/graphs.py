"""Batches and sessions that tests of the exported graphs share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from rerank_adapters.export import gate

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]

SOME = ("bert", "modernbert", "deberta_v2", "qwen3")
"""One kind per way of attending and pooling: first token, mean, relative positions, last token."""


def session(file: Path) -> ort.InferenceSession:
    return gate.open_session(file)


def random_batch(lengths: Sequence[int], *, seed: int = 0) -> dict[str, Ids]:
    """Ids of ordinary tokens, padded on the right with 0."""
    random, longest = np.random.default_rng(seed), max(lengths)
    mask = (np.arange(longest) < np.array(lengths)[:, None]).astype(np.int64)
    ids = random.integers(5, 600, mask.shape) * mask
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": mask * (np.arange(longest) > 4),
    }


def alone(feed: dict[str, Ids], row: int) -> dict[str, Ids]:
    real = feed["attention_mask"][row].astype(bool)
    return {name: array[row : row + 1, real] for name, array in feed.items()}


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
