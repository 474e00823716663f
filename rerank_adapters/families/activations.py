"""What turns logits into scores, and which one a checkpoint asks for."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, ModelError
from ..values import Scores
from .checkpoint import Checkpoint

Activation = Literal["sigmoid", "identity", "softmax"]
_ACTIVATIONS: dict[str, Activation] = {
    "Sigmoid": "sigmoid",
    "Identity": "identity",
    "Softmax": "softmax",
}


def sigmoid(logits: NDArray[np.float32]) -> Scores:
    """1 / (1 + exp(-x)) in float32, without overflow for any finite x."""
    small = np.exp(-np.abs(logits, dtype=np.float32))
    return np.where(logits >= 0, 1 / (1 + small), small / (1 + small)).astype(np.float32)


def scores(logits: NDArray[np.float32], activation: Activation) -> Scores:
    """float32 scores of shape (pairs,) from logits of shape (pairs, 1) or (pairs, 2).

    Half precision is widened first, so that it makes no ties. Of two labels the second means
    "relevant": softmax[1], or for "identity" its lead over the first. Finite logits give finite
    scores.
    """
    wide = np.asarray(logits, dtype=np.float32)
    if wide.shape[1] == 1:
        return sigmoid(wide[:, 0]) if activation == "sigmoid" else wide[:, 0]
    lead = np.subtract(wide[:, 1], wide[:, 0], dtype=np.float64)
    bound = np.finfo(np.float32)
    narrow = np.clip(lead, bound.min, bound.max).astype(np.float32)
    # softmax of two numbers is the sigmoid of their difference
    return narrow if activation == "identity" else sigmoid(narrow)


def resolve(checkpoint: Checkpoint, activation: str, labels: int) -> Activation:
    """The activation asked for, or for "default" the one the checkpoint states.

    Of one label: rerank_adapters.json, then config_sentence_transformers.json, then config.json's
    `sentence_transformers.activation_fn` and `sbert_ce_default_activation_function`, then sigmoid.
    Of two labels: softmax, unless "identity" is asked for (the Identity that every two-label
    checkpoint stores means that two numbers come out, not that they are scores).
    ConfigError for an argument that cannot be, ModelError for a stored one that is not known.
    """
    if activation not in ("default", *get_args(Activation)):
        raise ConfigError(
            f"activation must be 'default', 'sigmoid', 'identity' or 'softmax': got {activation!r}"
        )
    if activation == "softmax" and labels == 1:
        raise ConfigError(
            "activation must be 'sigmoid' or 'identity' for a model with 1 label: got 'softmax', "
            "which makes every score 1"
        )
    if labels == 2:
        return "identity" if activation == "identity" else "softmax"
    if activation != "default":
        return _ACTIVATIONS[activation.capitalize()]
    if "activation" in checkpoint.exported:
        return _exported(checkpoint.exported["activation"])
    return _stored(checkpoint)


def _exported(name: Any) -> Activation:
    if str(name).capitalize() not in _ACTIVATIONS or name == "softmax":
        raise ModelError(f"the checkpoint's activation {name!r} is not known: pass activation=")
    return _ACTIVATIONS[str(name).capitalize()]


def _stored(checkpoint: Checkpoint) -> Activation:
    older = checkpoint.config.get("sentence_transformers") or {}
    if (path := checkpoint.settings.get("activation_fn")) is None:
        if "activation_fn" in older:
            path = older["activation_fn"]
        else:
            path = checkpoint.config.get("sbert_ce_default_activation_function")
    if path is None:
        return "sigmoid"
    package, _, name = str(path).rpartition(".")
    known = _ACTIVATIONS.get(name) if package.split(".")[0] == "torch" else None
    if known is None or known == "softmax":
        raise ModelError(
            f"the checkpoint's activation {str(path)!r} is not one for 1 label that is known here: "
            "pass activation='sigmoid' or activation='identity'"
        )
    return known
