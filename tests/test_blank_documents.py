"""Blank documents: one rule, in Reranker, on every path; adapters pass it on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.documents import Document

from rerank_adapters import ConfigError, InputError, RankedDocument, Ranking, Reranker
from rerank_adapters.config import RerankerConfig
from rerank_adapters.langchain import CrossEncoderCompressor, LangChainCrossEncoder
from rerank_adapters.protocols import RerankRequest
from rerank_adapters.sharing import acquire
from tests.fakes import LookupScorer

QUERY = "q"
DOCUMENTS = ["", "low", " \n\t", "high", "\u2003"]
TABLE = {
    (QUERY, "low"): -2.0,
    (QUERY, "high"): 0.5,
    **{(QUERY, text): 0.9 for text in DOCUMENTS[::2]},
}
LAST = [(3, 0.5), (1, -2.0), (0, -2.0), (2, -2.0), (4, -2.0)]
"""Blank ones in the order given, with the lowest score, which is below 0."""


def over(on_empty_text: Any = "keep_last") -> tuple[Reranker, LookupScorer]:
    scorer = LookupScorer(TABLE)
    return Reranker.over(scorer, on_empty_text=on_empty_text), scorer


WAYS: dict[str, Callable[..., Ranking]] = {
    "rerank": lambda it, **options: it.rerank(QUERY, DOCUMENTS, **options),
    "rerank_many": lambda it, **options: it.rerank_many(
        [("x", ["", "a"]), (QUERY, DOCUMENTS)], **options
    )[1],
    "return_exceptions": lambda it, **options: it.rerank_many(
        [("", ["a"]), (QUERY, DOCUMENTS)], return_exceptions=True, **options
    )[1],
    "rerank_iter": lambda it, **options: list(
        it.rerank_iter(iter([("x", [""]), (QUERY, DOCUMENTS)]), **options)
    )[1],
    "submit": lambda it, **options: it.submit(QUERY, DOCUMENTS, **options).result(10),
    "arerank": lambda it, **options: asyncio.run(it.arerank(QUERY, DOCUMENTS, **options)),
    "arerank_many": lambda it, **options: asyncio.run(
        it.arerank_many([(QUERY, DOCUMENTS), ("x", [" "])], **options)
    )[0],
}


@pytest.mark.parametrize("way", WAYS)
def test_blank_documents_stand_last_unscored_and_meet_no_threshold(way: str) -> None:
    """In the order given, with 0.0 or the lowest score, by every way of asking."""
    reranker, scorer = over()
    ranking = WAYS[way](reranker)
    assert [tuple(it) for it in ranking] == LAST
    assert [it.blank for it in ranking] == [False, False, True, True, True]
    assert {document for call in scorer.calls for _, document in call} <= {"low", "high", "a"}
    assert WAYS[way](reranker, top_n=3).indices == [3, 1, 0]
    assert WAYS[way](reranker, score_threshold=-1e9).indices == [3, 1]


@pytest.mark.parametrize("way", WAYS)
def test_the_other_words(way: str) -> None:
    """Left out, ranked as any with the model's own number, or refused with the index."""
    assert WAYS[way](over("drop")[0]).indices == [3, 1]
    scored = WAYS[way](over("score")[0])
    assert [tuple(it) for it in scored] == [
        (0, pytest.approx(0.9)),
        (2, pytest.approx(0.9)),
        (4, pytest.approx(0.9)),
        (3, 0.5),
        (1, -2),
    ]
    assert not any(it.blank for it in scored)
    message = r"documents\[0\] must have text to score: got ''; on_empty_text="
    if way == "return_exceptions":
        with pytest.raises(InputError, match=message):
            raise WAYS[way](over("error")[0])  # type: ignore[misc]  # it is the exception
    else:
        with pytest.raises(InputError, match=message):
            WAYS[way](over("error")[0])


def test_score_gives_the_models_own_number() -> None:
    """Whatever the rule, for every text, and pairs too."""
    for word in ("keep_last", "drop", "error", "score"):
        reranker, _ = over(word)
        expected = [pytest.approx(TABLE[QUERY, text]) for text in DOCUMENTS]
        assert reranker.score(QUERY, DOCUMENTS).tolist() == expected
        assert asyncio.run(reranker.ascore(QUERY, DOCUMENTS)).tolist() == expected
        pairs = [(QUERY, text) for text in DOCUMENTS]
        assert reranker.score_pairs(pairs).tolist() == expected


def test_only_blank_documents_ask_nothing_and_score_zero() -> None:
    """No pair reaches the scorer; 0.0 is the number where there is no lowest."""
    reranker, scorer = over()
    assert [tuple(it) for it in reranker.rerank(QUERY, ["", " "])] == [(0, 0.0), (1, 0.0)]
    assert scorer.calls == []
    above = Reranker.over(LookupScorer({}, default=0.25)).rerank(QUERY, ["", "a"])
    assert [tuple(it) for it in above] == [(1, 0.25), (0, 0.0)]


