"""Texts as text alone: a tokenizer that makes no special or added token of what they spell.

`[SEP]` in a document ends its part of the pair, and `<|im_end|>` its turn, where a tokenizer reads
them as the tokens they spell (`tokenizers` has `encode_special_tokens` against it, which leaves
Unigram's pieces "</s>" and words of a vocabulary as they are). Here added tokens are not looked
for, and their spellings are no words of the vocabulary.
"""

from __future__ import annotations

import json
import re
import secrets
from typing import Any

from tokenizers import AddedToken, Tokenizer

_BYTE = re.compile("<0x[0-9A-F]{2}>")


def marks_of(tokenizer: Tokenizer) -> dict[int, AddedToken]:
    """Return the tokens that no text may write, by id: special and added ones, but no blanks."""
    added = tokenizer.get_added_tokens_decoder()
    return {number: token for number, token in added.items() if token.content.strip(" \t\r\n▁")}


def writes_mark(tokenizer: Tokenizer, text: str) -> bool:
    """Whether *text* writes one of the marks."""
    read = tokenizer.encode(text, add_special_tokens=False)
    return not marks_of(tokenizer).keys().isdisjoint(read.ids)


def as_text(tokenizer: Tokenizer, *, inside: bool = False) -> Tokenizer:
    """Return *tokenizer* without its marks; every other text has the same ids.

    inside: for texts that follow a mark: no blank is put before them as before a whole text.
    """
    spellings = {token.content for token in marks_of(tokenizer).values()}
    content = json.loads(tokenizer.to_str())
    added = content["added_tokens"]
    content["added_tokens"] = [token for token in added if token["content"] not in spellings]
    _hide(content["model"], spellings)
    if inside:
        _drop_first_prefix(content.get("pre_tokenizer") or {})
    return Tokenizer.from_str(json.dumps(content))


def _hide(model: dict[str, Any], spellings: set[str]) -> None:
    """Give the words of *spellings* names that no text has, so that the others keep their ids.

    The word for unknown ones keeps its name where the model knows it by that, bytes keep theirs.
    """
    secret = secrets.token_hex(16)
    hidden = {
        word: f"\ufdd0{secret}{number}"
        for number, word in enumerate(sorted(spellings))
        if word != model.get("unk_token") and not _BYTE.fullmatch(word)
    }
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {hidden.get(word, word): number for word, number in vocabulary.items()}
    else:
        model["vocab"] = [[hidden.get(word, word), score] for word, score in vocabulary]
    if "merges" in model:
        model["merges"] = [
            pair
            for pair in (it.split(" ") if isinstance(it, str) else it for it in model["merges"])
            if hidden.keys().isdisjoint({*pair, "".join(pair)})
        ]


def _drop_first_prefix(part: dict[str, Any]) -> None:
    """Let Metaspace put no blank before a text that is not the first."""
    if part.get("prepend_scheme") == "first":
        part["prepend_scheme"] = "never"
    for inner in part.get("pretokenizers", ()):
        _drop_first_prefix(inner)
