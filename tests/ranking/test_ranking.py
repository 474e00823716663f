"""Ranking: hand-worked."""

from __future__ import annotations

import json
import math
import pickle

import numpy as np
import pytest
from IPython.lib.pretty import pretty

from rerank_adapters import InputError, RankedDocument, Ranking
from rerank_adapters.clean import cells, one_line
from rerank_adapters.ranking.ranking import ranked

RANKING = Ranking(
    [RankedDocument(2, 0.75), RankedDocument(0, 0.5, truncated=True), RankedDocument(1, 0.25)]
)


def test_a_ranking_is_an_immutable_sequence() -> None:
    """It indexes, slices, compares, hashes and pickles; nothing can be put into it."""
    assert len(RANKING) == 3
    assert RANKING[0].index == 2
    assert RANKING[:1] == Ranking([RankedDocument(2, 0.75)])
    assert hash(RANKING) == hash(Ranking(list(RANKING)))
    assert pickle.loads(pickle.dumps(RANKING)) == RANKING
    assert list(RANKING) != RANKING
    with pytest.raises(TypeError):
        RANKING[0] = RANKING[1]  # type: ignore[index]  # the point of the test
    with pytest.raises(AttributeError):
        RANKING[0].score = 1.0  # type: ignore[misc]  # the point of the test


def test_select_puts_any_items_in_the_rankings_order() -> None:
    """Indices come back, so whatever the texts came from can be picked."""
    assert RANKING.select(["a", "b", "c"]) == ["c", "a", "b"]
    assert RANKING[:2].select([{"id": 0}, {"id": 1}, {"id": 2}]) == [{"id": 2}, {"id": 0}]


def test_scores_survive_json() -> None:
    """They are plain Python floats."""
    assert json.dumps([document.score for document in RANKING]) == "[0.75, 0.5, 0.25]"


def test_show_draws_ranks_scores_bars_and_cuts() -> None:
    """The bar spans lowest to highest; a text stands on one line and is shortened to the width."""
    lines = RANKING.show(["first\ntext", "second", "third " * 40], width=60).splitlines()
    assert lines[0].startswith("  1    0.7500  ██████████  [2]       third third")
    assert lines[0].endswith("…")
    assert lines[1] == "  2    0.5000  █████·····  [0] …cut  first text"
    assert lines[2] == "  3    0.2500  ··········  [1]       second"
    assert Ranking([]).show() == ""


def test_show_aligns_indices_and_scores_of_any_width() -> None:
    """Columns are as wide as their widest; a score beyond five digits takes a power of ten."""
    ranking = Ranking([RankedDocument(112, 1e30), RankedDocument(7, -12345.678)])
    assert ranking.show().splitlines() == [
        "  1        1e+30  ██████████  [112]",
        "  2  -12345.6780  ··········    [7]",
    ]


@pytest.mark.parametrize(
    ("scores", "bars"),
    [
        ([math.inf, 1.0, 0.5, 0.0, -math.inf, math.nan], [10, 10, 5, 0, 0, 0]),
        ([1e308, 0.0, -1e308], [10, 5, 0]),
        ([0.3, 0.3], [10, 10]),
        ([math.nan], [0]),
    ],
)
def test_bars_stand_whatever_the_scores(scores: list[float], bars: list[int]) -> None:
    """Infinite, absent, extreme and equal scores draw; the finite ones span the bar."""
    ranking = Ranking([RankedDocument(index, score) for index, score in enumerate(scores)])
    assert [line.count("█") for line in ranking.show().splitlines()] == bars


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\r\n\x0bc", "a b c"),
        ("\x1b[31mred\x07\x00", "�[31mred��"),
        ("\udc80 lone", "� lone"),
        ("abc\u202edef\u2066", "abc�def�"),
        ("日本語" * 10, "日本語日本語日…"),  # 60 cells to 15: seven of two cells and the mark
        ("e\u0301" * 20, "e\u0301" * 14 + "…"),  # a combining accent takes no cell
        ("👩\u200d🚀 flies", "👩\u200d🚀 flies"),  # joined emoji stay joined
        ("fifteen letters", "fifteen letters"),
        ("sixteen letters!", "sixteen letter…"),
    ],
)
def test_texts_cannot_break_the_table(text: str, shown: str) -> None:
    """Control characters, half surrogates and reordering marks are replaced; cells are counted."""
    line = RANKING[:1].show(["", "", text])
    assert one_line(text, 15) == shown
    assert cells(one_line(text, 15)) <= 15
    assert "\n" not in line
    line.encode("utf-8")


