"""What a checkpoint means, for every backend, read from its files and never from its name."""

from __future__ import annotations

from ..checkpoints import Checkpoint
from . import sequence_classification, yes_no
from .family import Family
from .frames import NO_FRAME, Frame
from .templates import Render, chat_template_options, render_template

__all__ = ["FAMILIES", "Family", "Frame", "chat_template_options", "family_for", "render_template"]

FAMILIES = (yes_no.read, sequence_classification.read)
"""Tried in this order. A new family is a module with such a `read`, and one entry here."""


def family_for(
    checkpoint: Checkpoint,
    *,
    activation: str = "default",
    prompt: str | None = None,
    render: Render | None = None,
    frame: Frame = NO_FRAME,
) -> Family:
    """Return what *checkpoint* means.

    activation: "default" (the checkpoint's own), "sigmoid", "identity", or "softmax" (2 labels).
    prompt: replaces the checkpoint's default prompt; "" drops it.
    render: maps (checkpoint, prompt) to the text template of a checkpoint with a chat template that
        no export has rendered; backends.torch has one.
    frame: what arguments or the catalogue say beside the files.

    Raises ModelError where the files are damaged or hold no reranker, ConfigError for *activation*.
    """
    if checkpoint.refusal and not checkpoint.reranks:
        raise checkpoint.no_reranker()
    for read in FAMILIES:
        family = read(checkpoint, activation=activation, prompt=prompt, render=render, frame=frame)
        if family is not None:
            return family
    raise checkpoint.no_reranker()
