"""Encoders and decoders with a head of 1 or 2 labels over the pair."""

from __future__ import annotations

from ..checkpoints import Checkpoint
from .family import Family, make
from .templates import Render


def read(
    checkpoint: Checkpoint, *, activation: str, prompt: str | None, render: Render | None
) -> Family | None:
    """Return the family where a *ForSequenceClassification or a Dense gives the scores."""
    if not checkpoint.classifies:
        return None
    return make(checkpoint, activation=activation, prompt=prompt, render=render)
