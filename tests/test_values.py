"""TokenBatch and Ranking: hand-worked."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

from rerank_adapters import RankedDocument, Ranking
from rerank_adapters.values import TokenBatch

BATCH = TokenBatch(
    input_ids=np.array([5, 6, 7, 8, 9, 10], np.int32),
    type_ids=np.array([0, 1, 0, 0, 1, 1], np.int32),
    lengths=np.array([2, 1, 3], np.int64),
    texts=(("q", "a"), ("q", "b"), ("q", "c")),
)
RANKING = Ranking(
    [RankedDocument(2, 0.75), RankedDocument(0, 0.5, truncated=True), RankedDocument(1, 0.25)]
)


@pytest.mark.parametrize(
    ("side", "ids", "mask", "types"),
    [
        (
            "right",
            [[5, 6, 0], [7, 0, 0], [8, 9, 10]],
            [[1, 1, 0], [1, 0, 0], [1, 1, 1]],
            [[0, 1, 0], [0, 0, 0], [0, 1, 1]],
        ),
        (
            "left",
            [[0, 5, 6], [0, 0, 7], [8, 9, 10]],
            [[0, 1, 1], [0, 0, 1], [1, 1, 1]],
            [[0, 0, 1], [0, 0, 0], [0, 1, 1]],
        ),
    ],
)
def test_padding_fills_the_side_asked_for(side, ids, mask, types) -> None:
    """Rows keep their order; padding is the pad id, unmasked, of type 0."""
    got = BATCH.padded(0, side)
    for array, expected in zip(got, (ids, mask, types), strict=True):
        assert array.dtype == np.int64
        assert array.tolist() == expected


def test_take_and_join_move_whole_pairs() -> None:
    """Ids, types, lengths and texts of a pair travel together."""
    taken = BATCH.take([2, 0])
    assert taken.input_ids.tolist() == [8, 9, 10, 5, 6]
    assert taken.type_ids.tolist() == [0, 1, 1, 0, 1]
    assert taken.lengths.tolist() == [3, 2]
    assert taken.texts == (("q", "c"), ("q", "a"))
    joined = TokenBatch.join([taken, BATCH.take([1])])
    assert joined.input_ids.tolist() == [8, 9, 10, 5, 6, 7]
    assert joined.texts == (("q", "c"), ("q", "a"), ("q", "b"))
    assert len(TokenBatch.join([])) == 0


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
    assert json.dumps([place.score for place in RANKING]) == "[0.75, 0.5, 0.25]"


def test_show_draws_ranks_scores_bars_and_cuts() -> None:
    """The bar spans lowest to highest; a text stands on one line and is shortened to the width."""
    lines = RANKING.show(["first\ntext", "second", "third " * 40], width=60).splitlines()
    assert lines[0].startswith("  1    0.7500  ██████████  [2]  third third")
    assert lines[0].endswith("…")
    assert lines[1] == "  2    0.5000  █████·····  [0] …cut  first text"
    assert lines[2] == "  3    0.2500  ··········  [1]  second"
    assert Ranking([]).show() == ""


def test_the_notebook_table_escapes_nothing_it_was_not_given() -> None:
    """Rank, index and score of each place, and bars of 8, 4 and 0 em."""
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
