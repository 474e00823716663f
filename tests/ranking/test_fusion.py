"""Fusion: Vespa's normalisers by their formulas, hand-worked sums, what is missing, properties."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank_adapters import ConfigError, Fuse, InputError, RankedDocument, Ranking, Reranker
from rerank_adapters.protocols import RerankRequest
from rerank_adapters.ranking.fusion import linear
from tests.fakes import LookupScorer

QUERY, TEXTS = "q", ["a", "b", "c", "d"]
SCORES = {("q", "a"): 0.25, ("q", "b"): 1.0, ("q", "c"): 0.75, ("q", "d"): 0.0}
"""The model ranks b, c, a, d."""


def over(**options) -> Reranker:
    return Reranker.over(LookupScorer(SCORES), **options)


def rank(reranker: Reranker, retrieval, **selection) -> Ranking:
    asked = [RerankRequest(QUERY, TEXTS, retrieval_scores=retrieval)]
    return reranker.rerank_many(asked, **selection)[0]


def test_rrf_is_the_sum_of_reciprocal_ranks():
    """1/(60 + rank) of each side, as fractions: model b c a d, first stage d b c a."""
    found = rank(over(fuse="rrf"), [1.0, 3.0, 2.0, 9.0])
    expected = {
        0: Fraction(1, 63) + Fraction(1, 64),
        1: Fraction(1, 61) + Fraction(1, 62),
        2: Fraction(1, 62) + Fraction(1, 63),
        3: Fraction(1, 64) + Fraction(1, 61),
    }
    assert found.indices == sorted(expected, key=expected.get, reverse=True) == [1, 3, 2, 0]
    for one in found:
        assert one.score == pytest.approx(float(expected[one.index]), abs=1e-16)


def test_k_and_weights_change_the_order():
    """With k=0 the first ranks weigh more; a side of weight 0 has no say."""
    retrieval = [1.0, 3.0, 2.0, 9.0]
    by_k = rank(over(fuse={"method": "rrf", "k": 0}), retrieval)
    assert by_k.indices == [1, 3, 2, 0]  # 3/2, 5/4, 5/6, 7/12
    assert by_k.scores == pytest.approx([3 / 2, 5 / 4, 5 / 6, 7 / 12])
    assert rank(over(fuse=Fuse(weights=(1, 0))), retrieval).indices == [1, 2, 0, 3]
    assert rank(over(fuse=Fuse(weights=(0, 1))), retrieval).indices == [3, 1, 2, 0]


def test_linear_is_a_sum_of_both_spread_over_0_to_1():
    """(x - min) / (max - min): the model as it is, the first stage 1, 3, 2, 9 over 8 eighths."""
    found = rank(over(fuse=Fuse("linear", weights=(0.5, 2))), [1.0, 3.0, 2.0, 9.0])
    expected = {0: 0.125 + 0, 1: 0.5 + 0.5, 2: 0.375 + 0.25, 3: 0 + 2}
    assert {one.index: one.score for one in found} == pytest.approx(expected)
    assert found.indices == [3, 1, 2, 0]
    assert rank(over(fuse="linear"), [7, 7, 7, 7]).scores == pytest.approx([1.5, 1.25, 0.75, 0.5])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 2.0, 5.0], [0.0, 0.25, 1.0]),
        ([4.0, 4.0], [0.5, 0.5]),
        ([1.0, -math.inf, 3.0, math.inf], [0.0, 0.0, 1.0, 1.0]),
        ([-math.inf, -math.inf], [0.0, 0.0]),
        ([-1e308, 1e308], [0.5, 0.5]),
        ([], []),
    ],
)
def test_linear_normalizer(values, expected):
    """Vespa's formula; what it would make infinite or NaN is 0 or 1."""
    assert linear(values) == pytest.approx(expected)


def vespa_linear(values):
    """LinearNormalizer.normalize, in Python: 0.5 + scale * (old - midpoint)."""
    low, high = min(values), max(values)
    scale, middle = (1.0 / (high - low), (low + high) * 0.5) if high > low else (0.0, 0.0)
    return [0.5 + scale * (value - middle) for value in values]


NUMBERS = st.floats(-1e6, 1e6, width=32)


@given(st.lists(NUMBERS, min_size=1, max_size=20))
def test_linear_is_vespa_s_for_finite_numbers(values):
    """Within rounding, for all of them."""
    if max(values) - min(values) > 1e-6 or max(values) == min(values):
        assert linear(values) == pytest.approx(vespa_linear(values), abs=1e-6)


