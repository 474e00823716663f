"""Pairs as one text, the way chat templates write them for causal models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..checkpoints import TextTemplate
from ..errors import ConfigError
from ..tokens import KnownTokens
from .gather import EncodedPairs, Ids, gather
from .layout import Layout, at_joints, split
from .marked import split_at_marks
from .reader import Reader
from .truncation import Counts, Options, no_room_left


@dataclass(frozen=True, slots=True, eq=False)
class TextEncoder:
    """A template's text around a query and a document, without special tokens of the frame's.

    Laid out by `layout` each query and document is tokenised once, or each pair as one text. Cut to
    the limit the text loses its end, so the template's own last tokens (`ending`) are written back
    over the last tokens kept, as sentence-transformers does: the model is read there.

    reader  reads the texts; in the template itself marks are tokens always, in texts where `plain`,
            which reads the template, and `reader` are one
    """

    reader: Reader
    plain: Reader
    template: TextTemplate
    layout: Layout
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
        layout, rows_of = self.layout, np.ones(len(pairs), dtype=np.int64)
        sources = (layout.head, first.ids, layout.between, second.ids, layout.tail, self.ending)
        fixed = [rows_of * len(sources[at]) for at in (0, 2, 4)]
        counts = np.stack([fixed[0], first.lengths, fixed[1], second.lengths, fixed[2]], axis=1)
        long = counts.sum(axis=1) > options.limit
        if options.truncation == "only_second" and long.any():
            asked = [query if cut else "" for query, cut in zip(queries, long, strict=True)]
            self._check_room(asked, range(len(pairs)) if rows is None else rows)
        starts, lengths = self._spans(counts)
        starts[:, 1] += first.starts
        starts[:, 3] += second.starts
        return EncodedPairs(gather(sources, (0,) * 6, starts, lengths), dropped | long)

    def uncut(self) -> TextEncoder:
        """Return the same encoder without limits."""
        return replace(self, options=self.options.uncut())

    def least_room(self, limit: int) -> int:
        """Return 0: a long query cuts the document first, which stands last."""
        del limit
        return 0

    def as_read(self, documents: Sequence[str]) -> list[str]:
        """Return *documents* as they are tokenised, the template's text around them among it."""
        if not self.layout.apart:
            return list(documents)
        return [self._halves("", document)[1] for document in documents]

    def _halves(self, query: str, document: str) -> tuple[str, str]:
        if self.template.strip:
            query, document = query.strip(), document.strip()
        return self.layout.halves(query, document)

    def _spans(self, counts: Counts) -> tuple[Counts, Counts]:
        """Return starts and lengths, (pairs, 6), of the kept part of each source."""
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
        layout, middle = self.layout, self.layout.around_document[0]
        before = [f"{layout.around_query[0]}{query}{layout.around_query[1]}" for query in queries]
        taken = len(layout.head) + len(layout.between)
        if layout.apart:
            taken += len(self.reader.ids(middle))
        else:
            before = [text + middle for text in before]
        lost = np.flatnonzero(self.reader.column(before, room).lengths + taken >= room)
        lost = lost[[bool(queries[row]) for row in lost]]
        if len(lost):
            raise no_room_left(rows[int(lost[0])], room)


def text_encoder(
    reader: Reader, template: TextTemplate, options: Options, *, plain: Reader
) -> tuple[TextEncoder, str]:
    """Return the encoder, and "" or why pairs must be encoded whole.

    reader reads the texts, *plain* the template; where they differ texts write no special tokens.
    """
    joined = at_joints(plain, template) if template.joined else None
    ending = _ending(plain, template) if joined is None else joined.tail
    if options.limit < len(ending) + 2:
        raise ConfigError(f"max_length must be at least {len(ending) + 2}: got {options.limit}")
    layout = joined or (
        split(plain, template) if reader is plain else split_at_marks(reader, plain, template)
    )
    reason = "" if layout.apart else "tokens cross from its template to texts wherever it is split"
    return TextEncoder(reader, plain, template, layout, ending, options), reason


def _ending(reader: Reader, template: TextTemplate) -> Ids:
    """Return the tokens that every text of *template* ends in, by sentence-transformers' rule."""
    texts = [template.text(filler, filler) for filler in ("0", "1 2 3 4")]
    one, two = (np.array(reader.ids(text)[::-1], dtype=np.int32) for text in texts)
    shorter = min(len(one), len(two))
    differing = np.flatnonzero(one[:shorter] != two[:shorter])
    # Where one text is the end of the other nothing says where the template's end begins.
    return one[: differing[0]][::-1] if len(differing) else one[:0]
