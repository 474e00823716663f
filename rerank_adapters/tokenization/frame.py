"""Pairs of sequences: the tokenizer's own frame around a query and a document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from tokenizers import Encoding, Tokenizer

from ..checkpoints import NO_LIMIT
from ..errors import ConfigError
from ..texts import whole_pairs
from ..tokens import KnownTokens, TokenBatch
from .gather import EncodedPairs, Ids, gather
from .probes import PROBES
from .reader import Column, Reader, head, reading
from .truncation import Counts, Options, longest_first, only_second

SPARE_TOKENS = 64
"""Kept beyond what can be wanted of a text that is shortened as text, where its end may change."""


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """The ids before, between and after two texts; type ids of these, and of each text."""

    before: Ids
    between: Ids
    after: Ids
    types: tuple[Ids, int, Ids, int, Ids]

    @property
    def size(self) -> int:
        """Tokens the frame takes of the limit."""
        return len(self.before) + len(self.between) + len(self.after)


@dataclass(frozen=True, slots=True, eq=False)
class PairEncoder:
    """Frame, query and document put together in id space; each text is tokenised once."""

    reader: Reader
    frame: Frame
    options: Options

    def encode(
        self, pairs: Sequence[tuple[str, str]], known: KnownTokens | None = None
    ) -> EncodedPairs:
        """Return the tokens of each (query, document), order kept."""
        options, room = self.options, self.options.limit - self.frame.size
        # The beginning of a text says nothing about its end: cut on the left, all of it is read.
        limit = room if options.side == "right" else None
        queries = self.reader.column([query for query, _ in pairs], limit)
        documents = self.reader.column([document for _, document in pairs], limit, known)
        kept = self._kept(queries, documents, room, known)
        return EncodedPairs(
            self._joined(queries, documents, kept),
            truncated=(kept[0] < queries.lengths) | (kept[1] < documents.lengths),
        )

    def uncut(self) -> PairEncoder:
        """Return the same encoder without limits."""
        return replace(self, options=self.options.uncut())

    def least_room(self, limit: int) -> int:
        """Return half of the limit where the longer text is cut, else nothing."""
        return (limit - self.frame.size) // 2 * int(self.options.truncation == "longest_first")

    def _kept(
        self, queries: Column, documents: Column, room: int, known: KnownTokens | None
    ) -> tuple[Counts, Counts]:
        cap = self.options.query_max_tokens or NO_LIMIT
        left, right = np.minimum(queries.lengths, cap), documents.lengths
        if self.options.truncation == "only_second":
            return only_second(left, right, room)
        unsure = np.flatnonzero((left > room) & (right > room) & (queries.cut | documents.cut))
        if len(unsure):  # which of two cut texts is longer decides the odd token: read their ends
            left, right = left.copy(), right.copy()
            whole = self.reader.counts([queries.texts[row] for row in unsure])
            left[unsure] = np.minimum(whole, cap)
            texts = [documents.texts[row] for row in unsure]
            right[unsure] = self.reader.column(texts, None, known).lengths
        return longest_first(left, right, room, limit=self.options.limit)

    def _joined(
        self, queries: Column, documents: Column, kept: tuple[Counts, Counts]
    ) -> TokenBatch:
        frame, none = self.frame, np.zeros_like(kept[0])
        left, right = queries.starts, documents.starts
        if self.options.side == "left":
            left = left + queries.lengths - kept[0]
            right = right + documents.lengths - kept[1]
        fixed = [none + len(ids) for ids in (frame.before, frame.between, frame.after)]
        return gather(
            (frame.before, queries.ids, frame.between, documents.ids, frame.after),
            frame.types,
            starts=np.stack([none, left, none, right, none], axis=1),
            lengths=np.stack([fixed[0], kept[0], fixed[1], kept[1], fixed[2]], axis=1),
        )


@dataclass(frozen=True, slots=True, eq=False)
class WholeEncoder:
    """Each pair by the tokenizer's own pair encoding; `truncating` cuts to the limit."""

    reader: Reader
    truncating: Tokenizer
    options: Options
    types: bool

    def encode(
        self, pairs: Sequence[tuple[str, str]], known: KnownTokens | None = None
    ) -> EncodedPairs:
        """Return the tokens of each (query, document), order kept."""
        del known  # the two texts are read together
        queries = [query for query, _ in pairs]
        queries, dropped = self.reader.shorten(queries, self.options.query_max_tokens)
        documents = [document for _, document in pairs]
        if self.options.truncation == "only_second":
            room = self.options.limit - self.truncating.num_special_tokens_to_add(is_pair=True)
            only_second(self.reader.counts(queries), self.reader.counts(documents), room)
        encodings = self._encodings(*self._bounded(queries, documents))
        ids = [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]
        types = [np.array(encoding.type_ids, dtype=np.int32) for encoding in encodings]
        nothing = np.zeros(0, dtype=np.int32)
        batch = TokenBatch(
            input_ids=np.concatenate([nothing, *ids]),
            type_ids=np.concatenate([nothing, *types]) * np.int32(self.types),
            lengths=np.array([len(row) for row in ids], dtype=np.int64),
        )
        cut = np.array([bool(encoding.overflowing) for encoding in encodings], dtype=np.bool_)
        return EncodedPairs(batch, truncated=dropped | cut)

    def uncut(self) -> WholeEncoder:
        """Return the same encoder without limits."""
        return replace(self, truncating=self.reader.tokenizer, options=self.options.uncut())

    def least_room(self, limit: int) -> int:
        """Return half of the limit where the longer text is cut, else nothing."""
        frame: int = self.reader.tokenizer.num_special_tokens_to_add(is_pair=True)
        return (limit - frame) // 2 * int(self.options.truncation == "longest_first")

    def _bounded(self, queries: list[str], documents: list[str]) -> tuple[list[str], list[str]]:
        """The texts without what the cut drops anyway, but which is longer stays so.

        `tokenizers` builds each window it drops, paired with each of the other text: two long texts
        would take all memory.
        """
        most, side = 2 * self.options.limit + SPARE_TOKENS, self.options.side
        if all(len(text) <= most for text in (*queries, *documents)):
            return queries, documents
        read = {text: self.reader.full([text])[0] for text in {*queries, *documents}}
        queries_read, documents_read = [], []
        for query, document in zip(queries, documents, strict=True):
            longer = len(read[query]) > len(read[document])
            left, right = most + SPARE_TOKENS * longer, most + SPARE_TOKENS * (not longer)
            queries_read.append(head(query, read[query], left, side))
            documents_read.append(head(document, read[document], right, side))
        return queries_read, documents_read

    def _encodings(self, queries: list[str], documents: list[str]) -> list[Encoding]:
        with reading():
            try:
                return self.truncating.encode_batch(list(zip(queries, documents, strict=True)))
            except TypeError:  # half a character somewhere
                pairs = whole_pairs(list(zip(queries, documents, strict=True)))
                return self.truncating.encode_batch(list(pairs))


