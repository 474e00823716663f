"""Phases: which candidates each phase scores, what becomes of the others, on every way in."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, TextNode

from rerank_adapters import (
    BackendError,
    Cascade,
    ClosedError,
    ConfigError,
    Fuse,
    InputError,
    Ranking,
    Reranker,
    RerankerConfig,
    RerankError,
)
from rerank_adapters.adapter_fields import configuration, saved
from rerank_adapters.langchain import (
    CrossEncoderCompressor,
    LangChainCrossEncoder,
    RerankingRetriever,
)
from rerank_adapters.llama_index import CrossEncoderPostprocessor
from rerank_adapters.protocols import Ranker, RerankRequest
from tests.fakes import CountingBackend, LookupScorer, reranker_over
from tests.langchain_adapter.samples import KEY, ListRetriever

QUERY = "how tall is the tower?"
TEXTS = ["a", "b", "c", "d", "e"]
CHEAP = {"a": 4.0, "b": 9.0, "c": 8.0, "d": 6.0, "e": 2.0}
DEAR = {"a": 0.9, "b": 0.5, "c": 0.75, "d": 0.25, "e": 0.6}
FIRST = [12.0, 10.0, 7.0, 4.0, 2.0]
"""What a first stage gave TEXTS, best first."""


def table(scores: dict[str, float], **options: Any) -> Reranker:
    pairs = {(QUERY, text): score for text, score in scores.items()}
    return Reranker.over(LookupScorer(pairs), **options)


class Noting:
    """A ranker that notes the documents and timeouts it is asked for, around another."""

    def __init__(self, ranker: Ranker) -> None:
        self.ranker = ranker
        self.asked: list[list[Sequence[str]]] = []
        self.timeouts: list[float | None] = []
        self.closed = False

    def rerank_many(self, requests, **options):
        self.asked.append([one.documents for one in requests])
        self.timeouts.append(options.get("timeout"))
        return self.ranker.rerank_many(requests, **options)

    async def arerank_many(self, requests, **options):
        self.asked.append([one.documents for one in requests])
        self.timeouts.append(options.get("timeout"))
        return await self.ranker.arerank_many(requests, **options)

    def info(self):
        return self.ranker.info()

    def close(self):
        self.closed = True
        self.ranker.close()


def rank(ranker: Any, **selection: Any) -> Ranking:
    asked = [RerankRequest(QUERY, TEXTS, retrieval_scores=np.array(FIRST, np.float32))]
    return ranker.rerank_many(asked, **selection)[0]


def shown(ranking: Ranking) -> list[tuple[int, float, int | None]]:
    return [(one.index, one.score, one.stage) for one in ranking]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_exactly_n_rows_run(count: int, caplog):
    """The same scores as of these documents alone, on all paths."""
    backend = CountingBackend()
    scorer = reranker_over(backend)._caller.scorer
    with Reranker.over(scorer, rerank_count=count) as reranker:
        with caplog.at_level(logging.DEBUG, "rerank_adapters"):
            found = reranker.rerank(QUERY, TEXTS)
        assert backend.rows == count
        assert found == reranker_over(CountingBackend()).rerank(QUERY, TEXTS[:count])
        assert f"{count} of 5 candidates are scored" in caplog.text
        assert reranker.submit(QUERY, TEXTS).result() == found
        assert list(reranker.rerank_iter([(QUERY, TEXTS)])) == [found]
        assert len(reranker.score(QUERY, TEXTS)) == 5  # scores are the model's, of all


def test_keep_below_stands_after_all_with_its_earlier_score():
    """In the order given, stage 0, and below every threshold."""
    reranker = table(DEAR, rerank_count=3, rest="keep_below")
    found = rank(reranker)
    assert shown(found) == [
        *((0, pytest.approx(0.9), None), (2, 0.75, None), (1, 0.5, None)),
        *((3, 4.0, 0), (4, 2.0, 0)),
    ]
    assert rank(reranker, score_threshold=0.6).indices == [0, 2]
    assert found.top(score_threshold=0.6).indices == [0, 2]
    assert rank(reranker, top_n=4).indices == [0, 2, 1, 3]
    assert found.to_dicts()[3] == {"index": 3, "score": 4.0, "truncated": False, "stage": 0}
    bare = reranker.rerank(QUERY, TEXTS)  # no first stage's scores: 0.0, as blank documents have
    assert shown(bare)[3:] == [(3, 0.0, 0), (4, 0.0, 0)]


def test_rescale_is_vespa_s_formula():
    """By hand: before 7..12, after 0.5..0.9, so scale max(1, 2/5)/5 = 1/5 and bias 1/2 - 7/5."""
    scale = Fraction(1, 5)
    bias = Fraction(1, 2) - 7 * scale
    found = rank(table(DEAR, rerank_count=3, rest="rescale"))
    assert [one.score for one in found[3:]] == pytest.approx(
        [float(4 * scale + bias), float(2 * scale + bias)], abs=1e-12
    )
    assert [(one.index, one.stage, one.rescaled) for one in found[2:]] == [
        *((1, None, False), (3, 0, True), (4, 0, True)),
    ]
    by_score = rank(table(DEAR, rerank_count=3, rest="rescale"), score_threshold=-0.2)
    assert by_score.indices == [0, 2, 1, 3]  # 4/5 + 1/2 - 7/5 = -1/10, 2/5 ... = -1/2


def test_rescale_moves_nothing_that_is_below_already():
    """Where the lowest before is not above the lowest after, scores stay; all are sorted."""
    asked = RerankRequest(QUERY, TEXTS, retrieval_scores=[0.5, 0.4, 0.3, 0.2, 0.1])
    (found,) = table(DEAR, rerank_count=3, rest="rescale").rerank_many([asked])
    assert shown(found)[3:] == [(3, 0.2, 0), (4, 0.1, 0)]
    swapped = RerankRequest(QUERY, TEXTS, retrieval_scores=[0.5, 0.4, 0.3, 0.8, None])
    (found,) = table(DEAR, rerank_count=3, rest="rescale").rerank_many([swapped])
    assert shown(found)[1:] == [(3, 0.8, 0), (2, 0.75, None), (1, 0.5, None), (4, 0.0, 0)]
    with pytest.raises(InputError, match='retrieval_scores must be given with rest="rescale"'):
        table(DEAR, rerank_count=3, rest="rescale").rerank(QUERY, TEXTS)


def test_blank_documents_beyond_the_count():
    """They go with the rest where it is dropped, and stand last where it is kept."""
    texts = ["a", " ", "b", "", "c"]
    dropped = table(DEAR, rerank_count=3).rerank(QUERY, texts)
    assert [(one.index, one.blank) for one in dropped] == [(0, False), (2, False), (1, True)]
    kept = table(DEAR, rerank_count=3, rest="keep_below").rerank(QUERY, texts)
    assert kept.indices == [0, 2, 4, 1, 3]


async def test_a_cascade_hands_on_the_best():
    """The second ranks what the first kept, once, in the order given; sync and async alike."""
    cheap, dear = Noting(table(CHEAP)), Noting(table(DEAR))
    cascade = Cascade([(cheap, 3), dear])
    found = rank(cascade)
    assert cheap.asked == [[TEXTS]]
    assert dear.asked == [[["b", "c", "d"]]]
    assert shown(found) == [(2, 0.75, None), (1, 0.5, None), (3, 0.25, None)]
    assert (await cascade.arerank(QUERY, TEXTS)) == found == cascade.rerank(QUERY, TEXTS)
    assert found == (await cascade.arerank_many([(QUERY, TEXTS)]))[0]


def test_a_cascade_keeps_the_rest_below():
    """Each with the score and the number of the stage that ranked it last; 0: none did."""
    cascade = Cascade([(table(CHEAP), 2), (table(DEAR), 1)], rerank_count=4, rest="keep_below")
    assert shown(rank(cascade)) == [
        *((2, 0.75, None), (1, 0.5, 2)),
        *((3, 6.0, 1), (0, 4.0, 1), (4, 2.0, 0)),
    ]
    assert rank(cascade, score_threshold=0.1).indices == [2]


def test_a_cascade_rescales_from_the_last_stage_backwards():
    """By hand: stage 1 kept 8..9 → .5...75, scale 1, bias -7.5; then 12, 10, 7, 4 by these."""
    cascade = Cascade([(table(CHEAP), 2), table(DEAR)], rerank_count=4, rest="rescale")
    found = {one.index: one.score for one in rank(cascade)}
    assert found[3] == pytest.approx(6 - 7.5)
    assert found[0] == pytest.approx(4 - 7.5)
    # before 4..12; after -3.5..0.75: scale 4.25/8, bias -3.5 - 4 * 4.25/8
    assert found[4] == pytest.approx(2 * 4.25 / 8 - 3.5 - 4 * 4.25 / 8)
    assert rank(cascade).scores == sorted(found.values(), reverse=True)


def test_fusion_over_a_cascade():
    """Over what the last stage ranked."""
    cascade = Cascade([(table(CHEAP), 3), table(DEAR)], fuse=Fuse(weights=(0, 1), k=0))
    assert shown(rank(cascade)) == [(1, 1.0, None), (2, 0.5, None), (3, pytest.approx(1 / 3), None)]


def test_one_request_fails_alone():
    """A stage's error stays with its request, and that one goes no further."""

    class Failing(Noting):
        def rerank_many(self, requests, **options):
            found = super().rerank_many(requests, **options)
            unknown = [one.documents == ["unknown"] for one in requests]
            errors = [BackendError("broke")] * len(found)
            return [errors[at] if it else found[at] for at, it in enumerate(unknown)]

    cheap, dear = Failing(table(CHEAP)), Noting(table(DEAR))
    cascade = Cascade([(cheap, 1), dear])
    requests = [(QUERY, ["unknown"]), (QUERY, TEXTS), (" ", TEXTS), (QUERY, [])]
    found = cascade.rerank_many(requests, return_exceptions=True)
    assert isinstance(found[0], BackendError)
    assert found[1].indices == [1]
    assert isinstance(found[2], InputError)
    assert found[3] == Ranking([])
    assert dear.asked == [[["b"]]]
    with pytest.raises(BackendError, match="broke"):
        cascade.rerank_many(requests[:2])
    with pytest.raises(InputError, match="query must not be blank"):
        cascade.rerank(" ", TEXTS)


