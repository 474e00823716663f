"""What stands around a frame's text, the tokenizer's special tokens, and which text is first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..checkpoints import JOINT, TextTemplate
from ..errors import ConfigError
from ..tokens import KnownTokens, TokenBatch
from .gather import EncodedPairs, Ids
from .prompts import Pairs, Prompts, Writer
from .reader import Reader
from .truncation import Options


@dataclass(frozen=True, slots=True, eq=False)
class Around:
    """Special tokens before and after a text, and whether the document stands before the query."""

    head: Ids
    tail: Ids
    document_first: bool

    @classmethod
    def of(cls, reader: Reader, template: TextTemplate) -> Around:
        """Return what stands around *template*: nothing but around a plain frame.

        The tokens are those that the tokenizer puts around any one text. Those that the frame's own
        text begins with are not written twice.
        """
        empty = np.zeros(0, dtype=np.int32)
        if not template.frame:
            return cls(empty, empty, template.document_first)
        inner = reader.ids("a")
        whole: list[int] = reader.tokenizer.encode("a").ids
        first = next(
            (at for at in range(len(whole)) if whole[at : at + len(inner)] == inner), len(whole)
        )
        head, tail = whole[:first], whole[first + len(inner) :]
        if reader.ids(template.prefix.replace(JOINT, ""))[: len(head)] == head:
            head = []
        return cls(
            np.array(head, dtype=np.int32),
            np.array(tail, dtype=np.int32),
            template.document_first,
        )

    def within(self, options: Options) -> Options:
        """Return *options* for the text alone; ConfigError for what the order of texts forbids."""
        if self.document_first and (
            options.truncation != "longest_first" or options.query_max_tokens is not None
        ):
            raise ConfigError(
                "truncation must be 'longest_first' and query_max_tokens None for a template that "
                f"writes the document first: got truncation={options.truncation!r}, "
                f"query_max_tokens={options.query_max_tokens!r}"
            )
        return replace(options, limit=max(1, options.limit - len(self.head) - len(self.tail)))


@dataclass(frozen=True, slots=True, eq=False)
class AroundWriter:
    """Writes pairs by `inner`, with what stands around them."""

    inner: Writer
    around: Around

    def encode(
        self, pairs: Pairs, prompts: Prompts | None, known: KnownTokens | None = None
    ) -> EncodedPairs:
        """Return the tokens of each pair, order kept."""
        if self.around.document_first:
            pairs = [(document, query) for query, document in pairs]
        encoded = self.inner.encode(pairs, prompts, None if self.around.document_first else known)
        batch = _inserted(encoded.batch, encoded.batch.offsets[:-1].tolist(), self.around.head)
        batch = _inserted(batch, batch.offsets[1:].tolist(), self.around.tail)
        return replace(encoded, batch=batch)

    def as_read(self, documents: Sequence[str]) -> list[str]:
        """Return *documents* as they are tokenised where they stand second, else as they are."""
        return list(documents) if self.around.document_first else self.inner.as_read(documents)

    def least_room(self, limit: int) -> int:
        """Return how many tokens any query leaves to its document in pairs of *limit* tokens."""
        if self.around.document_first:
            return 0
        return self.inner.least_room(limit - len(self.around.head) - len(self.around.tail))

    def uncut(self) -> AroundWriter:
        """Return the same writer without limits."""
        return replace(self, inner=self.inner.uncut())


def _inserted(batch: TokenBatch, offsets: Sequence[int], ids: Ids) -> TokenBatch:
    """Return *batch* with *ids* at each of *offsets*, one a pair."""
    if not len(ids) or not len(batch):
        return batch
    where = np.repeat(np.asarray(offsets), len(ids))
    return replace(
        batch,
        input_ids=np.insert(batch.input_ids, where, np.tile(ids, len(batch))),
        type_ids=np.insert(batch.type_ids, where, 0),
        lengths=batch.lengths + len(ids),
    )
