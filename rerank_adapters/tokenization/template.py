"""Pairs as one text, the way chat templates write them for causal models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..checkpoints import TextTemplate
from ..errors import ConfigError
from ..tokens import KnownTokens
from .gather import EncodedPairs, Ids, gather
from .probes import PROBES
from .reader import Reader
from .truncation import Counts, Options, no_room_left


@dataclass(frozen=True, slots=True, eq=False)
class Seam:
    """A template split where no token crosses: around the query, around the document, the rest.

    `around_query` and `around_document` are (text before, text after), `tail` the rest's tokens.
    """

    around_query: tuple[str, str]
    around_document: tuple[str, str]
    tail: Ids

    def halves(self, query: str, document: str) -> tuple[str, str]:
        """Return the two texts to tokenise apart."""
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

    def encode(
        self,
        pairs: Sequence[tuple[str, str]],
        known: KnownTokens | None = None,
        rows: Sequence[int] | None = None,
    ) -> EncodedPairs:
        """Return the tokens of each (query, document), order kept.

        rows: the indices that an error calls the pairs by, None: from 0 on.
        """
        options = self.options
        limit = options.limit if options.side == "right" else None
        queries = [query for query, _ in pairs]
        queries, dropped = self.reader.shorten(queries, options.query_max_tokens)
        halves = [self._halves(query, pair[1]) for query, pair in zip(queries, pairs, strict=True)]
        first = self.reader.column([half for half, _ in halves], limit)
        second = self.reader.column([half for _, half in halves], limit, known)
        tail = self.seam.tail if self.seam else np.zeros(0, dtype=np.int32)
        counts = np.stack([first.lengths, second.lengths, np.full(len(pairs), len(tail))], axis=1)
        long = counts.sum(axis=1) > options.limit
        if options.truncation == "only_second" and long.any():
            asked = [query if cut else "" for query, cut in zip(queries, long, strict=True)]
            self._check_room(asked, range(len(pairs)) if rows is None else rows)
        starts, lengths = self._spans(counts)
        starts[:, 0] += first.starts
        starts[:, 1] += second.starts
        sources = (first.ids, second.ids, tail, self.ending)
        return EncodedPairs(gather(sources, (0, 0, 0, 0), starts, lengths), dropped | long)

    def uncut(self) -> TextEncoder:
        """Return the same encoder without limits."""
        return replace(self, options=self.options.uncut())

    def least_room(self, limit: int) -> int:
        """Return 0: a long query cuts the document first, which stands last."""
        del limit
        return 0

    def as_read(self, documents: Sequence[str]) -> list[str]:
        """Return *documents* as they are tokenised, the template's text around them among it."""
        if self.seam is None:
            return list(documents)
        return [self._halves("", document)[1] for document in documents]

    def _halves(self, query: str, document: str) -> tuple[str, str]:
        if self.seam is None:
            return self.template.text(query, document), ""
        if self.template.strip:
            query, document = query.strip(), document.strip()
        return self.seam.halves(query, document)

    def _spans(self, counts: Counts) -> tuple[Counts, Counts]:
        """Return starts and lengths, (pairs, 4), of the kept part of halves, tail and ending."""
        limit, totals = self.options.limit, counts.sum(axis=1)
        written = len(self.ending)
        # At the limit itself too, as in sentence-transformers: nothing is cut there, but the text's
        # last tokens need not be the ending, where the document's end has joined with it.
        full = totals >= limit
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

    def _check_room(self, queries: list[str], rows: Sequence[int]) -> None:
        """Raise InputError for the first query that leaves its document no token."""
        room = self.options.limit - len(self.ending)
        before = [f"{self.template.prefix}{query}{self.template.middle}" for query in queries]
        lost = np.flatnonzero(self.reader.column(before, room).lengths >= room)
        lost = lost[[bool(queries[row]) for row in lost]]
        if len(lost):
            raise no_room_left(rows[int(lost[0])], room)


def text_encoder(
    reader: Reader, template: TextTemplate, options: Options
) -> tuple[TextEncoder, str]:
    """Return the encoder, and "" or why pairs must be encoded whole."""
    ending = _ending(reader, template)
    if options.limit < len(ending) + 2:
        raise ConfigError(f"max_length must be at least {len(ending) + 2}: got {options.limit}")
    seam = _seam(reader, template)
    reason = "" if seam else "tokens cross from its template to the texts wherever it is split"
    return TextEncoder(reader, template, seam, ending, options), reason


def _ending(reader: Reader, template: TextTemplate) -> Ids:
    """Return the tokens that every text of *template* ends in, by sentence-transformers' rule."""
    texts = [template.text(filler, filler) for filler in ("0", "1 2 3 4")]
    one, two = (np.array(reader.ids(text)[::-1], dtype=np.int32) for text in texts)
    shorter = min(len(one), len(two))
    differing = np.flatnonzero(one[:shorter] != two[:shorter])
    # Where one text is the end of the other nothing says where the template's end begins.
    return one[: differing[0]][::-1] if len(differing) else one[:0]


def _seam(reader: Reader, template: TextTemplate) -> Seam | None:
    """Split as late in the middle, then as early in the suffix, as no probe's tokens cross."""
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
        for start in (len(halves[0]), len(halves[0]) + len(halves[1])):
            if 0 < start < len(words) and words[start - 1] == words[start]:
                return False
    return True
