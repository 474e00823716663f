"""The core: pairs → tokens → logits → scores, whichever family and runtime."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import bundled, hub
from ..backends import choose_backend
from ..config import DEFAULT_MODEL, RerankerConfig
from ..errors import BackendError, ConfigError, MissingDependencyError, ModelError, RerankError
from ..families import Family, family_for
from ..protocols import Backend
from ..tokenization import EncodedPairs as Encoded
from ..tokenization import PairTokenizer
from ..values import Scores, TokenBatch

__all__ = ["CrossEncoder", "Encoded"]

logger = logging.getLogger(__name__)

Forward = Callable[[TokenBatch], Scores]

BATCH_TOKENS = {"cpu": 2048, "cuda": 65_536, "mps": 8192}
"""Padded tokens per forward, by kind of device: on CPU what fits a cache, on GPU what fills it."""
ONNX_CPU_TOKENS = 512
"""On CPUs onnx has workers to share a list among: smaller batches, and none of them idle."""
FREE_PADDING = {"cpu": 24, "cuda": 4096, "mps": 1024}
"""Tokens of padding that cost less than one more forward, by kind of device."""
MAX_PADDING = {"cpu": 0.03}
"""Share of padding beyond those, 10 % elsewhere: a CPU computes padding as slowly as text."""


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
        running = self.backends[0].info()
        device = running.get("device", "cpu").partition(":")[0]
        fitting = BATCH_TOKENS.get(device, BATCH_TOKENS["cpu"])
        if device == "cpu" and running.get("backend") == "onnx":
            fitting = ONNX_CPU_TOKENS
        self.max_batch_tokens = max_batch_tokens or fitting
        self.max_padding = MAX_PADDING.get(device, 0.10)
        packed = all(backend.info().get("pass") == "packed" for backend in self.backends)
        # A packed pass pads nothing, so lengths may differ in a batch as they like.
        self.free_padding = self.max_batch_tokens if packed else FREE_PADDING.get(device, 0)

    @classmethod
    def from_config(cls, config: RerankerConfig) -> CrossEncoder:
        """Load what *config* names. Raises as `Reranker.from_pretrained` does."""
        return _load(cls, config)

    def encode(self, pairs: Sequence[tuple[str, str]]) -> Encoded:
        """The tokens of *pairs*, in order, and which of them were cut."""
        encoded = self.tokenizer.encode(pairs)
        if not any(getattr(backend, "needs_texts", False) for backend in self.backends):
            return encoded
        return replace(encoded, batch=replace(encoded.batch, texts=tuple(pairs)))

    def forwards(self, num_workers: int | None = None) -> list[Forward]:
        """What the queue's workers run: *num_workers* for each device, None: what suits it."""
        return [
            self._forward(backend)
            for backend in self.backends
            for _ in range(num_workers or int(getattr(backend, "workers", 1)))
        ]

    @property
    def fork_safe(self) -> bool:
        """Whether a forked child may go on: onnxruntime ran there, torch's thread pool hangs."""
        return all(backend.info().get("backend") != "torch" for backend in self.backends)

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
            if getattr(backend, "needs_texts", False):
                logits = backend.logits_from_pairs(batch.texts)  # type: ignore[attr-defined]  # with it
            else:
                logits = backend.logits(batch)
            if logits.shape != (len(batch), self.family.labels):
                raise BackendError(
                    f"the model returned logits of shape {logits.shape} for {len(batch)} pairs and "
                    f"{self.family.labels} label(s): its weights and config.json disagree"
                )
            return self.family.scores(logits)

        return forward


def _load(cls: type[CrossEncoder], config: RerankerConfig) -> CrossEncoder:
    source = _open(config)
    name, why = choose_backend(config, source.files)
    load = _load_onnx if name == "onnx" else _load_torch
    tokenizer, family, backends, folder = load(config, source)
    facts: dict[str, Any] = {
        "model": config.model,
        "revision": source.revision,
        "fingerprint": _fingerprint(folder),
        "why": why,
    }
    if tokenizer.whole_pairs:
        facts["tokenizer"] = (
            f"pairs are encoded whole, which is slower: {tokenizer.whole_pairs_reason}"
        )
        logger.info("%s: %s", config.model, facts["tokenizer"])
    return cls(tokenizer, family, backends, max_batch_tokens=config.max_batch_tokens, facts=facts)


def _open(config: RerankerConfig) -> hub.Source:
    if config.model == DEFAULT_MODEL:
        return hub.LocalFolder(bundled.folder())
    return hub.open_model(
        config.model,
        revision=config.revision,
        token=config.token,
        cache_folder=config.cache_folder,
        local_files_only=config.local_files_only,
    )


Parts = tuple[PairTokenizer, Family, list[Backend], Path]


