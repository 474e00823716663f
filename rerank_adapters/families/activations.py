"""What turns logits into scores, and which one a checkpoint asks for."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..checkpoints import ABSENT, Checkpoint
from ..config import Activation
from ..errors import ConfigError, ModelError
from ..tokens import Scores

AppliedActivation = Literal["sigmoid", "identity", "softmax"]
"""What is really applied; `config.Activation` is what may be asked for."""

_BY_CLASS: dict[str, AppliedActivation] = {
    "Sigmoid": "sigmoid",
    "Identity": "identity",
    "Softmax": "softmax",
}


def sigmoid(logits: NDArray[np.float32]) -> Scores:
    """Return 1 / (1 + exp(-x)) in float32, without overflow for any finite x."""
    small = np.exp(-np.abs(logits, dtype=np.float32))
    return np.where(logits >= 0, 1 / (1 + small), small / (1 + small)).astype(np.float32)


def keys(logits: NDArray[np.float32]) -> Scores:
    """Return one float32 per pair to sort by, from logits of shape (pairs, 1) or (pairs, 2).

    Of one label it is the logit; of two, the lead of the second, which means "relevant", over the
    first. Half precision is widened first, so that it makes no ties. Finite logits give finite
    keys: a lead beyond float32 is its largest number.
    """
    wide = np.asarray(logits, dtype=np.float32)
    if wide.shape[1] == 1:
        return wide[:, 0]
    lead = np.subtract(wide[:, 1], wide[:, 0], dtype=np.float64)
    bound = np.finfo(np.float32)
    return np.clip(lead, bound.min, bound.max).astype(np.float32)


def scores(logits: NDArray[np.float32], activation: AppliedActivation) -> Scores:
    """Return float32 scores of shape (pairs,) from logits of shape (pairs, 1) or (pairs, 2).

    Of two labels: softmax[1], which is the sigmoid of their difference, or for "identity" the lead
    itself. Finite logits give finite scores.
    """
    one_per_pair = keys(logits)
    return one_per_pair if activation == "identity" else sigmoid(one_per_pair)


def resolve(checkpoint: Checkpoint, activation: str, labels: int) -> AppliedActivation:
    """Return the activation asked for, or for "default" the one the checkpoint states.

    Of one label: rerank_adapters.json, then config_sentence_transformers.json, then config.json's
    `sentence_transformers.activation_fn` and `sbert_ce_default_activation_function`, then sigmoid.
    Of two labels: softmax, unless "identity" is asked for (the Identity that every two-label
    checkpoint stores means that two numbers come out, not that they are scores).
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
    if labels == 2:
        return "identity" if activation == "identity" else "softmax"
    if activation != "default":
        return _BY_CLASS[activation.capitalize()]
    if checkpoint.manifest.activation is not ABSENT:
        return _exported(checkpoint.manifest.activation)
    return _stored(checkpoint)


def _exported(name: str) -> AppliedActivation:
    if name.capitalize() not in _BY_CLASS or name == "softmax":
        raise ModelError(f"the checkpoint's activation {name!r} is not known: pass activation=")
    return _BY_CLASS[name.capitalize()]


def _stored(checkpoint: Checkpoint) -> AppliedActivation:
    older = checkpoint.config.get("sentence_transformers") or {}
    if (path := checkpoint.settings.get("activation_fn")) is None:
        if "activation_fn" in older:
            path = older["activation_fn"]
        else:
            path = checkpoint.config.get("sbert_ce_default_activation_function")
    if path is None:
        return "sigmoid"
    package, _, name = str(path).rpartition(".")
    known = _BY_CLASS.get(name) if package.split(".")[0] == "torch" else None
    if known is None or known == "softmax":
        raise ModelError(
            f"the checkpoint's activation {str(path)!r} is not one for 1 label that is known here: "
            "pass activation='sigmoid' or activation='identity'"
        )
    return known
