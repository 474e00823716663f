"""What only transformers can do for other rooms: render a chat template, convert a tokenizer."""

from __future__ import annotations

import functools
import tempfile
import uuid
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from ...checkpoints import Checkpoint, TextTemplate, check_files
from ...errors import ModelError
from ...families import chat_template_options, render_template
from .arithmetic import check_arithmetic


def render_chat(
    checkpoint: Checkpoint,
    prompt: str | None,
    *,
    trust_remote_code: bool = False,
    cache_folder: str | None = None,
) -> TextTemplate:
    """Return the text a causal checkpoint's chat template writes around a pair, *prompt* included.

    Raises ModelError where the template does not write the query and then the document as they are.
    """
    check_arithmetic(checkpoint)
    tokenizer = _tokenizer(checkpoint.folder, trust_remote_code, cache_folder)
    options = chat_template_options(checkpoint.transformer.get("processing_kwargs", {}))

    def apply(messages: list[dict[str, Any]]) -> str:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, **options)
        return text

    return render_template(apply, prompt)


def convert_tokenizer(
    folder: Path, *, trust_remote_code: bool = False, cache_folder: str | None = None
) -> Path:
    """Write the tokenizer.json a checkpoint lacks; the file lives as long as the process.

    cache_folder: where code of another repository lies; it is not fetched here.
    """
    code = Checkpoint.read(folder).tokenizer_code
    if code and not trust_remote_code:  # another class would write other tokens
        raise ModelError(
            f"{folder} has no tokenizer.json, and its tokenizer is code of its own ({code[0]}): "
            "pass trust_remote_code=True to run it, once you have read it"
        )
    tokenizer = _tokenizer(folder, trust_remote_code, cache_folder)
    names = set(tokenizer.vocab_files_names.values())
    if not any((folder / name).is_file() for name in names):
        # transformers would go on with special tokens alone, and every word would be unknown.
        raise ModelError(f"{folder} has no tokenizer: none of {', '.join(sorted(names))} is there")
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"{type(tokenizer).__name__} of {folder} is written in Python: it cannot be converted "
            "to tokenizer.json"
        )
    file = Path(_scratch().name, f"{uuid.uuid4().hex}.json")
    tokenizer.backend_tokenizer.save(str(file))
    return file


def _tokenizer(folder: Path, trust_remote_code: bool, cache_folder: str | None) -> Any:
    check_files(folder, trust_remote_code=trust_remote_code)
    try:
        return AutoTokenizer.from_pretrained(
            str(folder),
            trust_remote_code=trust_remote_code,
            local_files_only=True,
            cache_dir=cache_folder,
        )
    except Exception as error:  # a class for each kind of damage
        raise ModelError(f"transformers cannot load the tokenizer of {folder}: {error}") from error


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="rerank-adapters-")
