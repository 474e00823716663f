"""Pairs as one text, the way chat templates write them for causal models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import ConfigError
from .parts import PROBES, Counts, EncodedPairs, Ids, Options, gather, no_room_left
from .reader import Reader


@dataclass(frozen=True, slots=True)
class TextTemplate:
    """The text around a query and a document, for models that read a pair as one text.

    With `strip`, blanks around the query and the document are dropped first.
    """

    prefix: str
    middle: str
    suffix: str
    strip: bool = False

    def text(self, query: str, document: str) -> str:
        """The one text the model reads for this pair."""
        if self.strip:
            query, document = query.strip(), document.strip()
        return f"{self.prefix}{query}{self.middle}{document}{self.suffix}"


@dataclass(frozen=True, slots=True, eq=False)
class Seam:
    """A template split where no token crosses: around the query, around the document, the rest.

    `around_query` and `around_document` are (text before, text after), `tail` the rest's tokens.
    """

    around_query: tuple[str, str]
    around_document: tuple[str, str]
    tail: Ids

    def halves(self, query: str, document: str) -> tuple[str, str]:
        """The two texts to tokenise apart."""
        (before, after), (between, behind) = self.around_query, self.around_document
        return f"{before}{query}{after}", f"{between}{document}{behind}"


@dataclass(frozen=True, slots=True, eq=False)
class TextEncoder:
    """A template's text around a query and a document, without special tokens.

    Split at its `seam` each query and document is tokenised once; without a seam each pair is one
    text. Cut to the limit the text loses its end, so the template's own last tokens (`ending`) are
    written back over the last tokens kept, as sentence-transformers does: the model is read there.
    """

    reader: Reader
    template: TextTemplate
    seam: Seam | None
    ending: Ids
    options: Options

    def encode(self, pairs: Sequence[tuple[str, str]]) -> EncodedPairs:
        """Tokens of each (query, document), order kept."""
        options = self.options
        limit = options.limit if options.side == "right" else None
        queries = [query for query, _ in pairs]
        queries, dropped = self.reader.shorten(queries, options.query_max_tokens)
        halves = [self._halves(query, pair[1]) for query, pair in zip(queries, pairs, strict=True)]
        first = self.reader.column([half for half, _ in halves], limit)
        second = self.reader.column([half for _, half in halves], limit)
        tail = self.seam.tail if self.seam else np.zeros(0, dtype=np.int32)
        counts = np.stack([first.lengths, second.lengths, np.full(len(pairs), len(tail))], axis=1)
        long = counts.sum(axis=1) > options.limit
        if options.truncation == "only_second" and long.any():
            self._check_room(
                [query if cut else "" for query, cut in zip(queries, long, strict=True)]
            )
        starts, lengths = self._spans(counts)
        starts[:, 0] += first.starts
        starts[:, 1] += second.starts
        sources = (first.ids, second.ids, tail, self.ending)
        return EncodedPairs(gather(sources, (0, 0, 0, 0), starts, lengths), dropped | long)

    def _halves(self, query: str, document: str) -> tuple[str, str]:
        if self.seam is None:
            return self.template.text(query, document), ""
        if self.template.strip:
            query, document = query.strip(), document.strip()
        return self.seam.halves(query, document)

    def _spans(self, counts: Counts) -> tuple[Counts, Counts]:
        """What is kept of (first half, second half, tail, ending): starts, lengths, (pairs, 4)."""
        limit, totals = self.options.limit, counts.sum(axis=1)
        written = len(self.ending)
        full = totals >= limit  # at the limit itself too, as sentence-transformers does
        low = np.where(full & (self.options.side == "left"), totals - limit, 0)
        high = np.where(full, low + limit - written, totals)
        bases = np.cumsum(counts, axis=1) - counts
        starts = np.clip(low[:, None] - bases, 0, counts)
        lengths = np.clip(high[:, None] - bases, 0, counts) - starts
        nothing = np.zeros_like(totals)[:, None]
        return (
            np.concatenate([starts, nothing], axis=1),
            np.concatenate([lengths, full[:, None] * written], axis=1),
        )

    def _check_room(self, queries: list[str]) -> None:
        """InputError for the first query that leaves its document no token."""
        room = self.options.limit - len(self.ending)
        before = [f"{self.template.prefix}{query}{self.template.middle}" for query in queries]
        lost = np.flatnonzero(self.reader.column(before, room).lengths >= room)
        lost = lost[[bool(queries[row]) for row in lost]]
        if len(lost):
            raise no_room_left(int(lost[0]), room)


def text_encoder(
    reader: Reader, template: TextTemplate, options: Options
) -> tuple[TextEncoder, str]:
    """The encoder, and "" or why pairs must be encoded whole."""
    ending = _ending(reader, template)
    if options.limit < len(ending) + 2:
        raise ConfigError(f"max_length must be at least {len(ending) + 2}: got {options.limit}")
    seam = _seam(reader, template)
    reason = "" if seam else "tokens cross from its template to the texts wherever it is split"
    return TextEncoder(reader, template, seam, ending, options), reason


def _ending(reader: Reader, template: TextTemplate) -> Ids:
    """The tokens every text of *template* ends in: sentence-transformers' rule, fillers and all."""
    texts = [template.text(filler, filler) for filler in ("0", "1 2 3 4")]
    one, two = (np.array(reader.ids(text)[::-1], dtype=np.int32) for text in texts)
    shorter = min(len(one), len(two))
    differing = np.flatnonzero(one[:shorter] != two[:shorter])
    # Where one text is the end of the other nothing says where the template's end begins.
    return one[: differing[0]][::-1] if len(differing) else one[:0]


def _seam(reader: Reader, template: TextTemplate) -> Seam | None:
    """The last place in the middle, then the first in the suffix, where no probe's tokens cross."""
    middle, suffix = template.middle, template.suffix
    for at in range(len(middle), -1, -1):
        query, document = (template.prefix, middle[:at]), (middle[at:], suffix)
        seam = Seam(query, document, np.zeros(0, dtype=np.int32))
        if _holds(reader, seam, ""):
            break
    else:
        return None
    for at in range(len(suffix)):
        tail = np.array(reader.ids(suffix[at:]), dtype=np.int32)
        shorter = Seam(query, (document[0], suffix[:at]), tail)
        if _holds(reader, shorter, suffix[at:]):
            return shorter
    return seam


def _holds(reader: Reader, seam: Seam, rest: str) -> bool:
    """Whether *seam* leaves every probe's tokens as they are, between pre-tokens of the whole.

    The second matters more than the first: a probe may miss the one token that crosses, but not
    the rule that lets characters of its kind into one pre-token.
    """
    for pair in PROBES:
        halves = [reader.ids(half) for half in seam.halves(*pair)]
        (whole,) = reader.full(["".join([*seam.halves(*pair), rest])])
        if whole.ids != halves[0] + halves[1] + seam.tail.tolist():
            return False
        words = whole.word_ids
        for place in (len(halves[0]), len(halves[0]) + len(halves[1])):
            if 0 < place < len(words) and words[place - 1] == words[place]:
                return False
    return True