def test_a_timeout_is_the_whole_cascade_s():
    """A stage has what is left; where nothing is, the request ends."""

    class Slow(Noting):
        def rerank_many(self, requests, **options):
            found = super().rerank_many(requests, **options)
            time.sleep(0.05)
            return found

    cheap, dear = Slow(table(CHEAP)), Noting(table(DEAR))
    Cascade([(cheap, 2), dear]).rerank(QUERY, TEXTS, timeout=60)
    assert 0 < dear.timeouts[0] <= cheap.timeouts[0] - 0.05
    with pytest.raises(TimeoutError, match="between two stages"):
        Cascade([(cheap, 2), dear]).rerank(QUERY, TEXTS, timeout=0.04)
    assert len(dear.asked) == 1


def test_closing_closes_every_ranker():
    """And later calls say so."""
    cheap, dear = Noting(table(CHEAP)), Noting(table(DEAR))
    with Cascade([(cheap, 2), dear]) as cascade:
        assert cascade.info().model == f"{cheap.info().model} > {dear.info().model}"
    assert cheap.closed
    assert dear.closed
    with pytest.raises(ClosedError, match="the cascade is closed"):
        cascade.rerank(QUERY, TEXTS)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], "stages must be a list of"),
        (table(DEAR), "stages must be a list of"),
        ([("model", 3)], r"stages\[0\] must be \(ranker, keep\)"),
        ([(table(DEAR), 0)], r"stages\[0\] must keep at least 1"),
        ([table(DEAR), (table(DEAR), True)], r"stages\[1\] must keep at least 1"),
    ],
)
def test_refusals(stages, message):
    """Each names the stage and the rule."""
    with pytest.raises(ConfigError, match=message):
        Cascade(stages)


