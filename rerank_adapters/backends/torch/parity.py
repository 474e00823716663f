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
from ...parity.comparison import Logits, disagreement
from ...parity.probes import SPELLINGS, UNEVEN
from ...tokens import TokenBatch
from . import attention
from .attention import Kernel
from .linears import can_pack, pack_linears
from .loading import LoadedCrossEncoder
from .passes import PackedPass, PaddedPass, takes_type_ids

Encode = Callable[[Sequence[tuple[str, str]]], TokenBatch]
"""Pairs of texts → token ids."""


class NotFiniteError(BackendError):
    """The network's logits overflow in this dtype."""


@dataclass(frozen=True, slots=True)
class Proven:
    """The pass that runs, None where features of sentence-transformers' own making must.

    `why_padded` says why it is not the packed one, `why_texts` why the checkpoint's own
    preprocessing must see the texts; each is "" where that is not so. `details` is what else `info`
    says.
    """

    run: Callable[[TokenBatch], Tensor] | None
    labels: int
    why_padded: str
    why_texts: str
    details: Mapping[str, str]


def prove(
    loaded: LoadedCrossEncoder,
    *,
    padded: PaddedPass,
    prompt: str | None,
    encode: Encode | None,
    tokenizer_json: Callable[[], str] | None = None,
) -> Proven:
    """Try each pass on UNEVEN against sentence-transformers' own preprocessing and forward.

    Raises NotFiniteError where logits overflow.
    """
    why_texts = "" if encode is None else _other_ids(loaded, prompt, encode)
    if why_texts and encode is not None and tokenizer_json is not None:
        # tokenizer.json is the authority; what still differs is no matter of the tokenizer's.
        loaded.read_with(tokenizer_json())
        why_texts = _other_ids(loaded, prompt, encode)
    features = loaded.preprocess(UNEVEN, prompt)
    padded.constants = {k: v for k, v in features.items() if not isinstance(v, Tensor)}
    oracle = _host(loaded.forward(features))
    if not np.isfinite(oracle).all():
        raise NotFiniteError(
            f"the network's logits are not finite in {loaded.network.dtype}: pass another dtype"
        )
    labels, details = oracle.shape[1], {"linears": _linears(loaded, features, oracle)}
    flaw = _flaw(lambda: padded(ragged(features)), oracle, loaded.network.dtype)
    if flaw:
        reason = f"it wants more than token ids, masks and types ({flaw})"
        return Proven(None, labels, "", reason, {**details, "layout": "features"})
    packed, why_padded = _packed(loaded, ragged(features), oracle)
    if packed is None:
        # Where a pair alone scores otherwise than beside others, as where a convolution reads pads.
        padded.one_by_one = True
        padded.one_by_one = bool(
            _flaw(lambda: padded(ragged(features)), oracle, loaded.network.dtype)
        )
        if padded.one_by_one:
            why_padded += "; its scores depend on padding, so each pair has a pass of its own"
    run = packed or padded
    return Proven(run, labels, why_padded, why_texts, {**details, **run.details})


def _packed(
    loaded: LoadedCrossEncoder, batch: TokenBatch, oracle: Logits
) -> tuple[PackedPass | None, str]:
    """Return the packed pass that agrees, or None and why there is none."""
    network = loaded.network
    if not getattr(network, "_supports_attention_backend", False):
        return None, "its attention does not go through transformers' AttentionInterface"
    usual = network.config._attn_implementation
    network.set_attn_implementation(attention.NAME)
    flaws = []
    for kernel in _kernels(network.device, network.dtype):
        candidate = PackedPass(loaded, kernel=kernel)
        settle = partial(candidate.settle, batch, torch.from_numpy(oracle).to(network.device))
        flaw = _flaw(settle, oracle, network.dtype)
        if not flaw:
            if candidate.trim() and _flaw(partial(candidate, batch), oracle, network.dtype):
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


def _linears(loaded: LoadedCrossEncoder, features: Mapping[str, Any], oracle: Logits) -> str:
    """Pack the backbone's linear layers if that changes nothing; return which product runs."""
    network = loaded.network
    if not can_pack(network.device, network.dtype):
        return "torch"
    try:
        undo = pack_linears(network.base_model)
    except RuntimeError:  # this CPU lacks what oneDNN's layout for the dtype is made of
        return "torch"
    if not _flaw(lambda: loaded.forward(features), oracle, network.dtype):
        return "oneDNN"
    undo()
    return "torch"


def _flaw(run: Callable[[], Tensor], oracle: Logits, dtype: torch.dtype) -> str:
    """Return why *run* is not to be trusted, or ""."""
    try:
        logits = _host(run())
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001 remote code and private operators raise anything
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return disagreement(logits, oracle, str(dtype).removeprefix("torch."))


def _host(logits: Tensor) -> Logits:
    host: Logits = logits.float().cpu().numpy()
    return host


def ragged(features: Mapping[str, Any]) -> TokenBatch:
    """Return the ids of padded features without their padding."""
    ids = features["input_ids"]
    mask = features["attention_mask"].bool()
    types = features.get("token_type_ids", torch.zeros_like(ids))
    return TokenBatch(
        input_ids=ids[mask].numpy().astype(np.int32),
        type_ids=types[mask].numpy().astype(np.int32),
        lengths=mask.sum(dim=1).numpy().astype(np.int64),
    )


def _other_ids(loaded: LoadedCrossEncoder, prompt: str | None, encode: Encode) -> str:
    """Return where the caller's ids are not the checkpoint's own, or ""; cut pairs are skipped."""
    pairs = [*UNEVEN, *SPELLINGS]
    theirs, ours = ragged(loaded.preprocess(pairs, prompt)), encode(pairs)
    for row, pair in enumerate(pairs):
        own, mine = theirs.take([row]), ours.take([row])
        cut = max(len(own.input_ids), len(mine.input_ids)) >= loaded.max_length
        same = np.array_equal(own.input_ids, mine.input_ids)
        typed = not takes_type_ids(loaded) or np.array_equal(own.type_ids, mine.type_ids)
        if not cut and not (same and typed):
            return f"its own tokenizer writes {pair!r} with other ids"
    return ""
