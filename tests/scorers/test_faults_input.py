"""Faults 6 to 9, hostile input: it is scored, or named, and disturbs nobody. See fault_table.py."""

from __future__ import annotations

from concurrent.futures import wait

import numpy as np
import pytest

from rerank_adapters.errors import (
    InputError,
)
from tests.engine.traffic import PATIENCE
from tests.scorers.tapped import (
    QUERY,
    TOLERANCE,
    behind_a_held_forward,
    in_order,
    on,
    tapped,
    texts,
)

MILLION = {
    "words": "the whale breathes air ",
    "Chinese": "鲸鱼用肺呼吸",
    "emoji": "🐋",
    "no space": "abcdefgh",
}


@on(6)
@pytest.mark.parametrize("kind", MILLION)
def test_06_million_characters_score_as_their_truncated_prefix(backend, kind):
    """A document of 10⁶ characters beside 50 short ones: its score is its prefix's, theirs too."""
    if backend != "stub" and kind in ("emoji", "no space"):
        pytest.skip("they cost seconds of tokenising, which is the same for every backend")
    reranker, tap = tapped(backend)
    piece = MILLION[kind]
    prefix = piece * (20_000 // len(piece))
    document = piece * (1_000_000 // len(piece))
    short = reranker.score(QUERY, texts(50))
    expected = reranker.score(QUERY, [prefix])
    long_scores, short_scores = behind_a_held_forward(reranker, tap, [[document], texts(50)])
    tolerance = TOLERANCE[backend]
    np.testing.assert_allclose(
        in_order(long_scores.result(PATIENCE)), expected, atol=tolerance, rtol=0
    )
    np.testing.assert_allclose(
        in_order(short_scores.result(PATIENCE)), short, atol=tolerance, rtol=0
    )
    if kind in ("words", "Chinese"):  # WordPiece takes an endless word for one unknown token
        assert reranker.rerank(QUERY, [document])[0].truncated
    reranker.close()


@on(7)
def test_07_empty_texts_have_scores_and_blank_queries_an_error(backend):
    """Empty and blank documents score as on the other runtime; no documents are no scores."""
    reranker, _ = tapped(backend)
    other, _ = tapped("torch" if backend == "onnx" else "onnx")
    documents = ["", " ", "\n\t", "whales"]
    scores = reranker.score(QUERY, documents)
    np.testing.assert_allclose(scores, other.score(QUERY, documents), atol=1e-4, rtol=0)  # law 1
    assert scores[0] == pytest.approx(scores[1], abs=TOLERANCE[backend])
    assert reranker.score(QUERY, []).shape == (0,)
    assert len(reranker.rerank(QUERY, [])) == 0
    for blank in ("", "  ", "\n"):
        with pytest.raises(InputError, match="query must not be blank"):
            reranker.score(blank, documents)
    reranker.close()
    other.close()


class Text(str):
    """A str of another class, as web frameworks and pandas make them."""

    __slots__ = ()


@on(8)
@pytest.mark.parametrize("value", [None, 3, b"bytes", {"page_content": "text"}, ["text"]])
def test_08_wrong_types_are_named_and_disturb_nobody(backend, value):
    """The error says which text; a request already queued gets its scores."""
    reranker, tap = tapped(backend)
    with tap.held():
        first = reranker.submit(QUERY, ["held"])
        assert tap.entered.wait(PATIENCE)
        good = reranker.submit(QUERY, [Text("whales"), "sea"])
        with pytest.raises(InputError, match=r"documents\[1\] must be a str: got"):
            reranker.submit(QUERY, ["whales", value])
        with pytest.raises(InputError, match="query must be a str: got"):
            reranker.submit(value, ["whales"])
    wait([first, good], PATIENCE)
    expected = reranker.score(QUERY, ["whales", "sea"])
    np.testing.assert_allclose(in_order(good.result()), expected, atol=TOLERANCE[backend], rtol=0)
    reranker.close()


UNICODE = {
    "lone surrogate": ("a whale \ud800 surfaces", "a whale \ufffd surfaces"),
    "both halves apart": ("\udc00 whale \ud83d", "\ufffd whale \ufffd"),
    "both halves": ("a whale \ud83d\udc0b surfaces", "a whale \U0001f40b surfaces"),
    "NUL": ("a\x00whale", None),
    "right to left": ("\u202ea whale\u202c \u200f", None),
    "combining marks": ("e" + "\u0301" * 200_000, None),
    "unassigned": ("\U000e0fff\uffff whale", None),
}


@on(9)
@pytest.mark.parametrize("case", UNICODE)
def test_09_unicode_of_any_kind_is_scored(backend, case):
    """Hostile text scores finitely, alone as beside others; halves of characters as they say."""
    reranker, _ = tapped(backend)
    text, same_as = UNICODE[case]
    alone = reranker.score(QUERY, [text])
    assert np.isfinite(alone).all()
    beside = reranker.score(QUERY, [*texts(3), text])
    np.testing.assert_allclose(beside[3:], alone, atol=TOLERANCE[backend], rtol=0)
    assert np.isfinite(reranker.score(text, ["whales"])).all()
    if same_as is not None:
        assert reranker.score(QUERY, [same_as]) == alone
    reranker.close()
