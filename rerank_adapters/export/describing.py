"""The manifest of an export: what it takes torch or jinja2 to know."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.cross_encoder.modules import LogitScore

from ..checkpoints import ABSENT, Absent, Checkpoint, Manifest, TextTemplate
from ..errors import ModelError
from ..families import chat_template_options, render_template
from ..families.activations import resolve
from ..families.labels import label_of
from ..families.templates import Message
from .framing import PLAIN, Framing


def describe(oracle: CrossEncoder, folder: Path, framing: Framing = PLAIN) -> Manifest:
    """Return what the checkpoint in *folder*, held by *oracle*, means.

    Raises ModelError for a chat template that is not plain text around the query and the document,
    and for labels of which no rule says which is the score.
    """
    # The manifest of an earlier export may be out of date: the other files are asked.
    checkpoint = replace(Checkpoint.read(folder), manifest=Manifest())
    frame, labels = framing.frame, oracle.num_labels
    prompt, template = framing.prompt, framing.template
    if template is None:
        if prompt is None:
            prompt = oracle.prompts.get(oracle.default_prompt_name or "")
        template = _template(cast("Transformer", oracle[0]), prompt)
    # A graph keeps its labels, so which of them is the score may still be said when it is loaded.
    label = ABSENT if labels <= 2 and frame.label is None else label_of(checkpoint, frame.label)
    return Manifest(
        labels=labels,
        label=label,
        scale=ABSENT if frame.scale == 1 else frame.scale,
        activation=frame.activation or _activation(checkpoint, labels),
        causal=any(isinstance(stage, LogitScore) for stage in oracle),
        prompt=prompt,
        template=template,
        special_tokens=framing.special_tokens or ABSENT,
        position_limit=checkpoint.position_limit,
    )


def _activation(checkpoint: Checkpoint, labels: int) -> str | Absent:
    """Return what activation="default" means; ABSENT, for the reader to raise, if not known."""
    try:
        return resolve(checkpoint, "default", labels)
    except ModelError:
        return ABSENT


def _template(stage: Transformer, prompt: str | None) -> TextTemplate | None:
    """Return the text around a pair, *prompt* included; None for models that read pairs."""
    chats = stage.tokenizer is not None and stage.tokenizer.chat_template is not None
    if not chats or "message" not in stage.modality_config:
        return None
    options = chat_template_options(stage.processing_kwargs)

    def apply(messages: list[Message]) -> str:
        return str(stage.processor.apply_chat_template(messages, tokenize=False, **options))

    return render_template(apply, prompt)