def test_a_request_may_say_its_own_rule_and_ids_stay_with_their_documents() -> None:
    """Of RerankRequest it counts before the Reranker's; ids are those of what is scored."""
    reranker, _ = over("drop")
    request = RerankRequest(QUERY, DOCUMENTS, on_empty_text="keep_last")
    assert [tuple(it) for it in reranker.rerank_many([request])[0]] == LAST

    class Keyed(LookupScorer):
        def submit_pairs(self, pairs, call):
            self.keys = call.keys
            return super().submit_pairs(pairs, call)

    keyed = Keyed(TABLE)
    Reranker.over(keyed).rerank_many([RerankRequest(QUERY, DOCUMENTS, ids=list("abcde"))])
    assert keyed.keys == ["b", "d"]
    wrong = RerankRequest(QUERY, DOCUMENTS, on_empty_text="last")  # type: ignore[arg-type]  # so
    with pytest.raises(InputError, match="on_empty_text must be one of"):
        reranker.rerank_many([wrong])


def test_progress_counts_what_is_scored() -> None:
    """Blank documents are no work."""
    done: list[int] = []
    with Reranker() as reranker:
        reranker.rerank_many([(QUERY, DOCUMENTS)], on_progress=done.append)
    assert sum(done) == 2


def test_the_option_belongs_to_the_configuration() -> None:
    """A loaded Reranker, a lease and `over` take it alike, and refuse other words."""
    texts = ["bread", "", "ferries"]
    for word, indices in (("keep_last", [1]), ("drop", [])):
        config = RerankerConfig(on_empty_text=word)  # type: ignore[arg-type]  # a str to mypy
        lease = acquire(config)
        with Reranker.from_config(config) as reranker:
            assert reranker.rerank(QUERY, texts).indices[2:] == indices
            assert lease.get().rerank(QUERY, texts).indices[2:] == indices
        lease.close()
    for make in (Reranker, RerankerConfig, lambda **it: Reranker.over(LookupScorer({}), **it)):
        with pytest.raises(ConfigError, match='on_empty_text must be one of "keep_last", "drop"'):
            make(on_empty_text="last")


def test_nothing_does_not_outrank_something() -> None:
    """The bundled model gives an empty text more than a wrong passage; a ranking does not."""
    texts = ["", "The parliament voted on Tuesday about fishing quotas.", "bread and butter"]
    with Reranker() as reranker:
        for question in ("can dogs come?", "what is it?"):
            scores = reranker.score(question, texts)
            assert scores[0] > scores[1], "else this shows nothing"
            ranking = reranker.rerank(question, texts)
            assert (ranking[2].index, ranking[2].score) == (0, 0.0)


def test_top_of_a_ranking_keeps_the_rule() -> None:
    """A threshold asked of the ranking itself is met by no blank document either."""
    ranking = over()[0].rerank(QUERY, DOCUMENTS)
    assert ranking.top(score_threshold=-2.0).indices == [3, 1]
    assert ranking.top(4).indices == [3, 1, 0, 2]


def test_exit_and_blank_are_shown_where_set() -> None:
    """Plain data, for JSON; a document scored by all layers says nothing of it."""
    ranking = Ranking([RankedDocument(1, 0.5, exit=3), RankedDocument(0, 0.0, blank=True)])
    rows = [
        {"index": 1, "score": 0.5, "truncated": False, "exit": 3},
        {"index": 0, "score": 0.0, "truncated": False, "blank": True},
    ]
    assert json.loads(json.dumps(ranking.to_dicts())) == rows
    assert "exit" not in Ranking([RankedDocument(0, 0.5)]).to_dicts()[0]


def test_a_ready_reranker_keeps_its_rule_in_an_adapter_that_says_none() -> None:
    """An adapter's word, or a call's, counts before it."""
    documents = [Document(text, id=str(index)) for index, text in enumerate(DOCUMENTS)]

    def ids(compressor: CrossEncoderCompressor, **options: Any) -> str:
        found = compressor.compress_documents(documents, QUERY, top_n=None, **options)
        return "".join(str(document.id) for document in found)

    own = CrossEncoderCompressor(reranker=over("score")[0])
    assert ids(own) == "02431"
    assert ids(own, on_empty_text="keep_last") == "31024"
    assert ids(CrossEncoderCompressor(reranker=over("score")[0], on_empty_text="drop")) == "31"


def test_langchains_cross_encoder_scores_blank_texts() -> None:
    """`score` gives the model's own number; "error" refuses, and "drop" would lose a row."""
    pairs = [(QUERY, text) for text in DOCUMENTS]
    found = LangChainCrossEncoder(reranker=over("drop")[0]).score(pairs)
    assert found == [pytest.approx(TABLE[pair]) for pair in pairs]
    with pytest.raises(InputError, match=r"documents\[0\] must have text"):
        LangChainCrossEncoder(reranker=over()[0], on_empty_text="error").score(pairs)
    with pytest.raises(ConfigError, match="on_empty_text must leave each text its score"):
        LangChainCrossEncoder(on_empty_text="drop")
