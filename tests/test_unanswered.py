"""A bound that leaves nothing is said in words, "nothing here answers that"; phases in traces."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.documents import Document
from langchain_core.runnables import ConfigurableField
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from rerank_adapters import Cascade, ConfigError, RankedDocument, Ranking, Reranker
from rerank_adapters.langchain import CrossEncoderCompressor, RerankingRetriever
from rerank_adapters.llama_index import CrossEncoderPostprocessor
from rerank_adapters.protocols import RerankRequest
from rerank_adapters.ranking import Below
from tests.langchain_adapter.samples import ListRetriever
from tests.langchain_adapter.test_fallback import Recorder
from tests.llama_index_adapter.recording import recording
from tests.test_cascade import CHEAP, DEAR, FIRST, QUERY, TEXTS, table
from tests.test_cli import run

SAYS = (
    "nothing here answers that: the best of 5 documents scores 0.9000, below score_threshold=0.95"
)


async def test_every_path_says_that_nothing_met_the_bound() -> None:
    """How many there were, the best of them, the bound; in words where it is shown."""
    with table(DEAR) as reranker:
        found = [
            reranker.rerank(QUERY, TEXTS, score_threshold=0.95),
            *reranker.rerank_many([(QUERY, TEXTS)], score_threshold=0.95),
            *reranker.rerank_iter([(QUERY, TEXTS)], score_threshold=0.95),
            reranker.submit(QUERY, TEXTS, score_threshold=0.95).result(),
            await reranker.arerank(QUERY, TEXTS, score_threshold=0.95),
            *await reranker.arerank_many([(QUERY, TEXTS)], score_threshold=0.95),
            reranker.rerank(QUERY, TEXTS).top(score_threshold=0.95),
            Cascade([reranker]).rerank(QUERY, TEXTS, score_threshold=0.95),
        ]
        best = float(np.float32(0.9))
        for ranking in found:
            assert ranking.below == Below(5, best, 0.95)
            assert ranking.unanswered
            assert str(ranking) == SAYS == ranking.show(TEXTS)
            assert ranking._repr_html_() == f"<p>{SAYS}</p>"
            assert ranking == Ranking([])
            for other in (copy.copy(ranking), pickle.loads(pickle.dumps(ranking)), ranking[:3]):
                assert other.below == ranking.below
        some = reranker.rerank(QUERY, TEXTS, score_threshold=0.6)
        assert (some.indices, some.below) == ([0, 2, 4], Below(2, 0.5, 0.6))
        assert not some.unanswered
        assert some.show(TEXTS).count("\n") == 2
        for free in (reranker.rerank(QUERY, TEXTS), reranker.rerank(QUERY, [], score_threshold=1)):
            assert (free.below, free.unanswered) == (None, False)
        assert Below(1, 0.25, 0.5).to_dict() == {"count": 1, "best": 0.25, "score_threshold": 0.5}
        assert "the one document scores 0.2500" in str(Below(1, 0.25, 0.5))


def test_what_has_no_score_of_the_model_is_not_counted() -> None:
    """Blank documents and those that a phase left behind: the bound says nothing of them."""
    options = {"rerank_count": 2, "rest": "keep_below"}
    with table(DEAR, **options) as reranker:
        ranking = reranker.rerank(QUERY, [*TEXTS, " "], score_threshold=0.95)
    assert ranking.below == Below(2, float(np.float32(0.9)), 0.95)


@given(st.lists(st.floats(0, 1), max_size=9), st.floats(0, 1))
def test_what_is_below_and_what_is_not_are_all(scores: list[float], bound: float) -> None:
    """In any order, with ties; cutting first by the bound and then again changes nothing."""
    whole = Ranking([RankedDocument(at, it) for at, it in enumerate(sorted(scores)[::-1])])
    found = whole.top(score_threshold=bound)
    left = [it for it in scores if it < bound]
    assert len(found) == len(scores) - len(left)
    assert found.below == (Below(len(left), max(left), bound) if left else None)
    assert found.top(2).below == found.below
    assert found.unanswered == (bool(scores) and not len(found))


@pytest.mark.parametrize("rest", ["drop", "keep_below", "rescale"])
def test_a_ranking_says_how_many_were_dropped(rest: str) -> None:
    """By rerank_count, in one ranker and in a cascade; kept, none was."""
    asked = [RerankRequest(QUERY, TEXTS, retrieval_scores=FIRST)]
    options: dict[str, Any] = {"rerank_count": 3, "rest": rest}
    wanted = {"drop": (2, 4)}.get(rest, (0, 0))
    for ranker, count in (
        (table(DEAR, **options), wanted[0]),
        (Cascade([(table(CHEAP), 1), table(DEAR)], **options), wanted[1]),
    ):
        (ranking,) = ranker.rerank_many(asked, top_n=1)
        assert ranking.dropped == count
        assert ranking[:1].dropped == count
        ranker.close()
    with table(DEAR) as reranker:
        assert reranker.rerank(QUERY, TEXTS).dropped == 0


# --------------------------------------------------------------------------------------- adapters


def documents() -> list[tuple[Document, float]]:
    return [(Document(text), score) for text, score in zip(TEXTS, FIRST, strict=True)]


def nodes() -> list[NodeWithScore]:
    given = zip(TEXTS, FIRST, strict=True)
    return [NodeWithScore(node=TextNode(text=text), score=score) for text, score in given]


@pytest.mark.parametrize(
    ("fallback", "bound", "wanted"),
    [
        (0, 0.95, []),
        (1, 0.95, ["a"]),
        (2, 0.95, ["a", "c"]),
        (9, 0.95, ["a", "c", "e"]),
        (2, 0.7, ["a", "c"]),
        (2, 0.8, ["a"]),
    ],
)
async def test_the_best_come_back_where_none_meets_the_bound(fallback, bound, wanted) -> None:
    """As many as were asked for, top_n at most; where one does, it alone. Sync and awaited."""
    fields: dict[str, Any] = {
        "top_n": 3,
        "score_threshold": bound,
        "min_score_fallback": fallback,
    }
    with table(DEAR) as ready:
        compressor = CrossEncoderCompressor(reranker=ready, **fields)
        post = CrossEncoderPostprocessor(reranker=ready, **fields)
        given = [document for document, _ in documents()]
        found = [
            compressor.compress_documents(given, QUERY),
            await compressor.acompress_documents(given, QUERY),
            CrossEncoderCompressor(reranker=ready).compress_documents(given, QUERY, **fields),
        ]
        assert [[it.page_content for it in one] for one in found] == [wanted] * 3
        ranked = [
            post.postprocess_nodes(nodes(), QueryBundle(QUERY)),
            await post.apostprocess_nodes(nodes(), QueryBundle(QUERY)),
        ]
        assert [[it.text for it in one] for one in ranked] == [wanted] * 2


def test_a_fallback_is_a_count() -> None:
    """One error class in both adapters."""
    for make in (CrossEncoderCompressor, CrossEncoderPostprocessor):
        for wrong in (-1, True, "1", None):
            with pytest.raises(ConfigError, match="min_score_fallback"):
                make(min_score_fallback=wrong)


async def test_traces_say_what_phases_left_out_and_that_nothing_met_the_bound() -> None:
    """LangChain's run metadata, the tags of LlamaIndex's event; nothing where nothing was."""
    kept: dict[str, Any] = {"top_n": 4, "rerank_count": 3, "rest": "keep_below"}
    cases: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"top_n": 2}, {}),
        ({"top_n": 2, "rerank_count": 3}, {"n_dropped": 2}),
        (kept, {"stages": [None, None, None, 0]}),
        ({"top_n": 2, "score_threshold": 0.95}, {"below": SAYS}),
        ({"top_n": 2, "score_threshold": 0.95, "min_score_fallback": 1}, {"below": SAYS}),
        ({"top_n": 2, "score_threshold": 0.55}, {}),
    ]
    names = ("n_dropped", "stages", "below")
    with table(DEAR) as ready:
        for fields, wanted in cases:
            recorder = Recorder()
            compressor = CrossEncoderCompressor(reranker=ready, **fields)
            asked: Any = {"query": QUERY, "documents": documents()}
            compressor.invoke(asked, {"callbacks": [recorder]})
            await compressor.ainvoke(asked, {"callbacks": [recorder]})
            for root in recorder.roots:
                metadata = root.extra["metadata"]
                assert {it: metadata[it] for it in names if it in metadata} == wanted, fields
            post = CrossEncoderPostprocessor(reranker=ready, **fields)
            with recording() as seen:
                post.postprocess_nodes(nodes(), QueryBundle(QUERY))
                await post.apostprocess_nodes(nodes(), QueryBundle(QUERY))
            told = {name: str(value) for name, value in wanted.items()}
            for event in seen.ends:
                assert {it: event.tags[it] for it in names if it in event.tags} == told, fields


def test_phases_of_a_configured_retriever_and_postprocessor() -> None:
    """configurable_fields sets count and rest for each call; by hand from DEAR and FIRST."""
    retriever = RerankingRetriever(
        base_retriever=ListRetriever(found=[it for it, _ in documents()]), top_n=None
    )
    with table(DEAR) as ready:
        chosen = RerankingRetriever(
            base_retriever=retriever.base_retriever, reranker=ready, top_n=None
        ).configurable_fields(
            rerank_count=ConfigurableField(id="rerank_count"), rest=ConfigurableField(id="rest")
        )
        for count, rest, wanted in (
            (3, "drop", "acb"),
            (3, "keep_below", "acbde"),
            (2, "keep_below", "abcde"),
            (None, "drop", "acebd"),
        ):
            config: Any = {"configurable": {"rerank_count": count, "rest": rest}}
            assert "".join(it.page_content for it in chosen.invoke(QUERY, config)) == wanted
            post = CrossEncoderPostprocessor(
                reranker=ready, top_n=None, rerank_count=count, rest=rest
            )
            found = post.postprocess_nodes(nodes(), QueryBundle(QUERY))
            assert "".join(it.text for it in found) == wanted
        post = CrossEncoderPostprocessor(reranker=ready, top_n=None, rerank_count=3, rest="rescale")
        scores = [it.score for it in post.postprocess_nodes(nodes(), QueryBundle(QUERY))]
        # before 7..12, after 0.5..0.9: scale 1/5, bias 0.5 - 7/5
        assert scores[3:] == pytest.approx([4 / 5 + 0.5 - 7 / 5, 2 / 5 + 0.5 - 7 / 5])


# ------------------------------------------------------------------------------- the command line


def test_search_and_rerank_say_so(tmp_path: Path) -> None:
    """In words and in JSON; with a bound that something meets nothing is said."""
    (tmp_path / "notes.txt").write_text("Bread needs salt.\n")
    arguments = ["search", "how tall is the tower?", str(tmp_path), "--score-threshold"]
    shown = run(*arguments, "0.99").stdout
    assert shown.startswith("nothing here answers that: the one document scores 0.")
    assert "below score_threshold=0.99" in shown
    answer = json.loads(run(*arguments, "0.99", "--json").stdout)
    assert (answer["answered"], answer["results"], answer["below"]["count"]) == (False, [], 1)
    answer = json.loads(run(*arguments, "0", "--json").stdout)
    assert (answer["answered"], len(answer["results"]), answer["below"]) == (True, 1, None)
    piped = run("rerank", "how tall?", "--score-threshold", "0.99", stdin="Bread.\nSalt.\n")
    assert piped.stdout == ""
    assert "nothing here answers that: the best of 2 documents" in piped.stderr


def test_fuse_on_the_command_line_is_the_librarys(tmp_path: Path) -> None:
    """BM25's scores beside the model's: the fused score and order of Reranker(fuse=)."""
    lines = ["The tower is red and tall.", "A tower of 70 m.", "How tall is tall?", "Bread."]
    for at, line in enumerate(lines):
        (tmp_path / f"{at}.txt").write_text(line)
    plain, fused = (
        json.loads(run("search", QUERY, str(tmp_path), "--json", *more).stdout)["results"]
        for more in ([], ["--fuse", "method=linear,k=1"])
    )
    order = sorted(plain, key=lambda hit: hit["bm25_rank"] or 99)
    texts, first = ([hit[name] for hit in order] for name in ("text", "bm25_score"))
    with Reranker(fuse="linear") as reranker:
        asked = [RerankRequest(QUERY, texts, retrieval_scores=first)]
        (wanted,) = reranker.rerank_many(asked)
    assert [hit["text"] for hit in fused] == wanted.select(texts)
    assert [hit["score"] for hit in fused] == pytest.approx(wanted.scores)
    assert [hit["score"] for hit in fused] != pytest.approx([hit["score"] for hit in plain])
