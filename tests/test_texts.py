"""Texts as they come: halves of characters, on every way in."""

from __future__ import annotations

from concurrent.futures import Future

import numpy as np
import pytest

from rerank_adapters import Reranker
from rerank_adapters.futures import done
from rerank_adapters.protocols import Call, ModelInfo, Pair, Scored
from rerank_adapters.texts import spans_in, whole, whole_pairs

CASES = {
    "plain": "plain",
    "中文 🙂": "中文 🙂",
    "a \ud83d\ude00 b": "a \U0001f600 b",
    "\ud800": "\ufffd",
    "\udc00\ud83d": "\ufffd\ufffd",
    "\ud800\ud83d\ude00\ude00": "\ufffd\U0001f600\ufffd",
    "end \ud83d": "end \ufffd",
}


@pytest.mark.parametrize("text", CASES, ids=ascii)
def test_pairs_of_surrogates_are_joined_and_lone_ones_replaced(text: str) -> None:
    """The text is then one that any encoding writes; a whole one comes back as it is."""
    assert whole(text) == CASES[text]
    whole(text).encode()
    assert whole(CASES[text]) is CASES[text]


def test_whole_pairs_cost_no_copy() -> None:
    """The list itself comes back where nothing had to be done."""
    pairs = [("query", "中文"), ("query", "plain")]
    assert whole_pairs(pairs) is pairs
    assert whole_pairs([("q\ud83d\ude00", "d")]) == [("q😀", "d")]


def test_spans_count_in_the_text_given() -> None:
    """Each joined character took two: bounds behind it move by one."""
    text = "ab\ud83d\ude00cd\ud83d\ude00e"
    joined = whole(text)
    for start in range(len(joined)):
        for end in range(start, len(joined) + 1):
            first, last = spans_in(text, np.array([start, end]))
            assert whole(text[first:last]) == joined[start:end]


class Recording:
    """A scorer that keeps what it is asked, and points at the last character of each document."""

    def __init__(self) -> None:
        self.pairs: list[Pair] = []
        self.prompts: list[str | None] = []

    def submit_pairs(self, pairs: list[Pair], call: Call) -> Future[Scored]:
        self.pairs += pairs
        self.prompts += call.prompts or []
        ends = np.array([[len(document) - 1, len(document)] for _, document in pairs])
        zeros = np.zeros(len(pairs), np.float32)
        return done(Scored(zeros, zeros, np.zeros(len(pairs), np.bool_), spans=ends))

    def info(self) -> ModelInfo:
        return ModelInfo(model="recording")

    def close(self) -> None:
        pass


async def test_scorers_see_whole_texts_alone() -> None:
    """Caches, windows and remote models included: `score`, `rerank`, `arerank` hand on no half."""
    scorer = Recording()
    reranker = Reranker.over(scorer)
    odd = ["\ud83d\ude00 x", "y \ud800"]
    reranker.score("q \ud83d\ude00", odd)
    ranking = reranker.rerank("q \ud83d\ude00", odd, prompt="p \udfff")
    await reranker.arerank("q \ud83d\ude00", odd)
    assert {query for query, _ in scorer.pairs} == {"q 😀"}
    assert {document for _, document in scorer.pairs} == {"😀 x", "y \ufffd"}
    assert scorer.prompts == ["p \ufffd"] * 2
    for ranked in ranking:
        assert odd[ranked.index][slice(*ranked.span)] == odd[ranked.index][-1]
