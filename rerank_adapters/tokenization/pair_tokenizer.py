"""PairTokenizer: one checkpoint's tokenizer, its limits and its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, __version__

from ..checkpoints import ABSENT, JOINT, NO_LIMIT, Checkpoint, TextTemplate
from ..config import SpecialTokens, TokenizerName, Truncation
from ..errors import ConfigError
from ..tokens import KnownTokens
from .accelerators import accelerated
from .around import Around, AroundWriter
from .document_facts import document_facts
from .files import Convert, Files
from .frame import pair_encoder
from .gather import EncodedPairs, Ids
from .literal import as_text as literal
from .literal import writes_mark
from .prompts import PlainWriter, Prompts, TemplateWriter, Writer
from .reader import Column, Reader
from .template import text_encoder
from .truncation import Counts, Options, Side
from .windows import Cutter


class PairTokenizer:
    """Encodes (query, document) pairs for one checkpoint; immutable, safe for threads.

    max_length   most tokens of a pair, frame included
    pad_id       the id that pads
    pad_side     "left" for models that generate text, so that each pair ends in a real token; else
                 "right", whatever the tokenizer states: pads on the left would shift positions
    whole_pairs_reason  why pairs are encoded whole (slower), "" where they are put together in id
                 space
    unaccelerated   why nothing faster than tokenizers reads texts, "" where nothing could
    special_tokens  what a text's "[SEP]" is: "as_text" or "as_tokens"

    reader reads texts, plain the checkpoint's own frame or template: two where texts are text only.
    """

    __slots__ = (
        *("_plain", "_reader", "_writer", "max_length", "pad_id", "pad_side", "special_tokens"),
        *("unaccelerated", "whole_pairs_reason"),
    )

    def __init__(
        self,
        writer: Writer,
        reader: Reader,
        plain: Reader,
        *,
        max_length: int,
        pad_id: int,
        pad_side: Side,
        whole_pairs_reason: str = "",
        unaccelerated: str = "",
        special_tokens: SpecialTokens = "as_tokens",
    ) -> None:
        self._writer = writer
        self._reader = reader
        self._plain = plain
        self.max_length = max_length
        self.pad_id = pad_id
        self.pad_side: Side = pad_side
        self.whole_pairs_reason = whole_pairs_reason
        self.unaccelerated = unaccelerated
        self.special_tokens: SpecialTokens = special_tokens

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: Checkpoint,
        *,
        max_length: int | None = None,
        truncation: Truncation = "longest_first",
        query_max_tokens: int | None = None,
        prompt: str | None = None,
        template: TextTemplate | None = None,
        special_tokens: SpecialTokens | None = None,
        tokenizer: TokenizerName = "auto",
        position_limit: int | None = None,
        convert: Convert | None = None,
    ) -> PairTokenizer:
        """Make the tokenizer of *checkpoint* from its tokenizer.json.

        max_length: the limit is the smallest of this, the tokenizer's own and *position_limit*.
        truncation: "longest_first" cuts the longer text, as sentence-transformers does;
            "only_second" cuts the document alone, and a query that leaves it no token is an
            InputError. In a *template* both cut the document first: it stands last.
        query_max_tokens: cuts each query to so many tokens before that (its prompt counts, where
            it is not in a template).
        prompt: put before each query; not used with a *template*, which has it written in.
        special_tokens: what of them stands in a query or a document: "as_text" is text there,
            "as_tokens" what it spells; None: as text in a *template*, as tokens elsewhere, where an
            export does not state it.
        tokenizer: what reads texts, as `RerankerConfig` says it.
        convert: maps a folder without tokenizer.json to a tokenizer.json made from its files.

        Raises ModelError for a missing or damaged file, ConfigError for arguments out of range.
        """
        _check(max_length, truncation, query_max_tokens)
        files = Files.read(checkpoint, convert)
        limit = min(max_length or NO_LIMIT, position_limit or NO_LIMIT, files.max_length)
        options = Options(limit, truncation, files.truncation_side, query_max_tokens)
        as_text = _as_text(checkpoint, special_tokens, template)
        reader, plain, unaccelerated = _readers(files.tokenizer, tokenizer, template, as_text)
        if template is None:
            pair, reason = pair_encoder(reader, options, types=files.types)
            writer: Writer = PlainWriter(pair, prompt or "")
        else:
            writer, reason = _template_writer(reader, plain, template, options)
        _check_apart(tokenizer, reason)
        return cls(
            writer,
            reader,
            plain,
            max_length=limit,
            pad_id=files.pad_id,
            pad_side=_pad_side(checkpoint, template),
            whole_pairs_reason=reason,
            unaccelerated=unaccelerated,
            special_tokens="as_text" if as_text else "as_tokens",
        )

    @classmethod
    def from_folder(
        cls,
        folder: Path | str,
        *,
        max_length: int | None = None,
        truncation: Truncation = "longest_first",
        query_max_tokens: int | None = None,
        prompt: str | None = None,
        template: TextTemplate | None = None,
        special_tokens: SpecialTokens | None = None,
        tokenizer: TokenizerName = "auto",
        position_limit: int | None = None,
        convert: Convert | None = None,
    ) -> PairTokenizer:
        """Make the tokenizer of the checkpoint in *folder*, as `from_checkpoint` does."""
        return cls.from_checkpoint(
            Checkpoint.read(folder),
            max_length=max_length,
            truncation=truncation,
            query_max_tokens=query_max_tokens,
            prompt=prompt,
            template=template,
            special_tokens=special_tokens,
            tokenizer=tokenizer,
            position_limit=position_limit,
            convert=convert,
        )

    def uncut(self) -> PairTokenizer:
        """Return the same tokenizer, over the same tokenizer.json, that cuts nothing."""
        return PairTokenizer(
            self._writer.uncut(),
            self._reader,
            self._plain,
            max_length=NO_LIMIT,
            pad_id=self.pad_id,
            pad_side=self.pad_side,
            whole_pairs_reason=self.whole_pairs_reason,
            unaccelerated=self.unaccelerated,
            special_tokens=self.special_tokens,
        )

    @property
    def tokenizer_json(self) -> str:
        """tokenizer.json as it is read here, for a library that brings a tokenizer of its own."""
        return self._plain.tokenizer.to_str()

    @property
    def reads_with(self) -> str:
        """The library that reads texts, its version, and why not a faster one."""
        trusted = self._reader.accelerated
        if trusted is not None and not trusted.reason and not self.whole_pairs:
            return trusted.name
        named = f"tokenizers {__version__}"
        whole = f"pairs are encoded whole, which is slower: {self.whole_pairs_reason}"
        reasons = whole if self.whole_pairs else trusted.reason if trusted else self.unaccelerated
        return f"{named}; {reasons}" if reasons else named

    @property
    def whole_pairs(self) -> bool:
        """Whether pairs are encoded whole."""
        return bool(self.whole_pairs_reason)

    def encode(
        self,
        pairs: Sequence[tuple[str, str]],
        prompts: Prompts | None = None,
        known: KnownTokens | None = None,
    ) -> EncodedPairs:
        """Return the tokens of each (query, document), order kept; equal texts are read once.

        prompts: one for each pair, None for the model's own. It stands before the query, or in a
            template where the model's own stands.
        known: texts as `read` reads them, which are not tokenised again.

        Raises InputError where truncation="only_second" leaves a document no token, and for a
        prompt that the model's template cannot take.
        """
        return self._writer.encode(pairs, prompts, known)

    def read(
        self,
        documents: Sequence[str],
        limit: int | None = None,
        known: KnownTokens | None = None,
    ) -> Column:
        """Return the tokens of *documents* as they stand in a pair: all, or *limit* and more.

        A template's own text next to a document is read with it.
        """
        return self._reader.column(self._writer.as_read(documents), limit, known)

    def document_ids(self, documents: Sequence[str]) -> list[Ids]:
        """Return the tokens of each of *documents* as they stand in a pair, uncut."""
        read = self.read(documents)
        rows = zip(read.starts.tolist(), read.lengths.tolist(), strict=True)
        return [read.ids[start : start + size] for start, size in rows]

    def as_read(self, documents: Sequence[str]) -> list[str]:
        """Return *documents* as they are tokenised: `encode` knows their tokens by these."""
        return self._writer.as_read(documents)

    def document_windows(
        self, documents: Sequence[str], tokens: int, step: int
    ) -> list[NDArray[np.int64]]:
        """Return the bounds of the windows of each of *documents* that has more than *tokens*.

        int64 of shape (windows, 2); of no windows where it has not, or is blank.
        """
        read = self.read(documents, tokens)
        rows = np.flatnonzero(read.cut | (read.lengths - self.text_around > tokens)).tolist()
        found = self.cutter().whole([documents[row] for row in rows], tokens, step)
        spans = dict(zip(rows, found, strict=True))
        bounds = [[span[:2] for span in spans.get(row, ())] for row in range(len(documents))]
        return [np.array(each, np.int64).reshape(-1, 2) for each in bounds]

    @property
    def text_around(self) -> int:
        """How many tokens of a template's own text are read with each document."""
        return int(self.read([""]).lengths[0])

    def document_facts(self) -> dict[str, str]:
        """Return what a document's tokens depend on beside its text, as hashes to compare.

        Raises ConfigError where documents are not read by themselves.
        """
        return document_facts(self._reader.tokenizer, self._writer, self.whole_pairs_reason)

    def room(self, queries: Sequence[str], prompts: Prompts | None = None) -> Counts:
        """Return how many tokens a document may have beside each query before it is cut.

        0 or less: the query leaves it none.
        """
        taken = self.encode([(query, "") for query in queries], prompts).batch.lengths
        left = self.max_length - taken
        return np.maximum(left, self._writer.least_room(self.max_length))

    def cutter(self) -> Cutter:
        """Return what cuts long texts into windows by this tokenizer's tokens."""
        return Cutter(self._reader)

    def answer_tokens(self, words: Sequence[str]) -> tuple[int, int | None]:
        """Return the ids of a language model's yes and no, or of yes alone, and None.

        Raises ConfigError for a word that is not one token of the vocabulary.
        """
        ids = [self._token(word) for word in words]
        return ids[0], ids[1] if len(ids) > 1 else None

    def _token(self, word: str) -> int:
        known: int | None = self._plain.tokenizer.token_to_id(word)
        ids = self._plain.ids(word) if known is None else [known]
        unknown = getattr(self._plain.tokenizer.model, "unk_token", None)
        if len(ids) != 1 or (known is None and ids[0] == self._id_of(unknown)):
            raise ConfigError(
                f"answers must be single tokens of the vocabulary: got {word!r}, which is "
                f"{len(ids)} tokens or unknown"
            )
        return ids[0]

    def _id_of(self, token: str | None) -> int | None:
        return None if token is None else self._plain.tokenizer.token_to_id(token)

    def count(self, texts: Sequence[str]) -> list[int]:
        """Return how many tokens each of *texts* has by itself, uncut, without special tokens."""
        counts: list[int] = self._reader.counts(list(texts)).tolist()
        return counts


