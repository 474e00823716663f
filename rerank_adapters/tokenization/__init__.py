"""Pairs of texts to token ids, put together in id space.

A pair is the tokenizer's own frame (`[CLS] query [SEP] document [SEP]`) around two texts that are
tokenised apart: the query once, each document once. The frame is found by probing at load and
checked against the tokenizer's own pair encoding; where they disagree pairs are encoded whole, and
`PairTokenizer.whole_pairs_reason` says why. Ids, type ids and cuts equal those of transformers'
`tokenizer(pairs, truncation="longest_first", max_length=...)`.

tokenizer.json says how texts are read (`overrides` names the few exceptions), whatever runs the
network. Nothing here changes after load, so any number of threads may encode at once.
"""

from __future__ import annotations

from ..checkpoints import TextTemplate
from .gather import EncodedPairs
from .pair_tokenizer import PairTokenizer
from .windows import Cursor, Cutter

__all__ = ["Cursor", "Cutter", "EncodedPairs", "PairTokenizer", "TextTemplate"]
