"""Pairs of texts to token ids, put together in id space.

A pair is the tokenizer's own frame (`[CLS] query [SEP] document [SEP]`) around two texts that are
tokenised apart: the query once, each document once. The frame is found by probing at load and
checked against the tokenizer's own pair encoding; where they disagree pairs are encoded whole, and
`PairTokenizer.whole_pairs_reason` says why. Ids, type ids and cuts equal those of transformers'
`tokenizer(pairs, truncation="longest_first", max_length=...)`.

Nothing here changes after load, so any number of threads may encode at once. A lone surrogate,
which no tokenizer takes, is read as "?".
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import ConfigError
from .files import Convert, Files, read_json
from .pairs import pair_encoder
from .parts import NO_LIMIT, EncodedPairs, Encoder, Options, Side, Truncation
from .reader import Reader
from .texts import TextTemplate, text_encoder

__all__ = ["NO_LIMIT", "EncodedPairs", "PairTokenizer", "TextTemplate", "read_json"]


class PairTokenizer:
    """Encodes (query, document) pairs for one checkpoint; immutable, safe for threads.

    max_length   most tokens of a pair, frame included
    pad_id       the id that pads
    pad_side     "left" for models that generate text, so that each pair ends in a real token; else
                 "right", whatever the tokenizer states: pads on the left would shift positions
    whole_pairs_reason  why pairs are encoded whole (slower), "" where they are put together in id
                 space
    """

    __slots__ = ("_encoder", "_reader", "max_length", "pad_id", "pad_side", "whole_pairs_reason")

    def __init__(
        self,
        encoder: Encoder,
        reader: Reader,
        *,
        max_length: int,
        pad_id: int,
        pad_side: Side,
        whole_pairs_reason: str = "",
    ) -> None:
        self._encoder = encoder
        self._reader = reader
        self.max_length = max_length
        self.pad_id = pad_id
        self.pad_side: Side = pad_side
        self.whole_pairs_reason = whole_pairs_reason

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        *,
        max_length: int | None = None,
        truncation: Truncation = "longest_first",
        query_max_tokens: int | None = None,
        prompt: str | None = None,
        template: TextTemplate | None = None,
        position_limit: int | None = None,
        convert: Convert | None = None,
    ) -> PairTokenizer:
        """The tokenizer of the checkpoint in *folder*, from its tokenizer.json.

        max_length: the limit is the smallest of this, the tokenizer's own and *position_limit*.
        truncation: "longest_first" cuts whichever text is longer, as sentence-transformers does;
            "only_second" cuts the document alone, and a query that leaves it no token is an
            InputError. In a *template* both cut the document first: it stands last.
        query_max_tokens: cuts each query to so many tokens before that (its prompt counts, where
            it is not in a template).
        prompt: put before each query; not used with a *template*, which has it written in.
        convert: maps a folder without tokenizer.json to a tokenizer.json made from its files.

        Raises ModelError for a missing or damaged file, ConfigError for arguments out of range.
        """
        _check(max_length, truncation, query_max_tokens)
        files = Files.read(Path(folder), convert)
        limit = min(max_length or NO_LIMIT, position_limit or NO_LIMIT, files.max_length)
        options = Options(limit, truncation, files.truncation_side, query_max_tokens, prompt or "")
        reader = Reader(files.tokenizer)
        encoder: Encoder
        if template is not None:
            encoder, reason = text_encoder(reader, template, options)
        else:
            encoder, reason = pair_encoder(reader, options, types=files.types)
        side: Side = "left" if template is not None or files.causal else "right"
        return cls(
            encoder,
            reader,
            max_length=limit,
            pad_id=files.pad_id,
            pad_side=side,
            whole_pairs_reason=reason,
        )

    @property
    def whole_pairs(self) -> bool:
        """Whether pairs are encoded whole."""
        return bool(self.whole_pairs_reason)

    def encode(self, pairs: Sequence[tuple[str, str]]) -> EncodedPairs:
        """Tokens of each (query, document), order kept; equal texts are tokenised once.

        InputError where truncation="only_second" leaves a document no token.
        """
        return self._encoder.encode(pairs)

    def count(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each of *texts* has by itself, uncut, special tokens not counted."""
        counts: list[int] = self._reader.counts(list(texts)).tolist()
        return counts


def _check(max_length: int | None, truncation: str, query_max_tokens: int | None) -> None:
    if max_length is not None and max_length < 1:
        raise ConfigError(f"max_length must be at least 1: got {max_length}")
    if truncation not in ("longest_first", "only_second"):
        raise ConfigError(
            f"truncation must be 'longest_first' or 'only_second': got {truncation!r}"
        )
    if query_max_tokens is not None and query_max_tokens < 1:
        raise ConfigError(f"query_max_tokens must be at least 1: got {query_max_tokens}")
