"""Causal models that answer yes or no: the score is the lead of one next token over another.

The one logit is logit[yes] - logit[no] at the last token (LogitScore of sentence-transformers).
"""

from __future__ import annotations

from ..checkpoints import Checkpoint
from .family import Family, make
from .templates import Render


def read(
    checkpoint: Checkpoint, *, activation: str, prompt: str | None, render: Render | None
) -> Family | None:
    """Return the family where modules.json names a LogitScore, or the model alone is causal."""
    answers = [module.config for module in checkpoint.modules if module.name == "LogitScore"]
    if not answers and (checkpoint.modules or not checkpoint.causal):
        return None
    tokens = None  # without a LogitScore they are the tokenizer's own "yes" and "no"
    if answers:
        tokens = int(answers[0]["true_token_id"]), answers[0].get("false_token_id")
    return make(
        checkpoint, activation=activation, prompt=prompt, render=render, answer_tokens=tokens
    )
