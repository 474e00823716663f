"""A backend of one's own: this file and one entry in the registry.

Its logit is a fixed function of a pair's tokens (fakes.token_logits), so a test knows each score.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rerank_adapters.backends import BackendEntry, LoadOptions, Selection
from rerank_adapters.errors import ClosedError
from rerank_adapters.protocols import BackendTraits
from rerank_adapters.tokens import TokenBatch
from tests.fakes import token_logits

ENTRY = BackendEntry(
    module="tests.own_backend",
    needs="numpy",
    reads="weights",
    devices=("cpu", "npu"),
    dtypes=("float32", "float16"),
)

LOADS: list[Path] = []
"""The folder of each load, in order: tests count them."""


class OwnBackend:
    """One device's network."""

    traits = BackendTraits(device_kind="npu", workers=2, batch_tokens=128, free_padding=8)

    def __init__(self, device: str) -> None:
        self.device = device
        self.closed = False

    def logits(self, batch: TokenBatch) -> NDArray[np.float32]:
        if self.closed:
            raise ClosedError("the backend is closed")
        return token_logits(batch)

    def info(self) -> dict[str, str | int]:
        return {"backend": "own", "device": self.device, "dtype": "float32", "colour": "blue"}

    def close(self) -> None:
        self.closed = True


LOADED: list[OwnBackend] = []


def select(files: frozenset[str], *, dtype: str, file_name: str | None) -> Selection:
    del files, dtype, file_name
    return Selection(None, ("model.safetensors",))


def load(folder: Path, selection: Selection, options: LoadOptions) -> OwnBackend:
    del selection
    LOADS.append(folder)
    LOADED.append(OwnBackend("npu:0" if options.device == "auto" else options.device))
    return LOADED[-1]
