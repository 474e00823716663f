"""Texts to token ids: each distinct text once, and of a long text no more than is wanted."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from ..checkpoints import as_model_error
from ..texts import whole
from ..tokens import KnownTokens
from .accelerators import Trusted
from .gather import Ids
from .truncation import Counts, Side

CHARACTERS_PER_TOKEN = 6
"""Prose has 3 to 5, so that the first window mostly holds all the tokens wanted."""

SETTLED_WORDS = 8
"""Pre-tokens that must stand between the last token wanted and the end of the window.

A cut changes the pre-token that touches it, and with rules that give letters back to the next one
(GPT-4o's do) the one before it. No rule is known that reaches further.
"""


SPARE_TOKENS = 64
"""Tokens that are taken of a known text beyond twice those wanted: it may be very long."""

WHOLE_HEADS = 8
"""Heads that an accelerator reads sooner than `tokenizers`, which knows where words end, one."""

PROBED = 6
"""A text without blanks is first read to a sixth: if that settles nothing, 7/6 of it were read."""


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """One text per row, and where its tokens lie in `ids`; equal texts share theirs.

    ids      int32 of shape (tokens of the distinct texts,)
    starts, lengths  int64 of shape (rows,)
    cut      bool of shape (rows,): only the first tokens were read, and there are more
    """

    texts: list[str]
    ids: Ids
    starts: Counts
    lengths: Counts
    cut: NDArray[np.bool_]

    def known(self) -> dict[str, Ids]:
        """The tokens of each text that was read to its end."""
        rows = zip(self.texts, self.starts.tolist(), self.lengths.tolist(), strict=True)
        whole = zip(rows, self.cut.tolist(), strict=True)
        return {text: self.ids[at : at + size] for (text, at, size), cut in whole if not cut}


def reading() -> AbstractContextManager[None]:
    """Tell what a tokenizer dies of, a pattern that backtracks too long, say, as a ModelError."""
    return as_model_error("one of the texts, by the rules of this model's tokenizer,")


class Reader:
    """Reads texts with a tokenizer that nobody changes; special tokens are never added."""

    __slots__ = ("_bounded", "accelerated", "tokenizer")

    def __init__(self, tokenizer: Tokenizer, accelerated: Trusted | None = None) -> None:
        """*accelerated* reads whole texts in its place, while that is trusted."""
        self.tokenizer = tokenizer
        self.accelerated = accelerated
        words = self.full(["a, b. " * SETTLED_WORDS])[0].word_ids
        self._bounded = len(set(words)) > SETTLED_WORDS  # else no head of a text ever settles

    def column(
        self, texts: list[str], limit: int | None, known: KnownTokens | None = None
    ) -> Column:
        """Return the tokens of *texts*: all, or more than *limit*, the first *limit* exact.

        Those of *known* are taken from there, and are not read.
        """
        indices: dict[str, int] = {}
        rows = np.array([indices.setdefault(text, len(indices)) for text in texts], dtype=np.int64)
        ids, cut = self._unread(list(indices), limit, known or {})
        lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        ends = np.cumsum(lengths)
        return Column(
            texts,
            ids=_flat(ids, int(lengths.sum())),
            starts=(ends - lengths)[rows],
            lengths=lengths[rows],
            cut=cut[rows],
        )

    def ids(self, text: str) -> list[int]:
        """Return all tokens of *text*."""
        ids: list[int] = np.asarray(self._wholes([text])[0], dtype=np.int32).tolist()
        return ids

    def counts(self, texts: list[str]) -> Counts:
        """Return the number of tokens of each of *texts*, read to the end."""
        return self.column(texts, None).lengths

    def shorten(self, texts: list[str], tokens: int | None) -> tuple[list[str], NDArray[np.bool_]]:
        """Return *texts* up to their first *tokens* tokens (None: whole), and which were cut."""
        if tokens is None:
            return texts, np.zeros(len(texts), dtype=np.bool_)
        distinct = list(dict.fromkeys(texts))
        read = zip(distinct, self.full(distinct), strict=True)
        heads = {text: head(text, encoding, tokens) for text, encoding in read}
        dropped = np.array([len(heads[text]) < len(text) for text in texts], dtype=np.bool_)
        return [heads[text] for text in texts], dropped

    def fast(self, texts: list[str]) -> list[Encoding]:
        """Return encodings with ids alone. Raises ModelError where the tokenizer breaks down."""
        return _encoded(self.tokenizer.encode_batch_fast, texts)

    def full(self, texts: list[str]) -> list[Encoding]:
        """Return encodings with offsets and word ids. Raises ModelError as `fast` does."""
        return _encoded(self.tokenizer.encode_batch, texts)

    def _wholes(self, texts: list[str]) -> list[Any]:
        """Return the ids of *texts*, lists or int32 arrays, read to the end."""
        found = self.accelerated.read(texts) if self.accelerated and texts else None
        return [encoding.ids for encoding in self.fast(texts)] if found is None else found

    def _unread(
        self, texts: list[str], limit: int | None, known: KnownTokens
    ) -> tuple[list[Any], NDArray[np.bool_]]:
        """Return the ids of *texts*, and which are cut; *known* are not read."""
        new = [row for row, text in enumerate(texts) if text not in known]
        read, were_cut = self._read([texts[row] for row in new], limit)
        if len(new) == len(texts):
            return list(read), were_cut
        # Much more than *limit* says no more than that there is more.
        most = None if limit is None else 2 * limit + SPARE_TOKENS
        ids: list[Any] = [known[text][:most] if text in known else [] for text in texts]
        cut = np.array(
            [
                text in known and len(known[text]) > len(it)
                for text, it in zip(texts, ids, strict=True)
            ],
            np.bool_,
        )
        cut[new] = were_cut
        for row, found in zip(new, read, strict=True):
            ids[row] = found
        return ids, cut

    def _read(self, texts: list[str], limit: int | None) -> tuple[list[Any], NDArray[np.bool_]]:
        """Return the ids of *texts*, and which of them are cut.

        Of a long text a head is read, and that is enough where SETTLED_WORDS pre-tokens follow the
        last token wanted: a cut changes none but the few pre-tokens before it, since each is
        tokenised by itself. Else a longer one, while all heads together are a small part of the
        text, and then all of it: text without pre-token bounds (Unigram without blanks, Gemma) has
        but one pre-token.
        """
        ids: list[Any] = [[]] * len(texts)
        cut = np.zeros(len(texts), dtype=np.bool_)
        heads = {row: self._head(text, limit) for row, text in enumerate(texts)}
        heads = {row: head for row, head in heads.items() if len(head) < len(texts[row])}
        while heads:
            longer = {}
            for (row, head), encoding in zip(
                heads.items(), self.full(list(heads.values())), strict=True
            ):
                cut[row] = _settled(encoding, limit or 0)
                ids[row] = encoding.ids
                window = 4 * len(head)
                if not cut[row] and 2 * window <= len(texts[row]) // PROBED:
                    longer[row] = texts[row][: cut_offset(texts[row], window)]
            heads = {row: head for row, head in longer.items() if len(head) < len(texts[row])}
        wholes = [row for row in range(len(texts)) if not cut[row]]
        for row, found in zip(wholes, self._wholes([texts[row] for row in wholes]), strict=True):
            ids[row] = found
        return ids, cut

    def _head(self, text: str, limit: int | None) -> str:
        """Return what to read of *text* first: all of it where it is short, or no head can do."""
        if limit is None:
            return text
        window = limit * CHARACTERS_PER_TOKEN
        if len(text) <= window * (WHOLE_HEADS if self.accelerated else 1):
            return text
        if len(text) < window * PROBED and _blanks(text, window) < SETTLED_WORDS:
            # Where a cut does not settle the text is read again: the head must be a small part.
            window = len(text) // PROBED
        return text[: cut_offset(text, window)] if self._bounded else text


def _encoded(encode: Callable[..., list[Encoding]], texts: list[str]) -> list[Encoding]:
    with reading():
        try:
            return encode(texts, add_special_tokens=False)
        except TypeError:  # half a character somewhere
            return encode(list(map(whole, texts)), add_special_tokens=False)


def _flat(ids: list[Any], count: int) -> Ids:
    """Return *ids*, lists and int32 arrays, one after the other."""
    if any(isinstance(one, np.ndarray) for one in ids):
        return np.concatenate([np.asarray(one, dtype=np.int32) for one in ids])
    return np.fromiter(chain.from_iterable(ids), dtype=np.int32, count=count)


def head(text: str, encoding: Encoding, tokens: int, side: Side = "right") -> str:
    """Return *text*, read as *encoding*, up to its first *tokens* tokens, or its last ones."""
    if len(encoding) <= tokens:
        return text
    text = whole(text)  # which is what the offsets count in
    if side == "left":
        return text[encoding.offsets[-tokens][0] :]
    return text[: encoding.offsets[tokens][0]]


def _blanks(text: str, window: int) -> int:
    """Return how many blanks stand in the second half of *window*."""
    return sum(text.count(blank, window // 2, window) for blank in " \n\t\u00a0\u3000")


_BEFORE_BLANK = re.compile(r"(?s:.*)\S(?=\s)")
_AFTER_NO_DIGIT = re.compile(r"(?s:.*)[^\s\d]")


def cut_offset(text: str, window: int) -> int:
    """Return the offset to cut *text* at, in the second half of *window*.

    It is the end of a word, else anywhere but after a digit. Rules that look far ahead look through
    runs of blanks or of digits. A cut is never made inside one: a window of nothing else takes the
    text whole.
    """
    if len(text) <= window:
        return len(text)
    found = _BEFORE_BLANK.match(text, window // 2, window)
    found = found or _AFTER_NO_DIGIT.match(text, window // 2, window)
    return found.end() if found else len(text)


def _settled(encoding: Encoding, limit: int) -> bool:
    words = encoding.word_ids
    if len(words) <= max(limit, 1):
        return False
    last, kept = words[-1], words[max(limit, 1) - 1]
    return last is not None and kept is not None and last - kept >= SETTLED_WORDS
