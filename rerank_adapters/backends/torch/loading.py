"""Load a checkpoint through sentence-transformers' public API, 5.x and 6.x alike."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import sentence_transformers
import torch
import transformers
from sentence_transformers import CrossEncoder
from torch import Tensor

from ...checkpoints import NO_LIMIT, Checkpoint
from ...errors import BackendError, ConfigError, ModelError
from .whole import load_whole

Features = Callable[[Sequence[tuple[str, str]]], Mapping[str, Tensor]]
"""Pairs of texts → what a forward takes."""

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}

CPU_FLAGS: Mapping[torch.dtype, tuple[str, ...]] = {
    torch.bfloat16: ("avx512_bf16", "amx_bf16", "bf16"),
    torch.float16: ("avx512_fp16", "amx_fp16", "fp16_arith"),
}
"""What a CPU must have, one of them, to run a half dtype faster than float32 instead of slower."""


def resolve_device(name: str) -> torch.device:
    """Return the torch device *name* asks for; "auto" takes cuda, then mps, then cpu.

    Raises ConfigError for a name torch cannot read, BackendError for a device that is not here.
    """
    if name == "auto":
        cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f'device must be "auto", "cpu", "cuda", "cuda:N" or "mps": got {name!r}'
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BackendError(
            f"device {name!r} was asked for and torch {torch.__version__} sees no CUDA device: "
            'install a driver and a CUDA build of torch (pytorch.org), or pass device="cpu"'
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BackendError(
            f"device {name!r} was asked for and torch sees {torch.cuda.device_count()} CUDA "
            "device(s), counted from cuda:0: pass one of them"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise BackendError(
            f'device "mps" was asked for and torch {torch.__version__} sees no Apple GPU: '
            'pass device="cpu"'
        )
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the torch dtype *name* asks for; "auto" is float16 on CUDA, else float32.

    Raises ConfigError for a name torch lacks here, BackendError where the hardware lacks it.
    """
    if name == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    if name == "int8":
        raise ConfigError('dtype "int8" needs backend "onnx": got backend="torch"')
    if name not in DTYPES:
        raise ConfigError(
            f'dtype must be one of "auto", {", ".join(map(repr, DTYPES))}: got {name!r}'
        )
    dtype = DTYPES[name]
    if device.type == "cpu" and not _cpu_runs(dtype):
        raise BackendError(
            f"dtype {name!r} was asked for and this CPU has none of {', '.join(CPU_FLAGS[dtype])}, "
            'so it would run slower than float32: pass dtype="float32"'
        )
    if (
        device.type == "cuda"
        and dtype is torch.bfloat16
        and not torch.cuda.is_bf16_supported(False)
    ):
        raise BackendError(
            f"dtype {name!r} was asked for and {torch.cuda.get_device_name(device)} lacks it: "
            'pass dtype="float16"'
        )
    return dtype


def _cpu_runs(dtype: torch.dtype) -> bool:
    if dtype not in CPU_FLAGS:
        return True
    if not hasattr(torch.cpu, "get_capabilities"):  # an old torch cannot tell: trust who asked
        return True
    known = torch.cpu.get_capabilities()
    return any(known.get(flag, False) for flag in CPU_FLAGS[dtype])


