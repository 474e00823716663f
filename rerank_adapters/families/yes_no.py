"""Causal models that answer yes or no: the score is the lead of one next token over another.

The one logit is logit[yes] - logit[no] at the last token (LogitScore of sentence-transformers).
"""

from __future__ import annotations

from typing import Any

from ..checkpoints import ABSENT, Checkpoint
from ..errors import ConfigError, ModelError
from .family import Family, make
from .frames import NO_FRAME, Frame
from .templates import Render, has_chat_template


def read(
    checkpoint: Checkpoint,
    *,
    activation: str,
    prompt: str | None,
    render: Render | None,
    frame: Frame = NO_FRAME,
) -> Family | None:
    """Return the family where modules.json names a LogitScore, or the model alone is causal."""
    answers = [module.config for module in checkpoint.modules if module.name == "LogitScore"]
    if not answers and (checkpoint.modules or not checkpoint.causal):
        return None
    tokens = None  # without a LogitScore they are the tokenizer's own "yes" and "no"
    if answers:
        tokens = int(answers[0]["true_token_id"]), answers[0].get("false_token_id")
    _check_frame(checkpoint, frame)
    options: dict[str, Any] = {"activation": activation, "prompt": prompt, "render": render}
    try:
        return make(checkpoint, **options, frame=frame, answer_tokens=tokens)
    except ModelError as error:
        if answers or stated(checkpoint, frame):
            raise
        cure = f"pass template= with {{query}} and {{document}}, and answers={frame.hint}"
        raise ModelError(f"{error}; {cure}") from error


def _check_frame(checkpoint: Checkpoint, frame: Frame) -> None:
    """Refuse a language model whose files do not say how it reads a pair, and answers too late."""
    if checkpoint.manifest.labels is not ABSENT:
        if frame.answers is not None:
            raise ConfigError(
                f"answers must be None for an exported model, which has them in its graph: got "
                f"{frame.answers!r}; export it again with those answers"
            )
    elif not (checkpoint.modules or stated(checkpoint, frame) or has_chat_template(checkpoint)):
        raise ModelError(
            f"{checkpoint.folder} is a language model, and its files do not say how it reads a "
            "pair: pass template= with {query} and {document}, and answers= with its words for "
            f"relevant and not{frame.hint}"
        )


def stated(checkpoint: Checkpoint, frame: Frame) -> bool:
    """Whether somebody says how a pair is written, a plain chat template not counted."""
    manifest = checkpoint.manifest
    exported = manifest.template is not ABSENT or manifest.causal is not ABSENT
    return frame.template is not None or exported
