"""What every family comes down to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..checkpoints import Checkpoint, TextTemplate
from ..errors import ModelError
from ..tokens import Scores
from . import activations
from .templates import Render, template_of


@dataclass(frozen=True, slots=True)
class Family:
    """What a checkpoint means: how a pair is written, and what its logits say.

    labels          columns of the logits: 1 or 2
    activation      what is really applied: "sigmoid", "identity", "softmax", "tanh", …
    template        the text around a pair, None where pairs go through the tokenizer's own frame
    prompt          the text to put before each query, None where the template has it
    position_limit  most tokens of a pair the model has positions for, None for any
    answer_tokens   ids of a causal model's (yes, no) or (yes, None), where its files state them
    """

    labels: int
    activation: str
    template: TextTemplate | None = None
    prompt: str | None = None
    position_limit: int | None = None
    answer_tokens: tuple[int, int | None] | None = None

    def keys(self, logits: NDArray[np.float32]) -> Scores:
        """Return the float32 (pairs,) that rankings sort by, from logits of (pairs, labels)."""
        if self.activation in activations.TURNING:
            return self.scores(logits)
        return activations.keys(logits)

    def scores(self, logits: NDArray[np.float32]) -> Scores:
        """Return float32 scores of shape (pairs,) from logits of shape (pairs, labels)."""
        return activations.scores(logits, self.activation)


def make(
    checkpoint: Checkpoint,
    *,
    activation: str,
    prompt: str | None,
    render: Render | None,
    answer_tokens: tuple[int, int | None] | None = None,
) -> Family:
    """Return the family of *checkpoint*; ModelError where its labels are not one score."""
    labels = checkpoint.labels
    if labels not in (1, 2):
        raise ModelError(f"expected a model with 1 or 2 labels: got {labels}")
    template = template_of(checkpoint, prompt, render)
    written = checkpoint.default_prompt if prompt is None else prompt
    return Family(
        labels=labels,
        activation=activations.resolve(checkpoint, activation, labels),
        template=template,
        prompt=None if template else written or None,
        position_limit=checkpoint.position_limit,
        answer_tokens=answer_tokens,
    )