def test_refused_words():
    """As a Reranker's."""
    with pytest.raises(ConfigError, match='rest must be one of "drop"'):
        Cascade([table(DEAR)], rest="keep")
    with pytest.raises(ConfigError, match="rerank_count must be an int of at least 1"):
        Cascade([table(DEAR)], rerank_count=0)


SCORE_LISTS = st.integers(1, 8).flatmap(
    lambda count: st.tuples(
        *(st.lists(st.integers(-4, 4).map(float), min_size=count, max_size=count) for _ in range(3))
    )
)


def _over(values: Sequence[float]) -> Reranker:
    return Reranker.over(
        LookupScorer({(QUERY, f"t{index}"): value for index, value in enumerate(values)})
    )


@given(SCORE_LISTS)
def test_a_cascade_that_keeps_all_is_its_last_ranker(case):
    """Law 11, bit for bit, ties and fields included."""
    cheap, dear, _ = case
    texts = [f"t{index}" for index in range(len(cheap))]
    for rest in ("drop", "keep_below"):
        cascade = Cascade([_over(cheap), (_over(dear), None)], rest=rest)
        assert cascade.rerank(QUERY, texts) == _over(dear).rerank(QUERY, texts)


@given(
    SCORE_LISTS, st.integers(1, 8), st.integers(1, 8), st.sampled_from(["keep_below", "rescale"])
)
def test_the_rest_is_never_lost_and_never_above(case, keep, count, rest):
    """Each document once; rescaled rankings fall, and what a later stage ranked keeps its order."""
    cheap, dear, first = case
    first = sorted(first, reverse=True)
    texts = [f"t{index}" for index in range(len(cheap))]
    cascade = Cascade([(_over(cheap), keep), _over(dear)], rerank_count=count, rest=rest)
    (found,) = cascade.rerank_many([RerankRequest(QUERY, texts, retrieval_scores=first)])
    assert sorted(found.indices) == list(range(len(texts)))
    last = [one for one in found if one.stage is None]
    kept = sorted(one.index for one in last)
    alone = _over(dear).rerank(QUERY, [texts[index] for index in kept])
    assert [one.index for one in last] == [kept[index] for index in alone.indices]
    assert len(last) == min(keep, count, len(texts))
    if rest == "rescale":
        assert found.scores == sorted(found.scores, reverse=True)
    else:
        assert [one.stage is None for one in found] == sorted(
            (one.stage is None for one in found), reverse=True
        )


