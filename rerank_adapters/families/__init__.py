"""What a checkpoint means, for both backends, read from its files and never from its name."""

from __future__ import annotations

from pathlib import Path

from . import sequence_classification, yes_no
from .checkpoint import Checkpoint
from .family import Family
from .templates import Render, chat_template_options, render_template

__all__ = ["FAMILIES", "Family", "chat_template_options", "family_for", "render_template"]

FAMILIES = (yes_no.read, sequence_classification.read)
"""Tried in this order. A new family is a module with such a `read`, and one entry here."""


def family_for(
    folder: Path,
    *,
    activation: str = "default",
    prompt: str | None = None,
    render: Render | None = None,
) -> Family:
    """What the checkpoint in *folder* means.

    activation: "default" (the checkpoint's own), "sigmoid", "identity", or "softmax" (2 labels).
    prompt: replaces the checkpoint's default prompt; "" drops it.
    render: maps (folder, prompt) to the text template of a checkpoint with a chat template that no
        export has rendered; backends.torch has one.

    Raises ModelError where the files are damaged or hold no reranker, ConfigError for *activation*.
    """
    checkpoint = Checkpoint.read(Path(folder))
    for read in FAMILIES:
        family = read(checkpoint, activation=activation, prompt=prompt, render=render)
        if family is not None:
            return family
    raise checkpoint.no_reranker()
