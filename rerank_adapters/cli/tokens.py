"""`tokens build`: a corpus read once, its tokens kept by document id."""

from __future__ import annotations

from pathlib import Path

from ..config import RerankerConfig
from ..document_tokens import Cut, DocumentTokens
from ..loading import find, read
from .collection import Documents
from .console import progress


def build(corpus: Path, folder: Path, config: RerankerConfig) -> int:
    """Tokenise the documents of *corpus* into *folder* with *config*'s tokenizer; how many.

    The network is not loaded. Raises InputError (the corpus), ConfigError and ModelError (the
    model, or a folder that holds another tokenizer's tokens).
    """
    tokens, documents = DocumentTokens.at(folder), Documents(corpus)
    cut = None if config.windows is None else Cut(config.windows.tokens, config.windows.step)
    tokens.bind(read(find(config)).tokenizer, cut)
    with progress("tokenising", len(documents)) as advance:
        pairs = zip(documents.ids, documents.stream(), strict=True)
        return tokens.add(pairs, on_progress=advance)