def test_show_shows_in_notebooks_and_prompts() -> None:
    """One object: text for print, itself at a prompt, HTML with the escaped text for a notebook."""
    shown = RANKING.show(["<script>", "second", "third"])
    assert str(shown) == repr(shown) == f"{shown}"
    assert "&lt;script&gt;" in shown._repr_html_()
    assert "<script>" not in shown._repr_html_()
    assert shown._repr_html_().index("third") < shown._repr_html_().index("&lt;script")
    again = pickle.loads(pickle.dumps(shown))
    assert (again, again._repr_html_()) == (shown, shown._repr_html_())
    assert str(RANKING) == RANKING.show()
    assert pretty(RANKING) == RANKING.show()
    assert repr(RANKING).startswith("Ranking([RankedDocument(index=2")


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a", "b"], r"one of them was texts\[2\]: got list of length 2"),
        ("abc", "got str of length 3"),
        (["a", "b", None], r"texts\[2\] must be a str: got NoneType"),
    ],
)
def test_show_refuses_other_texts(texts: object, message: str) -> None:
    """Fewer texts, a bare string and things that are not strings are named."""
    with pytest.raises(InputError, match=message):
        RANKING.show(texts)


def test_show_refuses_a_width_without_room() -> None:
    """40 cells hold the columns and some text; less is an error and not a garbled table."""
    assert all(cells(line) <= 40 for line in RANKING.show(["日本" * 40] * 3, width=40).splitlines())
    with pytest.raises(InputError, match="width must be at least 40: got 39"):
        RANKING.show(width=39)


def test_the_notebook_table_has_what_the_ranking_holds() -> None:
    """Rank, index and score of each document, and bars of 8, 4 and 0 em; no text was given."""
    table = RANKING._repr_html_()
    assert table.count("<tr>") == 4
    for piece in (
        "<td>0.7500</td>",
        "width:8.00em",
        "width:4.00em",
        "width:0.00em",
        "<td>cut</td>",
    ):
        assert piece in table
    assert "<th>text</th>" not in table
    assert "<th>mark</th>" not in RANKING[:1]._repr_html_()


@pytest.mark.parametrize(
    ("n", "threshold", "indices"),
    [
        (None, None, [2, 0, 1]),
        (2, None, [2, 0]),
        (None, 0.5, [2, 0]),  # the bound is inclusive
        (1, 0.5, [2]),  # first the bound, then the cut
        (5, 0.76, []),
    ],
)
def test_top_applies_the_bound_and_then_the_cut(n, threshold, indices) -> None:
    """The one selection of the library, on a ranking that is there already."""
    assert [it.index for it in RANKING.top(n, score_threshold=threshold)] == indices


def test_the_bound_is_compared_with_the_floats_handed_out() -> None:
    """float32 rounds 0.7 down, to a Python float below 0.7, which 0.7 therefore drops."""
    score = np.array([0.7], np.float32)
    assert score.item() < 0.7
    assert not ranked(score, score, np.array([False]), score_threshold=0.7)
    assert len(ranked(score, score, np.array([False]), score_threshold=score.item())) == 1


def test_ranked_sorts_by_keys_and_shows_scores() -> None:
    """Float32's sigmoid is 1.0 from 17.4 on: logits still tell those apart, and ties keep order."""
    logits = np.array([20.0, 25.0, -1.0, 25.0], np.float32)
    scores = (1 / (1 + np.exp(-logits))).astype(np.float32)
    assert scores[0] == scores[1] == 1.0
    got = ranked(scores, logits, np.array([False, True, False, False]), score_threshold=0.9)
    assert [it.index for it in got] == [1, 3, 0]
    assert [it.truncated for it in got] == [True, False, False]
    assert [it.score for it in got] == [1.0, 1.0, 1.0]


def test_a_table_marks_whose_a_score_is() -> None:
    """Not the model's of all its layers and the whole text: the table says so, in both forms."""
    ranking = Ranking(
        [
            RankedDocument(0, 0.9),
            RankedDocument(1, 0.5, truncated=True, exit=3),
            RankedDocument(2, 0.4, stage=0),
            RankedDocument(3, 0.0, blank=True),
        ]
    )
    assert [it.mark for it in ranking] == ["", "cut, exit 3", "stage 0", "blank"]
    lines = ranking.show(["a", "b", "c", " "], width=80).splitlines()
    assert [line.split("]")[1].split() for line in lines] == [
        ["a"],
        ["…cut,", "exit", "3", "b"],
        ["…stage", "0", "c"],
        ["…blank"],
    ]
    for word in ("<th>mark</th>", "<td>cut, exit 3</td>", "<td>stage 0</td>", "<td>blank</td>"):
        assert word in ranking._repr_html_()