def _load_onnx(config: RerankerConfig, source: hub.Source) -> Parts:
    from ..backends import onnx

    default_int8 = config.model == DEFAULT_MODEL and config.dtype == "auto"
    dtype = "int8" if default_int8 else config.dtype
    file = onnx.choose_file(source.files, dtype=dtype, file_name=config.file_name)
    folder = source.fetch([*hub.CONFIG_FILES, file, f"{file}*data*"])
    if config.model == DEFAULT_MODEL:
        bundled.verify(folder)
    # An ONNX folder holds its template rendered and its tokenizer converted; a hub's may not.
    family, tokenizer = _meaning(config, folder)
    backends: list[Backend] = [
        onnx.OnnxBackend(
            folder / file,
            device=device,
            num_workers=config.num_workers,
            num_threads=config.num_threads,
            pad_id=tokenizer.pad_id,
            pad_side=tokenizer.pad_side,
        )
        for device in config.devices
    ]
    return tokenizer, family, backends, folder


def _load_torch(config: RerankerConfig, source: hub.Source) -> Parts:
    torch = _torch()
    if config.model == DEFAULT_MODEL:
        folder = bundled.unpack(config.cache_folder)
    else:
        folder = source.fetch(_torch_files(source.files, code=config.trust_remote_code))
    family, tokenizer = _meaning(config, folder)
    backends: list[Backend] = [
        torch.TorchBackend.from_folder(
            folder,
            device=device,
            dtype=config.dtype,
            pad_id=tokenizer.pad_id,
            pad_side=tokenizer.pad_side,
            max_length=tokenizer.max_length,
            trust_remote_code=config.trust_remote_code,
            num_threads=config.num_threads,
            prompt=config.prompt,
            encode=_uncut(config, folder, family),
        )
        for device in config.devices
    ]
    _check_texts(config, backends)
    return tokenizer, family, backends, folder


def _meaning(config: RerankerConfig, folder: Path) -> tuple[Family, PairTokenizer]:
    """What the files of *folder* say; ModelError where a value in them is of the wrong kind."""
    try:
        return _read(config, folder)
    except RerankError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"a JSON file in {folder} holds a value of the wrong kind: {error}"
        ) from error


def _read(config: RerankerConfig, folder: Path) -> tuple[Family, PairTokenizer]:
    family = family_for(
        folder,
        activation=config.activation,
        prompt=config.prompt,
        render=lambda place, prompt: _torch().render_chat(
            place, prompt, trust_remote_code=config.trust_remote_code
        ),
    )
    tokenizer = PairTokenizer.from_folder(
        folder,
        max_length=config.max_length,
        truncation=config.truncation,
        query_max_tokens=config.query_max_tokens,
        prompt=family.prompt,
        template=family.template,
        position_limit=family.position_limit,
        convert=_converter(config),
    )
    return family, tokenizer


def _uncut(
    config: RerankerConfig, folder: Path, family: Family
) -> Callable[[Sequence[tuple[str, str]]], TokenBatch]:
    """How we write pairs where nothing is cut: what the torch backend compares with its own."""
    tokenizer = PairTokenizer.from_folder(
        folder,
        prompt=family.prompt,
        template=family.template,
        position_limit=family.position_limit,
        convert=_converter(config),
    )
    return lambda pairs: tokenizer.encode(pairs).batch


def _converter(config: RerankerConfig) -> Callable[[Path], Path]:
    code = config.trust_remote_code
    return lambda place: _torch().convert_tokenizer(place, trust_remote_code=code)


def _check_texts(config: RerankerConfig, backends: Sequence[Backend]) -> None:
    """Refuse options that only our own tokenizer honours where the checkpoint's must run."""
    ours = config.truncation != "longest_first" or config.query_max_tokens is not None
    if ours and any(getattr(backend, "needs_texts", False) for backend in backends):
        raise ConfigError(
            "truncation and query_max_tokens need pairs written by us, and this checkpoint "
            f"writes its own ({backends[0].info().get('fallback')}): got "
            f"truncation={config.truncation!r}, query_max_tokens={config.query_max_tokens!r}; "
            "leave both at their defaults"
        )


def _torch() -> Any:
    """backends.torch, imported only where a checkpoint or its tokenizer cannot do without."""
    try:
        from ..backends import torch
    except ImportError as error:
        raise MissingDependencyError((error.name or "torch").partition(".")[0], "torch") from error
    return torch


def _torch_files(files: frozenset[str], *, code: bool) -> list[str]:
    """Configuration, and weights in one format: safetensors where there are any."""
    safe = any(name.endswith(".safetensors") for name in files)
    weights = ["*.safetensors"] if safe else ["pytorch_model*.bin", "*/pytorch_model*.bin"]
    return [*hub.CONFIG_FILES, *weights, *(["*.py"] if code else [])]


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