@pytest.mark.parametrize("missing", [None, math.nan, -math.inf])
def test_what_the_first_stage_did_not_find_is_last(missing):
    """In the order given where several are; infinity is first; scores stay finite."""
    only_first = Fuse(weights=(0, 1), k=0)
    found = rank(over(fuse=only_first), [missing, 1.0, missing, math.inf])
    assert found.indices == [3, 1, 0, 2]
    assert found.scores == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])
    found = rank(over(fuse=Fuse("linear", (1, 1))), [missing, 1.0, 3.0, math.inf])
    assert {one.index: one.score for one in found} == pytest.approx(
        {0: 0.25, 1: 1.0, 2: 1.75, 3: 1.0}
    )
    assert all(map(math.isfinite, found.scores))


def test_without_scores_the_order_given_is_the_first_stage_s_ranking():
    """For rrf; a sum has nothing to go by, and says what would have it."""
    found = over(fuse=Fuse(weights=(0, 1))).rerank(QUERY, TEXTS)
    assert found.indices == [0, 1, 2, 3]
    with pytest.raises(InputError, match='retrieval_scores must be given with fuse="linear"'):
        over(fuse="linear").rerank(QUERY, TEXTS)
    found = over(fuse="linear").rerank_many(
        [(QUERY, TEXTS), RerankRequest(QUERY, TEXTS, retrieval_scores=[1, 2, 3, 4])],
        return_exceptions=True,
    )
    assert isinstance(found[0], InputError)
    assert len(found[1]) == 4
    with pytest.raises(InputError, match=r"retrieval_scores\[1\] must be a number or None"):
        rank(over(fuse="rrf"), [1.0, "2", 3.0, 4.0])


def test_threshold_and_top_n_act_on_fused_scores():
    """They read what the ranking shows."""
    retrieval = [1.0, 3.0, 2.0, 9.0]
    reranker = over(fuse=Fuse("linear", weights=(0.5, 2)))
    assert rank(reranker, retrieval, score_threshold=0.625).indices == [3, 1, 2]
    assert rank(reranker, retrieval, score_threshold=0.626, top_n=1).indices == [3]


def test_blank_documents_stay_last_and_have_no_rank():
    """Fusion is over what was scored."""
    asked = RerankRequest(QUERY, ["a", " ", "b"], retrieval_scores=[1.0, 99.0, 2.0])
    (found,) = over(fuse=Fuse(k=0)).rerank_many([asked])
    assert found.indices == [2, 0, 1]
    assert found.scores == [2.0, 1.0, 0.0]
    assert found[2].blank


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("sum", 'fuse.method must be "rrf" or "linear"'),
        ({"methods": "rrf"}, 'fuse must be "rrf", "linear", Fuse'),
        (3, 'fuse must be "rrf", "linear", Fuse'),
        ({"weights": (1, -1)}, "fuse.weights must be two numbers"),
        ({"weights": (0, 0)}, "fuse.weights must be two numbers"),
        ({"weights": 1}, "fuse.weights must be two numbers"),
        ({"k": -1}, "fuse.k must be a number of at least 0"),
        ({"k": math.nan}, "fuse.k must be a number of at least 0"),
    ],
)
def test_refusals(value, message):
    """Each names the field, the rule and the value."""
    with pytest.raises(ConfigError, match=message):
        over(fuse=value)


RANKINGS = st.integers(1, 12).flatmap(
    lambda count: st.tuples(
        st.lists(NUMBERS, min_size=count, max_size=count),
        st.lists(
            st.none() | st.floats(allow_nan=True, allow_infinity=True),
            min_size=count,
            max_size=count,
        ),
        st.sampled_from([Fuse(), Fuse("linear"), Fuse("linear", (0.2, 3)), Fuse(k=1)]),
    )
)


@given(RANKINGS)
def test_fusion_loses_nothing_and_stays_finite(case):
    """Every document once, scores finite and falling, whatever came in; equal calls are equal."""
    scores, retrieval, fuse = case
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    ranking = Ranking([RankedDocument(index, scores[index]) for index in order])
    found = fuse.fused(ranking, retrieval)
    assert sorted(found.indices) == list(range(len(scores)))
    assert all(map(math.isfinite, found.scores))
    assert found.scores == sorted(found.scores, reverse=True)
    assert found == fuse.fused(ranking, retrieval)


@given(RANKINGS)
def test_a_first_stage_without_weight_leaves_the_order(case):
    """Law 11: what has no say changes nothing."""
    scores, retrieval, _ = case
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    ranking = Ranking([RankedDocument(index, scores[index]) for index in order])
    assert Fuse(weights=(1, 0)).fused(ranking, retrieval).indices == ranking.indices