def _readers(
    tokenizer: Tokenizer, choice: TokenizerName, template: TextTemplate | None, as_text: bool
) -> tuple[Reader, Reader, str]:
    """Return what reads texts, what reads a template, and why nothing faster reads texts."""
    spellings = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    own = literal(tokenizer, inside=_inside(tokenizer, template)) if as_text else tokenizer
    trusted, reason = accelerated(own, choice, spellings)
    reader = Reader(own, trusted)
    return reader, Reader(tokenizer) if as_text else reader, reason


def _template_writer(
    reader: Reader, plain: Reader, template: TextTemplate, options: Options
) -> tuple[Writer, str]:
    """Return the writer of pairs in *template*, and "" or why pairs must be encoded whole."""
    around = Around.of(plain, template)
    first = replace(template, document_first=False)  # `around` changes the texts over
    text, reason = text_encoder(reader, first, around.within(options), plain=plain)
    return AroundWriter(TemplateWriter(text), around), reason


def _inside(tokenizer: Tokenizer, template: TextTemplate | None) -> bool:
    """Whether texts follow a special token of *template*'s in one text."""
    return (
        template is not None
        and not template.joined
        and writes_mark(tokenizer, template.prefix.replace(JOINT, ""))
    )


def _pad_side(checkpoint: Checkpoint, template: TextTemplate | None) -> Side:
    chats = template is not None and not template.frame
    return "left" if checkpoint.causal or chats else "right"


def _as_text(
    checkpoint: Checkpoint, asked: SpecialTokens | None, template: TextTemplate | None
) -> bool:
    """Whether texts write no special tokens: as asked, as exported, else in a template."""
    stated = checkpoint.manifest.special_tokens
    if asked is None and stated is not ABSENT:
        return stated == "as_text"
    return template is not None if asked is None else asked == "as_text"


def _check_apart(tokenizer: TokenizerName, whole_pairs_reason: str) -> None:
    if whole_pairs_reason and tokenizer == "fast":
        raise ConfigError(
            'tokenizer must be "auto" or "huggingface" for this model, whose pairs are encoded '
            f'whole: {whole_pairs_reason}; got "fast"'
        )


def _check(max_length: int | None, truncation: str, query_max_tokens: int | None) -> None:
    if max_length is not None and max_length < 1:
        raise ConfigError(f"max_length must be at least 1: got {max_length}")
    if truncation not in get_args(Truncation):
        raise ConfigError(
            f"truncation must be 'longest_first' or 'only_second': got {truncation!r}"
        )
    if query_max_tokens is not None and query_max_tokens < 1:
        raise ConfigError(f"query_max_tokens must be at least 1: got {query_max_tokens}")
