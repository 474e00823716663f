"""Chat templates as the plain text around a query and a document."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import ConfigError, ModelError
from ..tokenization import TextTemplate, read_json
from .checkpoint import Checkpoint

Message = dict[str, Any]
ApplyChatTemplate = Callable[[list[Message]], str]
Render = Callable[[Path, str | None], TextTemplate]

_QUERY, _DOCUMENT = "Query1f6e", "Document9c0b"
_PROBES = [("0", "1 2 3 4"), ("", ""), ("what?", ""), ("", "that."), ("a\nb", "c {{ d }} <e>\n\nf")]
_BLANKS = (" q\n", "\n d ")


def template_of(
    checkpoint: Checkpoint, prompt: str | None, render: Render | None
) -> TextTemplate | None:
    """The text template of *checkpoint*, with *prompt* or its default prompt written in.

    None where it has no chat template, or states that it is not to be used. An exported folder
    holds it rendered; else *render* renders it, and without *render* it is a ModelError.
    """
    if "template" in checkpoint.exported:
        return _rendered(checkpoint.exported, prompt)
    if not has_chat_template(checkpoint):
        return None
    if render is None:
        raise ModelError(
            f"{checkpoint.folder} has a chat template, and only transformers can render it: use "
            "backend='torch' (pip install 'rerank-adapters[torch]'), or export the model to ONNX"
        )
    return render(checkpoint.folder, checkpoint.default_prompt if prompt is None else prompt)


def has_chat_template(checkpoint: Checkpoint) -> bool:
    """Whether pairs go through a chat template, as sentence-transformers decides it."""
    stated = checkpoint.transformer.get("modality_config")
    if stated is not None and "message" not in stated:
        return False
    if (checkpoint.folder / "chat_template.jinja").is_file():
        return True
    if (checkpoint.folder / "additional_chat_templates").is_dir():
        return True
    return bool(read_json(checkpoint.folder / "tokenizer_config.json", {}).get("chat_template"))


def chat_template_options(folder: Path) -> dict[str, Any]:
    """Arguments the checkpoint in *folder* stores for `apply_chat_template`, if any."""
    stored = (
        Checkpoint.read(folder).transformer.get("processing_kwargs", {}).get("chat_template", {})
    )
    ours = ("padding", "truncation", "max_length", "return_tensors", "restore_suffix")
    return {key: value for key, value in stored.items() if key not in ours}


def render_template(apply: ApplyChatTemplate, prompt: str | None) -> TextTemplate:
    """The text *apply* writes around a query and a document, found by rendering two marks.

    *apply* maps messages of roles "system" (where *prompt* is not empty), "query" and "document" to
    text. Messages are tried with plain contents, then with lists of parts. ModelError where the
    template does not write query, then document, each once and as it is.
    """
    failure: Exception | None = None
    for structured in (False, True):
        try:
            template = _find(apply, prompt, structured)
        except Exception as error:  # noqa: BLE001 - a template raises whatever it likes
            failure = error
        else:
            if template is not None:
                return template
    raise ModelError(
        "the chat template must write the query and then the document, once and as they are, from "
        f"messages with the roles 'query' and 'document'{f': {failure}' if failure else ''}"
    ) from failure


def _find(apply: ApplyChatTemplate, prompt: str | None, structured: bool) -> TextTemplate | None:
    def text(query: str, document: str) -> str:
        return apply(_messages(prompt, query, document, structured))

    marked = text(_QUERY, _DOCUMENT)
    if marked.count(_QUERY) != 1 or marked.count(_DOCUMENT) != 1:
        return None
    prefix, _, rest = marked.partition(_QUERY)
    middle, found, suffix = rest.partition(_DOCUMENT)
    if not found:
        return None
    template = TextTemplate(prefix, middle, suffix)
    template = replace(template, strip=text(*_BLANKS) != template.text(*_BLANKS))
    agrees = all(text(*pair) == template.text(*pair) for pair in [*_PROBES, _BLANKS])
    return template if agrees else None


def _messages(prompt: str | None, query: str, document: str, structured: bool) -> list[Message]:
    contents = [("query", query), ("document", document)]
    if prompt:
        contents.insert(0, ("system", prompt))
    return [
        {"role": role, "content": [{"type": "text", "text": text}] if structured else text}
        for role, text in contents
    ]


def _rendered(exported: dict[str, Any], prompt: str | None) -> TextTemplate | None:
    stored = exported["template"]
    if stored is None:
        return None
    try:
        template = TextTemplate(**stored)
    except TypeError as error:
        raise ModelError(f"the template in rerank_adapters.json is not one: {error}") from error
    written = exported.get("prompt")
    if prompt is None or prompt == written:
        return template
    if not written or not prompt or template.prefix.count(written) != 1:
        raise ConfigError(
            f"prompt must be {written!r}, as this exported model has it written in: got "
            f"{prompt!r}; export the model again with that prompt"
        )
    return replace(template, prefix=template.prefix.replace(written, prompt))
