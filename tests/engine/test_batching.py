"""plan_batches: every pair once, longest first, inside the token budget and the padding share."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from rerank_adapters.engine.batching import plan_batches

LENGTHS = arrays.arrays(np.int64, st.integers(0, 300), elements=st.integers(1, 600))
BUDGETS = st.integers(1, 5000)
PADDINGS = st.sampled_from([0.0, 0.05, 0.10, 0.5, 1.0])

untimed = settings(deadline=None)  # a busy machine is not a failing property


def _padding(lengths: np.ndarray) -> float:
    return 1 - lengths.sum() / (lengths.max() * len(lengths))


@untimed
@given(lengths=LENGTHS, budget=BUDGETS, padding=PADDINGS)
def test_every_pair_is_in_exactly_one_batch(lengths, budget, padding):
    """Nothing is lost and nothing is scored twice; rows are int64 indices."""
    batches = plan_batches(lengths, max_batch_tokens=budget, max_padding=padding)
    rows = np.concatenate([np.zeros(0, np.int64), *batches])
    assert rows.dtype == np.int64
    assert sorted(rows.tolist()) == list(range(len(lengths)))
    assert all(len(batch) for batch in batches)


@untimed
@given(lengths=LENGTHS, budget=BUDGETS, padding=PADDINGS)
def test_longest_first_and_ties_in_the_order_given(lengths, budget, padding):
    """The batches laid end to end are the stable sort by falling length."""
    batches = plan_batches(lengths, max_batch_tokens=budget, max_padding=padding)
    rows = [row for batch in batches for row in batch.tolist()]
    assert rows == sorted(range(len(lengths)), key=lambda row: -lengths[row])


@untimed
@given(lengths=LENGTHS, budget=BUDGETS, padding=PADDINGS)
def test_a_batch_keeps_the_budget_and_the_padding_share(lengths, budget, padding):
    """Only a pair longer than the budget goes over it, and it goes alone."""
    for rows in plan_batches(lengths, max_batch_tokens=budget, max_padding=padding):
        batch = lengths[rows]
        assert len(rows) == 1 or batch.max() * len(rows) <= budget
        assert _padding(batch) <= padding + 1e-12  # float rounding of the two sums


@untimed
@given(lengths=LENGTHS, budget=BUDGETS, padding=PADDINGS)
def test_a_batch_closes_only_when_the_next_pair_would_break_a_rule(lengths, budget, padding):
    """Batches are as full as the two rules let them be."""
    batches = plan_batches(lengths, max_batch_tokens=budget, max_padding=padding)
    for batch, following in itertools.pairwise(batches):
        more = lengths[[*batch, following[0]]]
        assert more.max() * len(more) > budget or _padding(more) > padding - 1e-12


def test_a_worked_example():
    """100 + 90 pads 5 %, 100 + 90 + 80 exactly the 10 % allowed, with 60 it would be 17.5 %."""
    batches = plan_batches(np.array([60, 100, 80, 90]), max_batch_tokens=1000)
    assert [rows.tolist() for rows in batches] == [[1, 3, 2], [0]]


def test_padding_cheaper_than_a_forward_is_free():
    """Padding 100, 90, 80 to 100 takes 30 tokens, which are free here; with 79 it would be 51."""
    lengths = np.array([100, 90, 80, 79])
    batches = plan_batches(lengths, max_batch_tokens=1000, max_padding=0.0, free_padding=30)
    assert [rows.tolist() for rows in batches] == [[0, 1, 2], [3]]


def test_the_budget_counts_padded_tokens():
    """Two pairs padded to 100 are 200 tokens, though they hold 195."""
    batches = plan_batches(np.array([100, 95]), max_batch_tokens=199)
    assert [rows.tolist() for rows in batches] == [[0], [1]]


def test_a_pair_longer_than_the_budget_goes_alone():
    """It is not lost, not cut, and nobody shares its batch."""
    batches = plan_batches(np.array([5, 500, 499, 5]), max_batch_tokens=20)
    assert [rows.tolist() for rows in batches] == [[1], [2], [0, 3]]


@pytest.mark.parametrize("budget", [1, 16_384])
def test_no_pairs_are_no_batches(budget):
    """An empty plan for an empty array."""
    assert plan_batches(np.zeros(0, np.int64), max_batch_tokens=budget) == []
