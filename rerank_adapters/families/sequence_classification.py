"""Encoders and decoders with a head of labels over the pair."""

from __future__ import annotations

from ..checkpoints import Checkpoint
from ..errors import ConfigError
from .family import Family, make
from .frames import NO_FRAME, Frame
from .templates import Render


def read(
    checkpoint: Checkpoint,
    *,
    activation: str,
    prompt: str | None,
    render: Render | None,
    frame: Frame = NO_FRAME,
) -> Family | None:
    """Return the family where a *ForSequenceClassification or a Dense gives the scores."""
    if not checkpoint.classifies:
        return None
    if frame.answers is not None:
        raise ConfigError(
            f"answers must be None for a model with a head of labels: got {frame.answers!r}"
        )
    return make(checkpoint, activation=activation, prompt=prompt, render=render, frame=frame)
