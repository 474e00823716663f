"""Documents' tokens, read once and found again by document id."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

from ..errors import ConfigError, InputError
from ..texts import whole
from .entries import (
    Cut,
    DocumentReader,
    Entry,
    Ids,
    Spans,
    Store,
    hashed,
    hashed_cut,
    packed,
    unpacked,
)
from .folder import FolderStore
from .memory import MemoryStore

__all__ = ["Cut", "DocumentReader", "DocumentTokens"]

logger = logging.getLogger(__name__)

AT_ONCE = 512
"""Documents that are tokenised together while tokens are built."""


class DocumentTokens:
    """The tokens of documents by id: to rank a document again costs no tokenising of it.

    Give one to `Reranker(document_tokens=...)` or to an adapter, which from then on know its
    tokenizer; `add` then reads documents into it. A document is found by the id that comes with it
    (`RerankRequest.ids`, LangChain's `Document.id`, LlamaIndex's `node_id`) and by a hash of its
    text: one whose text has changed is tokenised anew, and so is one that is not there. Scores are
    bit for bit those without. Of a Reranker that has `windows`, `add` keeps those of each long
    document too, so that they are neither cut nor tokenised again.

    Several rerankers of one tokenizer may share it; another tokenizer is refused. Tokens tell the
    texts they are of, so a folder of them is as secret as the documents.

    >>> tokens = DocumentTokens.memory()
    >>> len(tokens)
    0
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._reader: DocumentReader | None = None
        self._facts = store.facts
        self._cuts: frozenset[Cut] = frozenset()
        self._hits = 0
        self._misses = 0
        self._window_misses = 0

    @classmethod
    def memory(cls) -> DocumentTokens:
        """Tokens in this process' memory, none at first."""
        return cls(MemoryStore())

    @classmethod
    def at(cls, folder: str | Path) -> DocumentTokens:
        """The tokens in *folder*, mapped into memory; `add` makes the folder where there is none.

        Each `add` writes one file more, aside, and renames it into place; files are never changed,
        so other processes go on with what they opened. Raises ModelError for a file that is damaged
        or of another format, ConfigError for files of two tokenizers.
        """
        if not isinstance(folder, str | Path) or not str(folder).strip():
            raise ConfigError(f"document_tokens must be a folder's path: got {folder!r:.80}")
        return cls(FolderStore(Path(folder).expanduser()))

    @classmethod
    def of(cls, value: object) -> DocumentTokens | None:
        """*value* as DocumentTokens: some, the path of a folder, or None. Raises ConfigError."""
        if value is None or isinstance(value, cls):
            return value
        if isinstance(value, str | Path):
            return cls.at(value)
        raise ConfigError(
            "document_tokens must be DocumentTokens.memory(), DocumentTokens.at(folder), the path "
            f"of a folder or None: got {value!r:.80}"
        )

    def bind(self, reader: DocumentReader, cut: Cut | None = None) -> None:
        """Read documents by *reader* from now on, and keep what *cut* makes of long ones too.

        Raises ConfigError where the tokens here are another tokenizer's, or where it cannot read
        documents by themselves.
        """
        facts = reader.document_facts()
        _check_facts(self._facts, facts)
        self._reader, self._facts = reader, facts
        if cut is not None:
            self._cuts |= {cut}

    def add(
        self,
        documents: Iterable[tuple[str, str]],
        *,
        on_progress: Callable[[int], None] | None = None,
    ) -> int:
        """Tokenise *documents*, (id, text) each, and keep their tokens; how many documents it were.

        They may be any number: some are read at a time. Of equal ids the last counts, and in place
        of earlier ones. *on_progress* is called with the number just read. Raises ConfigError where
        no reranker was loaded with this, InputError for what is no pair of str.
        """
        if self._reader is None:
            raise ConfigError(
                "document_tokens must be given to a Reranker before documents are added, so that "
                "its tokenizer is known: Reranker(..., document_tokens=tokens)"
            )
        entries = _entries(documents, self._reader, sorted(self._cuts), on_progress)
        return self._store.put(entries, self._facts)

    def get(self, ids: Sequence[str | None], documents: Sequence[str]) -> dict[str, Ids]:
        """The tokens of those of *documents* that are kept under their id, by text.

        Raises ModelError for tokens that are damaged.
        """
        named = [(key, text) for key, text in zip(ids, documents, strict=True) if key is not None]
        found = self._store.get([(hashed(key), hashed(text)) for key, text in named])
        tokens = {text: it for (_, text), it in zip(named, found, strict=True) if it is not None}
        missed = sum(it is None for it in found)  # count() would compare arrays
        self._misses += missed
        self._hits += len(found) - missed
        return tokens

    def windows(
        self, ids: Sequence[str | None], documents: Sequence[str], cut: Cut
    ) -> list[tuple[Spans, list[Ids]] | None]:
        """The windows that *cut* makes of each document and the tokens of each; None: not kept.

        Raises ModelError for tokens that are damaged.
        """
        named = [(key, text) for key, text in zip(ids, documents, strict=True) if key is not None]
        found = iter(self._store.get([(hashed_cut(key, cut), hashed(it)) for key, it in named]))
        rows = [None if key is None else next(found) for key in ids]
        missed = sum(row is None for row in rows)
        if missed and not self._window_misses:
            logger.info(
                "document_tokens: no windows of %d tokens, %d apart, are kept of a document: "
                "documents are cut and tokenised anew; add them where these windows are an option",
                *cut,
            )
        self._window_misses += missed
        return [None if row is None else unpacked(row) for row in rows]

    def stats(self) -> dict[str, int]:
        """Documents and bytes here, and how many were found and not found so far.

        `window_misses` counts long documents whose windows were not found, so that they were cut.
        """
        documents, used = self._store.size()
        return {
            "documents": documents,
            "bytes": used,
            "hits": self._hits,
            "misses": self._misses,
            "window_misses": self._window_misses,
        }

    def __len__(self) -> int:
        return self._store.size()[0]

    def __bool__(self) -> bool:
        return True

    def __copy__(self) -> DocumentTokens:
        return self  # it is alive: a copy of what uses it uses the same

    def __deepcopy__(self, memo: object) -> DocumentTokens:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("DocumentTokens are alive and cannot be pickled: open them where needed")


