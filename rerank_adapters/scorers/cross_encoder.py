"""The core: pairs → tokens, and logits → scores, whichever family and runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..protocols import Call, ModelFamily, ModelInfo, Pair, Scored
from ..tokenization import EncodedPairs, PairTokenizer
from ..tokens import PairText


class CrossEncoder:
    """A tokenizer and what the checkpoint means. Stateless between calls, safe for threads."""

    def __init__(
        self,
        tokenizer: PairTokenizer,
        family: ModelFamily,
        *,
        info: ModelInfo,
        wants_texts: bool = False,
        prompt: str | None = None,
    ) -> None:
        """*prompt* stands before queries that come without one; the tokenizer has it already."""
        self.tokenizer = tokenizer
        self.family = family
        self._info = info
        self._wants_texts = wants_texts
        self._prompt = prompt

    @property
    def max_length(self) -> int:
        """The most tokens of a pair."""
        return self.tokenizer.max_length

    def encode(self, pairs: Sequence[Pair], call: Call) -> EncodedPairs:
        """The tokens of *pairs*, in order, and which of them were cut."""
        if not self._wants_texts:
            return self.tokenizer.encode(pairs, call.prompts, call.tokens)
        encoded = self.tokenizer.encode(pairs)  # for lengths: the backend writes its own tokens
        prompts = call.prompts or [None] * len(pairs)
        texts = tuple(
            PairText(query, document, self._prompt if prompt is None else prompt, self.max_length)
            for (query, document), prompt in zip(pairs, prompts, strict=True)
        )
        return replace(encoded, batch=replace(encoded.batch, texts=texts))

    def scored(self, logits: NDArray[np.float32], truncated: NDArray[np.bool_]) -> Scored:
        """What *logits*, float32 of shape (pairs, labels), mean."""
        return Scored(
            scores=self.family.scores(logits),
            logits=self.family.keys(logits),
            truncated=truncated,
        )

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each of *texts* has by itself, uncut, special tokens not counted."""
        return self.tokenizer.count(texts)

    def info(self) -> ModelInfo:
        """What really runs, and why; what reads texts may have changed since load."""
        details = {**self._info.details, "tokenizer": self.tokenizer.reads_with}
        return replace(self._info, details=details)
