"""What turns logits into scores, and which one a checkpoint asks for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from ..checkpoints import ABSENT, Checkpoint
from ..config import Activation
from ..errors import ConfigError, ModelError
from ..tokens import Scores


def sigmoid(logits: NDArray[np.float32]) -> Scores:
    """Return 1 / (1 + exp(-x)) in float32, without overflow for any finite x."""
    small = np.exp(-np.abs(logits, dtype=np.float32))
    return np.where(logits >= 0, 1 / (1 + small), small / (1 + small)).astype(np.float32)


def _softsign(x: Scores) -> Scores:
    return np.asarray(x / (1 + np.abs(x)), dtype=np.float32)


def _softplus(x: Scores) -> Scores:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def _elu(x: Scores) -> Scores:
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0))).astype(np.float32)


def _selu(x: Scores) -> Scores:
    wide = 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * _elu(x))
    return wide.astype(np.float32)


def _gelu(x: Scores) -> Scores:
    shares = [math.erf(value / math.sqrt(2)) / 2 + 0.5 for value in x.tolist()]
    return x * np.array(shares, dtype=np.float32)


FUNCTIONS: Mapping[str, Callable[[Scores], Scores]] = {
    "sigmoid": sigmoid,
    "identity": lambda x: x,
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "leakyrelu": lambda x: np.where(x > 0, x, x * 0.01),
    "softplus": _softplus,
    "logsigmoid": lambda x: -_softplus(-x),
    "softsign": _softsign,
    "hardtanh": lambda x: np.clip(x, -1, 1),
    "hardsigmoid": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "elu": _elu,
    "celu": _elu,
    "selu": _selu,
    "gelu": _gelu,
    "silu": lambda x: x * sigmoid(x),
    "mish": lambda x: x * np.tanh(_softplus(x)),
    "hardshrink": lambda x: np.where(np.abs(x) > 0.5, x, 0),
    "softshrink": lambda x: np.sign(x) * np.maximum(np.abs(x) - 0.5, 0),
    "tanhshrink": lambda x: x - np.tanh(x),
    "prelu": lambda x: np.where(x > 0, x, x * 0.25),
    "hardswish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
}
"""What sentence-transformers may store for one label: torch's, made without arguments."""

TURNING = frozenset({"gelu", "silu", "mish", "hardswish"})
"""Those that fall before they rise: a higher logit may score lower, so scores are the order."""


def keys(logits: NDArray[np.float32], label: int = 1) -> Scores:
    """Return one float32 per pair to sort by, from logits of shape (pairs, labels).

    Of one label it is the logit; of several the lead of *label*, which means "relevant", over the
    others: of two over the other, of more over the logarithm of their sum. Half precision is
    widened first, so that it makes no ties. Finite logits give finite keys: a lead beyond float32
    is its largest number.
    """
    wide = np.asarray(logits, dtype=np.float32)
    if wide.shape[1] == 1:
        return wide[:, 0]
    others = np.delete(wide.astype(np.float64), label, axis=1)
    lead = wide[:, label].astype(np.float64) - np.logaddexp.reduce(others, axis=1)
    bound = np.finfo(np.float32)
    found: Scores = np.clip(lead, bound.min, bound.max).astype(np.float32)
    return found


def scores(logits: NDArray[np.float32], activation: str, label: int = 1) -> Scores:
    """Return float32 scores of shape (pairs,) from logits of shape (pairs, labels).

    Of several labels: softmax[label], which is the sigmoid of its lead, or for "identity" the lead
    itself. Finite logits give finite scores.
    """
    function = sigmoid if activation == "softmax" else FUNCTIONS[activation]
    return np.asarray(function(keys(logits, label)), dtype=np.float32)


def resolve(checkpoint: Checkpoint, activation: str, labels: int) -> str:
    """Return the activation asked for, or for "default" the one the checkpoint states.

    Of one label: rerank_adapters.json, then config_sentence_transformers.json, then config.json's
    `sentence_transformers.activation_fn` and `sbert_ce_default_activation_function`, then sigmoid.
    Of several labels: softmax, unless "identity" is asked for (the Identity that every such
    checkpoint stores means that several numbers come out, not that they are scores).
    ConfigError for an argument that cannot be, ModelError for a stored one that is not known.
    """
    if activation not in get_args(Activation):
        raise ConfigError(
            f"activation must be 'default', 'sigmoid', 'identity' or 'softmax': got {activation!r}"
        )
    if activation == "softmax" and labels == 1:
        raise ConfigError(
            "activation must be 'sigmoid' or 'identity' for a model with 1 label: got 'softmax', "
            "which makes every score 1"
        )
    if labels > 1:
        return "identity" if activation == "identity" else "softmax"
    if activation != "default":
        return activation
    if checkpoint.manifest.activation is not ABSENT:
        return _exported(checkpoint.manifest.activation)
    return _stored(checkpoint)


def _exported(name: str) -> str:
    if name not in FUNCTIONS:
        raise ModelError(f"the checkpoint's activation {name!r} is not known: pass activation=")
    return name


def _stored(checkpoint: Checkpoint) -> str:
    older = checkpoint.config.get("sentence_transformers") or {}
    if (path := checkpoint.settings.get("activation_fn")) is None:
        if "activation_fn" in older:
            path = older["activation_fn"]
        else:
            path = checkpoint.config.get("sbert_ce_default_activation_function")
    if path is None:
        return "sigmoid"
    package, _, name = str(path).rpartition(".")
    if package.split(".")[0] != "torch" or name.lower() not in FUNCTIONS:
        raise ModelError(
            f"the checkpoint's activation {str(path)!r} is not one for 1 label that is known here: "
            "pass activation='sigmoid' or activation='identity'"
        )
    return name.lower()