@given(SCORE_LISTS, st.integers(8, 12), st.sampled_from(["drop", "keep_below", "rescale"]))
def test_a_count_that_keeps_all_changes_nothing(case, count, rest):
    """Law 11 for Reranker's own option."""
    _, dear, first = case
    asked = RerankRequest(
        QUERY, [f"t{index}" for index in range(len(dear))], retrieval_scores=first
    )
    scorer = _over(dear)._caller.scorer
    plain = Reranker.over(scorer).rerank_many([asked])
    assert Reranker.over(scorer, rerank_count=count, rest=rest).rerank_many([asked]) == plain


def documents() -> list[Document]:
    found = zip(TEXTS, FIRST, strict=True)
    return [Document(text, id=text, metadata={"bm25": score}) for text, score in found]


def nodes() -> list[NodeWithScore]:
    return [
        NodeWithScore(node=TextNode(text=text, id_=text), score=score)
        for text, score in zip(TEXTS, FIRST, strict=True)
    ]


RULES: list[dict[str, Any]] = [
    {"rerank_count": 2},
    {"rerank_count": 3, "rest": "keep_below"},
    {"rerank_count": 3, "rest": "rescale"},
    {"fuse": "rrf"},
    {"fuse": {"method": "linear", "weights": (0.5, 2)}},
    {"fuse": Fuse("linear"), "rerank_count": 3, "rest": "rescale"},
]


@pytest.mark.parametrize("options", RULES, ids=str)
async def test_adapters_take_the_same_words(options):
    """Around a ready ranker; the same documents and scores as the Reranker's own, on each path."""
    expected = [(TEXTS[one.index], one.score) for one in rank(table(DEAR, **options))]
    ready, key = table(DEAR), "bm25"
    compressor = CrossEncoderCompressor(
        reranker=ready, top_n=None, retrieval_score_key=key, **options
    )
    given = {"query": QUERY, "documents": documents()}
    for found in (
        compressor.compress_documents(documents(), QUERY),
        await compressor.acompress_documents(documents(), QUERY),
        compressor.batch([given, given])[1],
        (await compressor.abatch([given]))[0],
    ):
        assert [(one.id, one.metadata[KEY]) for one in found] == expected
    tuples = [(Document(one.page_content, id=one.id), one.metadata[key]) for one in documents()]
    plain = CrossEncoderCompressor(reranker=ready, top_n=None, **options)
    found = plain.compress_documents(tuples, QUERY)
    assert [(one.id, one.metadata[KEY]) for one in found] == expected
    retriever = RerankingRetriever(
        base_retriever=ListRetriever(found=documents()),
        reranker=ready,
        top_n=None,
        retrieval_score_key=key,
        **options,
    )
    found = retriever.invoke(QUERY)
    assert [(one.id, one.metadata[KEY]) for one in found] == expected
    postprocessor = CrossEncoderPostprocessor(reranker=ready, top_n=None, **options)
    for kept in (
        postprocessor.postprocess_nodes(nodes(), query_str=QUERY),
        await postprocessor.apostprocess_nodes(nodes(), query_str=QUERY),
        postprocessor.postprocess_nodes_batch([(QUERY, nodes())])[0],
    ):
        assert [(one.node.node_id, one.score) for one in kept] == expected


