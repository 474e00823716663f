"""Chat templates as the plain text around a query and a document."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ..checkpoints import ABSENT, Checkpoint, TextTemplate
from ..errors import ConfigError, ModelError
from .bounded import bounded
from .frames import NO_FRAME, Frame

Message = dict[str, Any]
ApplyChatTemplate = Callable[[list[Message]], str]
Render = Callable[[Checkpoint, str | None], TextTemplate]

_QUERY, _DOCUMENT, _PROMPT = "Query1f6e", "Document9c0b", "Prompt7a3d"
_PROBES = [("0", "1 2 3 4"), ("", ""), ("what?", ""), ("", "that."), ("a\nb", "c {{ d }} <e>\n\nf")]
_BLANKS = (" q\n", "\n d ")


def template_of(
    checkpoint: Checkpoint,
    prompt: str | None,
    render: Render | None,
    frame: Frame = NO_FRAME,
) -> TextTemplate | None:
    """Return the text template of *checkpoint*, with *prompt* or its default prompt written in.

    None where it has no chat template, or states that it is not to be used. An exported folder
    holds it rendered, and a *frame* that was given goes before all; else *render* renders it, and
    without *render* it is a ModelError.
    """
    if frame.template is not None:
        return _framed(checkpoint, prompt, frame.template, frame)
    if checkpoint.manifest.template is not ABSENT:
        return _exported(checkpoint.manifest.template, checkpoint.default_prompt, prompt)
    if not has_chat_template(checkpoint):
        return None
    if render is None:
        raise ModelError(
            f"{checkpoint.folder} has a chat template, and only transformers can render it: use "
            "backend='torch' (pip install 'rerank-adapters[torch]'), or export the model to ONNX"
        )
    return render(checkpoint, checkpoint.default_prompt if prompt is None else prompt)


def _framed(checkpoint: Checkpoint, prompt: str | None, text: str, frame: Frame) -> TextTemplate:
    """Return the frame *text* with its instruction written in; ConfigError where it has none."""
    stated = checkpoint.default_prompt if frame.instruction is None else frame.instruction
    written = stated if prompt is None else prompt
    asks = "{instruction}" in text
    if asks and written is None:
        raise ConfigError("prompt must be given for a template with {instruction}: got None")
    if prompt and not asks:
        raise ConfigError(
            f"prompt must be None for a template without {{instruction}}: got {prompt!r}"
        )
    return TextTemplate.parse(text, written, strip=frame.strip)


def has_chat_template(checkpoint: Checkpoint) -> bool:
    """Whether pairs go through a chat template, as sentence-transformers decides it."""
    stated = checkpoint.transformer.get("modality_config")
    if stated is not None and "message" not in stated:
        return False
    if (checkpoint.folder / "chat_template.jinja").is_file():
        return True
    if (checkpoint.folder / "additional_chat_templates").is_dir():
        return True
    return bool(checkpoint.tokenizer.get("chat_template"))


def chat_template_options(processing: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint's `processing_kwargs` store for `apply_chat_template`, if any."""
    ours = ("padding", "truncation", "max_length", "return_tensors", "restore_suffix")
    stored = processing.get("chat_template", {})
    return {key: value for key, value in stored.items() if key not in ours}


def render_template(apply: ApplyChatTemplate, prompt: str | None) -> TextTemplate:
    """Return the text *apply* writes around a query and a document, found by rendering two marks.

    *apply* maps messages of roles "system" (where *prompt* is not empty), "query" and "document" to
    text. Messages are tried with plain contents, then with lists of parts. ModelError where the
    template does not write query and document, each once and as it is.
    """
    apply = bounded(apply)
    failure: Exception | None = None
    for structured in (False, True):
        try:
            template = _find(apply, prompt, structured)
        except ModelError:
            raise
        except Exception as error:  # noqa: BLE001 - a template raises whatever it likes
            failure = error
        else:
            if template is not None:
                return replace(template, slot=_slot(apply, template, structured))
    raise ModelError(
        "the chat template must write the query and the document, once and as they are, from "
        f"messages with the roles 'query' and 'document'{f': {failure}' if failure else ''}"
    ) from failure


def _find(apply: ApplyChatTemplate, prompt: str | None, structured: bool) -> TextTemplate | None:
    def text(query: str, document: str) -> str:
        return apply(_messages(prompt, query, document, structured))

    marked = text(_QUERY, _DOCUMENT)
    if marked.count(_QUERY) != 1 or marked.count(_DOCUMENT) != 1:
        return None
    late = marked.index(_DOCUMENT) < marked.index(_QUERY)
    first, second = (_DOCUMENT, _QUERY) if late else (_QUERY, _DOCUMENT)
    prefix, _, rest = marked.partition(first)
    middle, _, suffix = rest.partition(second)
    template = TextTemplate(prefix, middle, suffix, document_first=late)
    template = replace(template, strip=text(*_BLANKS) != template.text(*_BLANKS))
    agrees = all(text(*pair) == template.text(*pair) for pair in [*_PROBES, _BLANKS])
    return template if agrees else None


def _slot(
    apply: ApplyChatTemplate, template: TextTemplate, structured: bool
) -> tuple[str, str] | None:
    """Return the prefix before and after a prompt; None where prompts are not written as they are.

    Found by rendering one mark as the prompt, and tried with two prompts.
    """

    def text(prompt: str) -> str:
        return apply(_messages(prompt, _QUERY, _DOCUMENT, structured))

    try:
        first = _DOCUMENT if template.document_first else _QUERY
        prefix = text(_PROMPT).partition(first)[0]
        before, _, after = prefix.partition(_PROMPT)
        prompted = replace(template, slot=(before, after))
        for prompt in (_PROMPT, " a\n\nb? "):
            other = prompted.with_prompt(prompt)
            if other is None or text(prompt) != other.text(_QUERY, _DOCUMENT):
                return None
    except Exception:  # noqa: BLE001 - a template may refuse any system message
        return None
    return before, after


def _messages(prompt: str | None, query: str, document: str, structured: bool) -> list[Message]:
    contents = [("query", query), ("document", document)]
    if prompt:
        contents.insert(0, ("system", prompt))
    return [
        {"role": role, "content": [{"type": "text", "text": text}] if structured else text}
        for role, text in contents
    ]


def _exported(
    template: TextTemplate | None, written: str | None, prompt: str | None
) -> TextTemplate | None:
    """Return the template an export holds with *written* in it, with *prompt* in its stead."""
    if template is None:
        return None
    if template.frame:
        if prompt is None:
            return template
        if (other := template.with_prompt(prompt)) is None:
            raise ConfigError(
                f"prompt must be None for a template without {{instruction}}: got {prompt!r}"
            )
        return other
    if written and template.slot is None and template.prefix.count(written) == 1:
        before, _, after = template.prefix.partition(written)
        template = replace(template, slot=(before, after))
    if prompt is None or prompt == written:
        return template
    other = template.with_prompt(prompt)
    if other is None:
        raise ConfigError(
            f"prompt must be {written!r}, as this exported model has it written in: got "
            f"{prompt!r}; export the model again with that prompt"
        )
    return other