class LoadedCrossEncoder:
    """A cross-encoder held by sentence-transformers: texts → features → logits.

    In early 5.x a CrossEncoder is one transformers model, later a chain of modules. Which one it
    is, is asked of the object, not of a version number.

    max_length: most tokens of a pair that `preprocess` cuts to, None for the tokenizer's own.
    encode: makes the features of pairs in the checkpoint's stead, which does not say how.
    """

    def __init__(
        self,
        cross_encoder: CrossEncoder,
        *,
        max_length: int | None = None,
        encode: Features | None = None,
    ) -> None:
        self._encode = encode
        self._cross_encoder = cross_encoder.eval()
        self._modular = hasattr(cross_encoder, "preprocess")
        # transformers' tokenizers keep settings as shared state
        self._tokenizing = threading.Lock()
        self._pad_id: int | None = None
        network: Any = getattr(cross_encoder, "transformers_model", None) or cross_encoder.model
        self.network: transformers.PreTrainedModel = network
        self.tokenizer: Any = cross_encoder.tokenizer
        stated = getattr(self.tokenizer, "model_max_length", NO_LIMIT)
        self.max_length = int(min(max_length or stated, NO_LIMIT))

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        device: torch.device,
        dtype: torch.dtype,
        max_length: int,
        trust_remote_code: bool,
        answers: tuple[int, int | None] | None = None,
        cache_folder: str | None = None,
        encode: Features | None = None,
    ) -> LoadedCrossEncoder:
        """Load *folder* in *dtype*, whatever dtype it is stored in. Raises ModelError."""
        cross_encoder = load_whole(
            folder,
            device=device,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            answers=answers,
            cache_folder=cache_folder,
        )
        loaded = cls(cross_encoder, max_length=max_length, encode=encode)
        if loaded._modular:
            _forget_limit(cross_encoder[0])
        else:
            _check_old(Checkpoint.read(folder))
        return loaded

    @property
    def tail(self) -> list[torch.nn.Module]:
        """The modules after the transformer: pooling, dense layers, the reading of logits."""
        return list(self._cross_encoder.children())[1:] if self._modular else []

    @property
    def output_name(self) -> str:
        """The feature under which the transformer module leaves its output."""
        return str(self._cross_encoder[0].module_output_name) if self._modular else "scores"

    @property
    def default_prompt(self) -> str | None:
        """The prompt the checkpoint itself prescribes."""
        name = getattr(self._cross_encoder, "default_prompt_name", None)
        return None if name is None else self._cross_encoder.prompts[name]

    def pad_with(self, pad_id: int, side: Literal["left", "right"]) -> None:
        """Pad by *pad_id* on *side*, whatever the tokenizer states.

        Pads on the left of an encoder's tokens would shift its positions by its company's lengths.
        """
        self._pad_id = pad_id
        if self.tokenizer is not None:
            self.tokenizer.padding_side = side

    def read_with(self, tokenizer_json: str) -> None:
        """Let the tokenizer of *tokenizer_json* run in transformers', which may be built anew."""
        inner = getattr(self.tokenizer, "_tokenizer", None)
        if inner is not None:
            self.tokenizer._tokenizer = type(inner).from_str(tokenizer_json)

    def preprocess(
        self, pairs: Sequence[tuple[str, str]], prompt: str | None, max_length: int | None = None
    ) -> dict[str, Any]:
        """Return features of *pairs*, padded, on the CPU, by the checkpoint's own tokenizer.

        Pairs are cut longest first to *max_length* tokens, None: to the loaded limit.
        """
        if self._encode is not None:
            return dict(self._encode(pairs))
        with self._tokenizing:
            if self.tokenizer is not None:
                self.tokenizer.model_max_length = max_length or self.max_length
            features = self._features(pairs, prompt)
        if self._pad_id is not None and "attention_mask" in features:
            ids = features["input_ids"]
            features["input_ids"] = ids.masked_fill(features["attention_mask"] == 0, self._pad_id)
        return features

    def _features(self, pairs: Sequence[tuple[str, str]], prompt: str | None) -> dict[str, Any]:
        if self._modular:
            texts = [list(pair) for pair in pairs]
            return dict(self._cross_encoder.preprocess(texts, prompt=prompt))
        texts = [[f"{prompt or ''}{query}", document] for query, document in pairs]
        return dict(
            self.tokenizer(texts, padding=True, truncation="longest_first", return_tensors="pt")
        )

    def forward(self, features: Mapping[str, Any]) -> Tensor:
        """Return raw outputs of shape (pairs, labels), on the device, in the network's dtype."""
        device = self.network.device
        moved = {
            name: value.to(device) if isinstance(value, Tensor) else value
            for name, value in features.items()
        }
        if self._modular:
            scores: Tensor = self._cross_encoder(moved)["scores"]
        else:
            scores = self.network(**moved, return_dict=True).logits
        return scores.reshape(len(scores), -1)


def _forget_limit(first: torch.nn.Module) -> None:
    """Drop the limit stored for each call: it would win over a smaller one of the tokenizer."""
    stored: Any = getattr(first, "processing_kwargs", {})
    stored.get("text", {}).pop("max_length", None)


def _check_old(stored: Checkpoint) -> None:
    """Refuse what a sentence-transformers without modules would give a random head."""
    if stored.modules or stored.causal:
        raise ModelError(
            f"{stored.folder} is a chain of modules or a language model, which need "
            f"sentence-transformers 5.6 or later: {sentence_transformers.__version__} makes up "
            "a head; pip install 'sentence-transformers>=5.6'"
        )