def test_adapters_hold_their_bounds_against_the_last_phase_alone():
    """A threshold passes no earlier score, in the compressor as in the postprocessor."""
    options = {"rerank_count": 3, "rest": "keep_below", "score_threshold": 0.6, "top_n": None}
    ready = table(DEAR)
    found = CrossEncoderCompressor(reranker=ready, **options).compress_documents(documents(), QUERY)
    assert [one.id for one in found] == ["a", "c"]
    kept = CrossEncoderPostprocessor(reranker=ready, **options).postprocess_nodes(
        nodes(), query_str=QUERY
    )
    assert [one.node.node_id for one in kept] == ["a", "c"]


def test_adapters_take_a_cascade():
    """As any other ranker, and leave it open."""
    dear = Noting(table(DEAR))
    cascade = Cascade([(table(CHEAP), 3), dear])
    with CrossEncoderCompressor(reranker=cascade, top_n=2) as compressor:
        found = compressor.compress_documents(documents(), QUERY)
    assert [one.id for one in found] == ["c", "b"]
    kept = CrossEncoderPostprocessor(reranker=cascade).postprocess_nodes(nodes(), query_str=QUERY)
    assert [one.node.node_id for one in kept] == ["c", "b"]
    assert not dear.closed


def test_a_configured_adapter_and_a_reranker_of_these_options_agree():
    """The bundled model: the fields reach it, and only the first two are scored."""
    options = {"rerank_count": 2, "rest": "keep_below"}
    texts = ["It is red.", "It is 70 m tall.", "It is 3 m wide."]
    with Reranker(**options) as reranker, CrossEncoderCompressor(top_n=None, **options) as made:
        expected = [(texts[one.index], one.score) for one in reranker.rerank(QUERY, texts)]
        found = made.compress_documents([Document(text) for text in texts], QUERY)
    assert [(one.page_content, one.metadata[KEY]) for one in found] == expected
    assert expected[2] == (texts[2], 0.0)


def test_a_saved_configuration_has_fusion_as_a_mapping():
    """What a pipeline's YAML holds makes an equal one again."""
    config = RerankerConfig(fuse=Fuse("linear", (0.5, 2)), rerank_count=3, rest="rescale")
    again = json.loads(json.dumps(saved(config)))
    assert again["fuse"] == {"method": "linear", "weights": [0.5, 2.0], "k": 60.0}
    assert configuration(again, "model") == config


def test_retrieval_scores_of_the_wrong_kind():
    """Named by where they stand."""
    compressor = CrossEncoderCompressor(
        reranker=table(DEAR), retrieval_score_key="bm25", fuse="rrf"
    )
    bad = [Document("a", metadata={"bm25": "high"})]
    with pytest.raises(InputError, match=r"documents\[0\].metadata\['bm25'\] must be a number"):
        compressor.compress_documents(bad, QUERY)
    with pytest.raises(InputError, match=r"documents\[0\]\[1\] must be a number"):
        compressor.compress_documents([(Document("a"), "high")], QUERY)
    with pytest.raises(ConfigError, match="retrieval_score_key must be a non-empty str"):
        CrossEncoderCompressor(retrieval_score_key="")
    with pytest.raises(InputError, match="retrieval_score_key, in LangChain"):
        CrossEncoderCompressor(reranker=table(DEAR), fuse="linear").compress_documents(
            [Document("a")], QUERY
        )


def test_raw_scores_have_no_phases():
    """LangChain's cross-encoder gives the model's numbers; what is for rankings is refused."""
    for options in ({"rerank_count": 3}, {"fuse": "rrf"}):
        with pytest.raises(ConfigError, match="is for rankings, these are scores"):
            LangChainCrossEncoder(**options)


def test_errors_are_of_the_family():
    """So that one except catches them."""
    with pytest.raises(RerankError):
        Cascade([])
