"""The core: pairs → tokens → logits → scores, whichever family and runtime."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import bundled, hub
from ..backends import choose_backend
from ..config import DEFAULT_MODEL, RerankerConfig
from ..errors import BackendError, MissingDependencyError
from ..families import Family, family_for
from ..protocols import Backend
from ..tokenization import EncodedPairs as Encoded
from ..tokenization import PairTokenizer
from ..values import Scores, TokenBatch

__all__ = ["CrossEncoder", "Encoded"]

Forward = Callable[[TokenBatch], Scores]

BATCH_TOKENS = {"cpu": 2048, "cuda": 65_536, "mps": 8192}
"""Padded tokens per forward, by kind of device: on CPU what stays in cache, on GPU what fills it."""


class CrossEncoder:
    """A tokenizer, what the checkpoint means, and one backend per device.

    Stateless between calls and safe to share between threads.
    """

    def __init__(
        self,
        tokenizer: PairTokenizer,
        family: Family,
        backends: Sequence[Backend],
        *,
        max_batch_tokens: int | None = None,
        facts: dict[str, Any] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.family = family
        self.backends = tuple(backends)
        self._facts = facts or {}
        device = self.backends[0].info().get("device", "cpu").partition(":")[0]
        self.max_batch_tokens = max_batch_tokens or BATCH_TOKENS.get(device, BATCH_TOKENS["cpu"])

    @classmethod
    def from_config(cls, config: RerankerConfig) -> CrossEncoder:
        """Load what *config* names. Raises as `Reranker.from_pretrained` does."""
        return _load(cls, config)

    def encode(self, pairs: Sequence[tuple[str, str]]) -> Encoded:
        """The tokens of *pairs*, in order, and which of them were cut."""
        return self.tokenizer.encode(pairs)

    def forwards(self, num_workers: int = 1) -> list[Forward]:
        """What the queue's workers run: *num_workers* for each device."""
        return [self._forward(backend) for backend in self.backends for _ in range(num_workers)]

    def info(self) -> dict[str, Any]:
        """What really runs, and why; plain values."""
        facts = {
            **self._facts,
            **self.backends[0].info(),
            "max_length": self.tokenizer.max_length,
            "max_batch_tokens": self.max_batch_tokens,
            "activation": self.family.activation,
            "labels": self.family.labels,
        }
        if len(self.backends) > 1:
            facts["devices"] = [backend.info()["device"] for backend in self.backends]
        return facts

    def close(self) -> None:
        """Free every backend."""
        for backend in self.backends:
            backend.close()

    def _forward(self, backend: Backend) -> Forward:
        def forward(batch: TokenBatch) -> Scores:
            logits = backend.logits(batch)
            if logits.shape != (len(batch), self.family.labels):
                raise BackendError(
                    f"the model returned logits of shape {logits.shape} for {len(batch)} pairs and "
                    f"{self.family.labels} label(s): the checkpoint's weights and config.json disagree"
                )
            return self.family.scores(logits)

        return forward


def _load(cls: type[CrossEncoder], config: RerankerConfig) -> CrossEncoder:
    default = config.model == DEFAULT_MODEL
    source = hub.LocalFolder(bundled.folder()) if default else _open(config)
    name, why = choose_backend(config, source.files)
    load = _load_onnx if name == "onnx" else _load_torch
    tokenizer, family, backends, folder = load(config, source)
    facts = {
        "model": config.model,
        "revision": source.revision,
        "fingerprint": _fingerprint(folder),
        "why": why,
    }
    return cls(
        tokenizer, family, backends, max_batch_tokens=config.max_batch_tokens, facts=facts
    )


def _open(config: RerankerConfig) -> hub.Source:
    return hub.open_model(
        config.model,
        revision=config.revision,
        token=config.token,
        cache_folder=config.cache_folder,
        local_files_only=config.local_files_only,
    )


Parts = tuple[PairTokenizer, Family, list[Backend], Path]


def _load_onnx(config: RerankerConfig, source: hub.Source) -> Parts:
    try:
        from ..backends import onnx
    except ImportError as error:
        raise MissingDependencyError("onnxruntime", "all") from error
    default_int8 = config.model == DEFAULT_MODEL and config.dtype == "auto"
    dtype = "int8" if default_int8 else config.dtype
    file = onnx.choose_file(source.files, dtype=dtype, file_name=config.file_name)
    folder = source.fetch([*hub.CONFIG_FILES, file, f"{file}*data*"])
    if config.model == DEFAULT_MODEL:
        bundled.verify(folder)
    family = family_for(folder, activation=config.activation, prompt=config.prompt)
    tokenizer = _tokenizer(config, folder, family)
    backends: list[Backend] = [
        onnx.OnnxBackend(
            folder / file,
            device=device,
            num_threads=config.num_threads,
            pad_id=tokenizer.pad_id,
            pad_side=tokenizer.pad_side,
        )
        for device in config.devices
    ]
    return tokenizer, family, backends, folder


def _load_torch(config: RerankerConfig, source: hub.Source) -> Parts:
    try:
        from ..backends import torch
    except ImportError as error:
        raise MissingDependencyError("torch", "torch") from error
    raise NotImplementedError(torch)


def _tokenizer(config: RerankerConfig, folder: Path, family: Family) -> PairTokenizer:
    return PairTokenizer.from_folder(
        folder,
        max_length=config.max_length,
        truncation=config.truncation,
        query_max_tokens=config.query_max_tokens,
        prompt=config.prompt,
        template=family.template,
        position_limit=family.position_limit,
    )


def _fingerprint(folder: Path) -> str:
    """A hash that changes with any file: names, sizes, and each file's first and last 64 kB.

    Weights may be gigabytes, so they are sampled, not read.
    """
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()}\0{size}\0".encode())
        with path.open("rb") as stream:
            digest.update(stream.read(65_536))
            stream.seek(max(0, size - 65_536))
            digest.update(stream.read(65_536))
    return digest.hexdigest()[:16]
