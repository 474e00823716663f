"""What the tokens of a document by itself depend on, told so that stored ones can be judged."""

from __future__ import annotations

import hashlib

import tokenizers
from tokenizers import Tokenizer

from ..errors import ConfigError
from .around import AroundWriter
from .prompts import Writer


def document_facts(tokenizer: Tokenizer, writer: Writer, whole_pairs_reason: str) -> dict[str, str]:
    """Return the tokenizer, the library that runs it and the text around a document, by name.

    Raises ConfigError where a document is not read by itself.
    """
    if isinstance(writer, AroundWriter) and writer.around.document_first:
        whole_pairs_reason = "its template writes the document first"
    if whole_pairs_reason:
        raise ConfigError(
            "document_tokens must be None for this model, whose pairs are encoded whole: "
            f"{whole_pairs_reason}"
        )
    (written,) = writer.as_read(["\0"])
    return {
        "tokenizer": hashlib.sha256(tokenizer.to_str().encode()).hexdigest(),
        "tokenizers version": tokenizers.__version__,
        "template": hashlib.sha256(written.encode()).hexdigest(),
    }
