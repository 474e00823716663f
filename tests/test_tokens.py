"""TokenBatch: hand-worked."""

from __future__ import annotations

import numpy as np
import pytest

from rerank_adapters.tokens import TokenBatch

BATCH = TokenBatch(
    input_ids=np.array([5, 6, 7, 8, 9, 10], np.int32),
    type_ids=np.array([0, 1, 0, 0, 1, 1], np.int32),
    lengths=np.array([2, 1, 3], np.int64),
    texts=(("q", "a"), ("q", "b"), ("q", "c")),
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
