"""Which pass runs: each is tried at load against sentence-transformers' own, the fastest first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import BackendError
from ...values import TokenBatch
from . import attention
from .attention import Kernel
from .linears import can_pack, pack_linears
from .loading import Checkpoint
from .passes import PackedPass, PaddedPass, takes_type_ids

Encode = Callable[[Sequence[tuple[str, str]]], TokenBatch]
"""Pairs of texts → token ids."""

TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 8e-2}
"""How far a pass may be from sentence-transformers' own, times the largest logit where above 1.

float32 is the library's promise; the half dtypes' are a few of their own rounding steps.
"""

_LONG = " ".join(
    "The ferry crosses the strait four times a day in summer, twice in winter, weather allowing; "
    f"boat {number} carries cars, the others foot passengers and bicycles only."
    for number in range(1, 7)
)
PROBE: tuple[tuple[str, str], ...] = (
    ("how often does the ferry run?", _LONG),
    ("how often does the ferry run?", "It was repainted in 1987."),
    ("Wer hat das Tor geschossen?", ""),
    ("two words", "Zwei Wörter, deux mots, 二つの言葉."),
)
"""Pairs of unequal lengths, one longer than a sliding window of 128."""

SPELLINGS: tuple[tuple[str, str], ...] = (
    (" Leading, trailing ", "tabs\tand\n\nlines  and   spaces"),
    ("Números: 12,345.67 & 2026-11-20", "e\u0301 é ﬁ ½ — “quoted” don't"),
    ("ПРИВЕТ, мир", "مرحبا 🙂👩‍👧"),
    ("a_b/c#d@e.f", "x" * 120),
)
"""Pairs that tokenizers built in different ways tend to write differently."""


class NotFiniteError(BackendError):
    """The network's logits overflow in this dtype."""


@dataclass(frozen=True, slots=True)
class Proven:
    """The pass that runs, None where features of sentence-transformers' own making must.

    `unpacked` says why it is not the packed one, `own_texts` why the checkpoint's own preprocessing
    must see the texts; each is "" where that is not so. `details` is what else `info` tells.
    """

    run: Callable[[TokenBatch], Tensor] | None
    labels: int
    unpacked: str
    own_texts: str
    details: Mapping[str, str]


def prove(
    checkpoint: Checkpoint, *, padded: PaddedPass, prompt: str | None, encode: Encode | None
) -> Proven:
    """Tries each pass on PROBE against sentence-transformers' own preprocessing and forward.

    Raises NotFiniteError where logits overflow.
    """
    features = checkpoint.preprocess(PROBE, prompt)
    padded.constants = {k: v for k, v in features.items() if not isinstance(v, Tensor)}
    expected = checkpoint.forward(features).float()
    if not bool(expected.isfinite().all()):
        raise NotFiniteError(
            f"the network's logits are not finite in {checkpoint.network.dtype}: pass another dtype"
        )
    labels, details = expected.shape[1], {"linears": _layout(checkpoint, features, expected)}
    flaw = _flaw(lambda: padded(ragged(features)), expected, checkpoint.network.dtype)
    if flaw is not None:
        reason = f"it wants more than token ids, masks and types ({flaw})"
        return Proven(None, labels, "", reason, {**details, "pass": "features"})
    found, unpacked = _packed(checkpoint, ragged(features), expected)
    own_texts = "" if encode is None else _other_ids(checkpoint, prompt, encode)
    run = found or padded
    return Proven(run, labels, unpacked, own_texts, {**details, **run.details})


def _packed(
    checkpoint: Checkpoint, batch: TokenBatch, expected: Tensor
) -> tuple[PackedPass | None, str]:
    """The packed pass that is equal, or None and why."""
    network = checkpoint.network
    if not getattr(network, "_supports_attention_backend", False):
        return None, "its attention does not go through transformers' AttentionInterface"
    usual = network.config._attn_implementation
    network.set_attn_implementation(attention.NAME)
    flaws = []
    for kernel in _kernels(network.device, network.dtype):
        candidate = PackedPass(checkpoint, kernel=kernel)
        settle = partial(candidate.settle, batch, expected)
        flaw = _flaw(settle, expected, network.dtype)
        if flaw is None:
            if candidate.trim() and _flaw(partial(candidate, batch), expected, network.dtype):
                candidate.untrim()
            return candidate, ""
        flaws.append(flaw)
    network.set_attn_implementation(usual)
    return None, f"it does not pack ({'; '.join(flaws)})"


def _kernels(device: torch.device, dtype: torch.dtype) -> tuple[Kernel, ...]:
    if device.type == "cpu":
        return (attention.per_sequence,)
    if device.type == "cuda" and dtype is not torch.float32:
        return (attention.varlen, attention.rectangle)
    return (attention.rectangle,)


def _layout(checkpoint: Checkpoint, features: Mapping[str, Any], expected: Tensor) -> str:
    """Packs the encoder's linear layers if that changes nothing; says which product runs."""
    if not can_pack(checkpoint.network.device, checkpoint.network.dtype):
        return "torch"
    try:
        undo = pack_linears(checkpoint.network.base_model)
    except RuntimeError:  # this CPU lacks what oneDNN's layout for the dtype is made of
        return "torch"
    if _flaw(lambda: checkpoint.forward(features), expected, checkpoint.network.dtype) is None:
        return "oneDNN"
    undo()
    return "torch"


def _flaw(run: Callable[[], Tensor], expected: Tensor, dtype: torch.dtype) -> str | None:
    """Why *run* is not to be trusted, or None."""
    try:
        gap = float((run().float() - expected).abs().max())
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001 remote code and private operators raise anything
        return f"{type(error).__name__}: {error}".splitlines()[0]
    limit = TOLERANCES[dtype] * max(1.0, float(expected.abs().max()))
    return None if gap <= limit else f"its logits differ by {gap:.1e} from sentence-transformers'"


def ragged(features: Mapping[str, Any]) -> TokenBatch:
    """The ids of padded features, unpadded."""
    ids = features["input_ids"]
    mask = features["attention_mask"].bool()
    types = features.get("token_type_ids", torch.zeros_like(ids))
    return TokenBatch(
        input_ids=ids[mask].numpy().astype(np.int32),
        type_ids=types[mask].numpy().astype(np.int32),
        lengths=mask.sum(dim=1).numpy().astype(np.int64),
    )


def _other_ids(checkpoint: Checkpoint, prompt: str | None, encode: Encode) -> str:
    """Where the caller's ids are not the checkpoint's own, or ""; cut pairs are not compared."""
    pairs = (*PROBE, *SPELLINGS)
    theirs, ours = ragged(checkpoint.preprocess(pairs, prompt)), encode(pairs)
    for row, pair in enumerate(pairs):
        own, mine = theirs.take([row]), ours.take([row])
        cut = max(len(own.input_ids), len(mine.input_ids)) >= checkpoint.tokenizer.model_max_length
        same = np.array_equal(own.input_ids, mine.input_ids)
        typed = not takes_type_ids(checkpoint) or np.array_equal(own.type_ids, mine.type_ids)
        if not cut and not (same and typed):
            return f"its own tokenizer writes {pair!r} with other ids"
    return ""
