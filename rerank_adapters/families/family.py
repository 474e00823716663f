"""What every family comes down to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..checkpoints import ABSENT, Checkpoint, TextTemplate
from ..tokens import Scores
from . import activations
from .frames import NO_FRAME, Frame
from .labels import label_of
from .templates import Render, template_of


@dataclass(frozen=True, slots=True)
class Family:
    """What a checkpoint means: how a pair is written, and what its logits say.

    labels          columns of the logits
    label           the one of several whose lead is the score
    scale           what the logit of one label is multiplied by
    activation      what is really applied: "sigmoid", "identity", "softmax", "tanh", …
    template        the text around a pair, None where pairs go through the tokenizer's own frame
    prompt          the text to put before each query, None where the template has it
    position_limit  most tokens of a pair the model has positions for, None for any
    answer_tokens   ids of a causal model's (yes, no) or (yes, None), where its files state them
    answers         their words, where arguments or the catalogue give them
    """

    labels: int
    activation: str
    template: TextTemplate | None = None
    prompt: str | None = None
    position_limit: int | None = None
    answer_tokens: tuple[int, int | None] | None = None
    label: int = 1
    scale: float = 1.0
    answers: tuple[str, ...] | None = None

    def keys(self, logits: NDArray[np.float32]) -> Scores:
        """Return the float32 (pairs,) that rankings sort by, from logits of (pairs, labels)."""
        if self.activation in activations.TURNING:
            return self.scores(logits)
        return activations.keys(self._scaled(logits), self.label)

    def scores(self, logits: NDArray[np.float32]) -> Scores:
        """Return float32 scores of shape (pairs,) from logits of shape (pairs, labels)."""
        return activations.scores(self._scaled(logits), self.activation, self.label)

    def scores_of(self, keys: Scores) -> Scores:
        """Return the scores of *keys*, as the mean of several is one; both float32 (pairs,)."""
        if self.activation in activations.TURNING:
            return keys
        return activations.scores(keys[:, None], self.activation)

    def _scaled(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.scale == 1:
            return logits
        return np.asarray(logits, dtype=np.float32) * np.float32(self.scale)


def make(
    checkpoint: Checkpoint,
    *,
    activation: str,
    prompt: str | None,
    render: Render | None,
    frame: Frame = NO_FRAME,
    answer_tokens: tuple[int, int | None] | None = None,
) -> Family:
    """Return the family of *checkpoint*; ModelError where its labels are not one score."""
    labels, manifest = checkpoint.labels, checkpoint.manifest
    template = template_of(checkpoint, prompt, render, frame)
    written = checkpoint.default_prompt if prompt is None else prompt
    if activation == "default" and frame.activation is not None:
        activation = frame.activation
    return Family(
        labels=labels,
        label=label_of(checkpoint, frame.label),
        scale=frame.scale if manifest.scale is ABSENT else manifest.scale,
        activation=activations.resolve(checkpoint, activation, labels),
        template=template,
        prompt=None if template else written or None,
        position_limit=checkpoint.position_limit,
        answer_tokens=answer_tokens,
        answers=frame.answers,
    )
