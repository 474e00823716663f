"""The texts that passes and graphs are tried with reach what they are meant to reach."""

from __future__ import annotations

from rerank_adapters.parity.probes import SPELLINGS, UNEVEN, batches
from tests.tokenization.folders import tokenizer_of


def test_uneven_pairs_pass_a_sliding_window() -> None:
    """Four lengths, one beyond the window of 128 tokens that ModernBERT's layers look through."""
    lengths = tokenizer_of("bert").encode(UNEVEN).batch.lengths.tolist()
    assert len(set(lengths)) == len(UNEVEN)
    assert max(lengths) > 128
    assert not set(UNEVEN) & set(SPELLINGS)


def test_batches_hold_one_pair_and_many_short_and_long() -> None:
    """One pair and two dozen; an empty passage; one that no limit of 512 tokens lets pass."""
    assert [len(batch) for batch in batches()] == [1, 1, 1, 3, 24, 1, 3]
    passages = [passage for batch in batches() for _, passage in batch]
    assert "" in passages
    assert max(tokenizer_of("bert").count(passages)) > 512