def _entries(
    documents: Iterable[tuple[str, str]],
    reader: DocumentReader,
    cuts: Sequence[Cut],
    on_progress: Callable[[int], None] | None,
) -> Iterator[Entry]:
    rest = enumerate(documents)
    while some := [_checked(*one) for one in islice(rest, AT_ONCE)]:
        read = reader.document_ids([text for _, text in some])
        for (key, text), ids in zip(some, read, strict=True):
            yield Entry(hashed(key), hashed(text), ids)
        for cut in cuts:
            yield from _cut_entries(some, reader, cut)
        if on_progress is not None:
            on_progress(len(some))


def _cut_entries(
    documents: Sequence[tuple[str, str]], reader: DocumentReader, cut: Cut
) -> Iterator[Entry]:
    found = reader.document_windows([text for _, text in documents], *cut)
    for (key, text), spans in zip(documents, found, strict=True):
        if len(spans):
            ids = reader.document_ids([text[start:end] for start, end in spans.tolist()])
            yield Entry(hashed_cut(key, cut), hashed(text), packed(spans, ids), cut=True)


def _checked(index: int, document: Any) -> tuple[str, str]:
    pair = isinstance(document, tuple | list) and len(document) == 2
    if not pair or not all(isinstance(part, str) for part in document):
        raise InputError(f"documents[{index}] must be an (id, text) pair: got {document!r:.80}")
    return document[0], whole(document[1])


def _check_facts(kept: Mapping[str, str], asked: Mapping[str, str]) -> None:
    """Raise ConfigError for the first of *asked* that the tokens in store were not made by."""
    for name, value in asked.items() if kept else ():
        if kept.get(name) != value:
            raise ConfigError(
                f"document_tokens must be built with this model's {name}: they have "
                f"{kept.get(name)!r:.80}, and here it is {value!r:.80}; build them again"
            )
