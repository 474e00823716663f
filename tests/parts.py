"""A loaded checkpoint in its parts: what a test needs between the tokenizer and the backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rerank_adapters import Reranker, RerankerConfig
from rerank_adapters.engine.admission import Limits
from rerank_adapters.loading import Loaded, Meaning, assemble, compose, find, read, start
from rerank_adapters.protocols import Backend
from rerank_adapters.tokens import PairText, Scores, TokenBatch


@dataclass(frozen=True)
class Parts:
    """A checkpoint's tokenizer, family and loaded backends, and a Reranker over them."""

    meaning: Meaning
    loaded: Loaded
    reranker: Reranker

    def encode(self, pairs: Sequence[tuple[str, str]]) -> TokenBatch:
        """The tokens of *pairs*, with their texts where the backend wants those."""
        tokenizer = self.meaning.tokenizer
        batch = tokenizer.encode(pairs).batch
        if not self.loaded.wants_texts:
            return batch
        texts = tuple(PairText(*pair, None, tokenizer.max_length) for pair in pairs)
        return replace(batch, texts=texts)

    def forward(self, batch: TokenBatch) -> Scores:
        """One forward of the first backend, as scores."""
        return self.meaning.family.scores(self.loaded.backends[0].logits(batch))

    def alone(self, batch: TokenBatch) -> Scores:
        """Each pair in a forward of its own."""
        return np.concatenate([self.forward(batch.take([row])) for row in range(len(batch))])


def parts_of(config: RerankerConfig) -> Parts:
    """Load as `Reranker.from_config` does, and keep the parts at hand."""
    found = find(config)
    meaning = read(found)
    loaded = start(found, meaning)
    return Parts(meaning, loaded, Reranker.over(compose(found, meaning, loaded)))


def reranker_around(
    model: Path | str,
    around: Callable[[Backend], Backend],
    *,
    max_queue_pairs: int | None = None,
    max_queue_tokens: int | None = None,
    when_full: str = "block",
    **options: object,
) -> tuple[Reranker, Backend]:
    """A Reranker over the checkpoint whose backend *around* wraps, and what it made."""
    config = RerankerConfig(model=str(model), **options)
    found = find(config)
    meaning = read(found)
    backend = around(start(found, meaning).backends[0])
    scorer = assemble(
        meaning.tokenizer,
        meaning.family,
        [backend],
        num_workers=config.num_workers,
        max_batch_tokens=config.max_batch_tokens,
        limits=limits_of(max_queue_pairs, max_queue_tokens, when_full),
    )
    return Reranker.over(scorer), backend


def limits_of(
    max_queue_pairs: int | None = None,
    max_queue_tokens: int | None = None,
    when_full: str = "block",
) -> Limits:
    """A queue's limits by the names of the options."""
    return Limits(pairs=max_queue_pairs, tokens=max_queue_tokens, block=when_full == "block")
