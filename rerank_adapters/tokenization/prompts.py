"""Prompts in pairs: the model's own, and for a pair that brings one another in its stead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Protocol

import numpy as np

from ..errors import InputError
from ..tokens import KnownTokens, TokenBatch
from .gather import EncodedPairs, Encoder
from .template import TextEncoder, text_encoder

Pairs = Sequence[tuple[str, str]]
Prompts = Sequence[str | None]

REMEMBERED = 16
"""Prompts written into a template that are kept: to find where each may be split takes long."""


class Writer(Protocol):
    """One way to write pairs with prompts."""

    def encode(
        self, pairs: Pairs, prompts: Prompts | None, known: KnownTokens | None = None
    ) -> EncodedPairs:
        """Return the tokens of each pair, order kept; a prompt of None is the model's own."""
        ...

    def as_read(self, documents: Sequence[str]) -> list[str]:
        """Return *documents* as they are tokenised."""
        ...

    def least_room(self, limit: int) -> int:
        """Return how many tokens any query leaves to its document in pairs of *limit* tokens."""
        ...

    def uncut(self) -> Writer:
        """Return the same writer, over the same tokenizer, that cuts nothing."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class PlainWriter:
    """Puts a prompt before the query, as it is; `prompt` is the model's own."""

    encoder: Encoder
    prompt: str

    def encode(
        self, pairs: Pairs, prompts: Prompts | None, known: KnownTokens | None = None
    ) -> EncodedPairs:
        """Return the tokens of each pair, order kept."""
        written = [None] * len(pairs) if prompts is None else prompts
        return self.encoder.encode(
            [
                ((self.prompt if prompt is None else prompt) + query, document)
                for prompt, (query, document) in zip(written, pairs, strict=True)
            ],
            known,
        )

    def as_read(self, documents: Sequence[str]) -> list[str]:
        """Return *documents*: nothing of the frame is read with them."""
        return list(documents)

    def least_room(self, limit: int) -> int:
        """Return how many tokens any query leaves to its document in pairs of *limit* tokens."""
        return self.encoder.least_room(limit)

    def uncut(self) -> PlainWriter:
        """Return the same writer without limits."""
        return replace(self, encoder=self.encoder.uncut())


class TemplateWriter:
    """Writes pairs into a template that holds the model's own prompt, or the pair's instead."""

    __slots__ = ("_prompted", "encoder")

    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder = encoder
        make: Callable[[str], TextEncoder] = partial(_with_prompt, encoder)
        self._prompted = lru_cache(maxsize=REMEMBERED)(make)

    def encode(
        self, pairs: Pairs, prompts: Prompts | None, known: KnownTokens | None = None
    ) -> EncodedPairs:
        """Return the tokens of each pair, order kept.

        Raises InputError for a prompt that the template cannot take.
        """
        rows_of: dict[str | None, list[int]] = {}
        written = [None] * len(pairs) if prompts is None else prompts
        for row, (prompt, _) in enumerate(zip(written, pairs, strict=True)):
            rows_of.setdefault(prompt, []).append(row)
        if rows_of.keys() <= {None}:
            return self.encoder.encode(pairs, known)
        encoders = [self._encoder(prompt) for prompt in rows_of]
        groups = list(rows_of.values())
        parts = [
            encoder.encode([pairs[row] for row in rows], known, rows)
            for encoder, rows in zip(encoders, groups, strict=True)
        ]
        order = np.argsort(np.concatenate(groups))
        return EncodedPairs(
            TokenBatch.join([part.batch for part in parts]).take(order),
            truncated=np.concatenate([part.truncated for part in parts])[order],
        )

    def uncut(self) -> TemplateWriter:
        """Return the same writer without limits."""
        return TemplateWriter(self.encoder.uncut())

    def as_read(self, documents: Sequence[str]) -> list[str]:
        """Return *documents* with the template's text that is tokenised with them."""
        return self.encoder.as_read(documents)

    def least_room(self, limit: int) -> int:
        """Return how many tokens any query leaves to its document in pairs of *limit* tokens."""
        return self.encoder.least_room(limit)

    def _encoder(self, prompt: str | None) -> TextEncoder:
        return self.encoder if prompt is None else self._prompted(prompt)


def _with_prompt(encoder: TextEncoder, prompt: str) -> TextEncoder:
    template = encoder.template.with_prompt(prompt)
    if template is None:
        raise InputError(
            "prompt must be None, since this model's chat template cannot take another: got "
            f"{prompt!r}; load the model with that prompt instead"
        )
    return text_encoder(encoder.reader, template, encoder.options, plain=encoder.plain)[0]
