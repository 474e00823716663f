"""What goes into `rerank_adapters.json`: facts that take torch or jinja to read."""

from __future__ import annotations

from typing import cast

from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.cross_encoder.modules import LogitScore

from ..errors import ModelError

QUERY, DOCUMENT = "\u2045query\u2046", "\u2045document\u2046"  # brackets no template contains


def describe(encoder: CrossEncoder) -> dict[str, object]:
    """The content of `rerank_adapters.json`.

    {"format": 1, "labels": 1, "causal": true, "prompt": "…" | null,
     "template": {"prefix": "…", "middle": "…", "suffix": "…", "strip": false} | null}

    A pair is read as the text prefix + query + middle + document + suffix, without special tokens
    added; `prompt` is the checkpoint's default one, already written into the prefix; `strip` says
    that blanks around query and document are dropped. `causal` graphs take padding on either side.
    """
    prompt = encoder.prompts.get(encoder.default_prompt_name or "")
    return {
        "format": 1,
        "labels": encoder.num_labels,
        "causal": any(isinstance(stage, LogitScore) for stage in encoder),
        "prompt": prompt,
        "template": _template(cast("Transformer", encoder[0]), prompt),
    }


def _template(stage: Transformer, prompt: str | None) -> dict[str, object] | None:
    """The chat template around a pair, rendered once; None for models that read pairs."""
    chats = stage.tokenizer is not None and stage.tokenizer.chat_template is not None
    if not chats or "message" not in stage.modality_config:
        return None
    parts = _split(_render(stage, prompt, QUERY, DOCUMENT))
    padded = _split(_render(stage, prompt, f" {QUERY} ", f" {DOCUMENT} "))
    if padded not in (parts, (f"{parts[0]} ", f" {parts[1]} ", f" {parts[2]}")):
        raise ModelError("the chat template changes the texts put into it: it cannot be exported")
    return {
        **dict(zip(("prefix", "middle", "suffix"), parts, strict=True)),
        "strip": padded == parts,
    }


def _render(stage: Transformer, prompt: str | None, query: str, document: str) -> str:
    messages = [stage.input_formatter.pair_to_messages((query, document))]
    if prompt:
        messages = stage.input_formatter.prepend_prompt_to_messages(messages, prompt)
    options = dict(stage.processing_kwargs.get("chat_template", {}))
    for not_the_template in ("restore_suffix", "truncation", "max_length", "padding"):
        options.pop(not_the_template, None)
    return str(stage.processor.apply_chat_template(messages[0], tokenize=False, **options))


def _split(text: str) -> tuple[str, str, str]:
    prefix, found, rest = text.partition(QUERY)
    middle, also_found, suffix = rest.partition(DOCUMENT)
    if not (found and also_found) or QUERY in middle + suffix or DOCUMENT in prefix + suffix:
        raise ModelError(
            "the chat template must hold the query once and then the document once: "
            f"it renders {text!r}"
        )
    return prefix, middle, suffix