def pair_encoder(
    reader: Reader, options: Options, *, types: bool
) -> tuple[PairEncoder | WholeEncoder, str]:
    """Return the encoder, and "" or why pairs must be encoded whole; without *types* all are 0."""
    tokenizer = reader.tokenizer
    least = tokenizer.num_special_tokens_to_add(is_pair=True) + 2
    if options.limit < least:
        raise ConfigError(f"max_length must be at least {least}: got {options.limit}")
    frame = _frame(tokenizer, types=types)
    reason = "its pair encoding is no frame around the query and then the document"
    if frame is not None:
        reason = _disagreement(PairEncoder(reader, frame, Options(NO_LIMIT)), types=types)
    if frame is not None and not reason:
        return PairEncoder(reader, frame, options), ""
    truncating = Tokenizer.from_str(tokenizer.to_str())
    truncating.enable_truncation(options.limit, strategy=options.truncation, direction=options.side)
    return WholeEncoder(reader, truncating, options, types), reason


def _frame(tokenizer: Tokenizer, *, types: bool) -> Frame | None:
    encoding = tokenizer.encode("a b", "c d")
    texts = np.array([-1 if text is None else text for text in encoding.sequence_ids])
    (left,), (right,) = np.nonzero(texts == 0), np.nonzero(texts == 1)
    for rows in (left, right):
        if not len(rows) or len(rows) != rows[-1] - rows[0] + 1:
            return None
    if left[-1] > right[0]:
        return None
    ids = np.array(encoding.ids, dtype=np.int32)
    kinds = np.array(encoding.type_ids, dtype=np.int32) * np.int32(types)
    spans = slice(0, left[0]), slice(left[-1] + 1, right[0]), slice(right[-1] + 1, None)
    before, between, after = (kinds[span] for span in spans)
    types_of = before, int(kinds[left[0]]), between, int(kinds[right[0]]), after
    return Frame(ids[spans[0]], ids[spans[1]], ids[spans[2]], types_of)


def _disagreement(encoder: PairEncoder, *, types: bool) -> str:
    for pair in PROBES:
        ours, theirs = encoder.encode([pair]).batch, encoder.reader.tokenizer.encode(*pair)
        kinds = theirs.type_ids if types else [0] * len(theirs)
        if ours.input_ids.tolist() != theirs.ids or ours.type_ids.tolist() != kinds:
            return f"its pair encoding of {pair!r} is not its frame around the two texts"
        if not all(theirs.attention_mask):
            return f"its pair encoding of {pair!r} masks tokens"
    return ""
