"""Nodes in, nodes out: scores, order, purity, and which text of a node is scored."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator

import numpy as np
import pytest
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageNode,
    IndexNode,
    MediaResource,
    MetadataMode,
    Node,
    NodeRelationship,
    NodeWithScore,
    QueryBundle,
    RelatedNodeInfo,
    TextNode,
)

from rerank_adapters import BackendError, ConfigError, InputError, Reranker
from rerank_adapters.llama_index import CrossEncoderPostprocessor
from rerank_adapters.llama_index.metadata import METADATA_SHARE
from rerank_adapters.testing import ranker_from
from tests.checkpoints import build, oracle
from tests.exported import exported
from tests.fakes import ConstantBackend, CountingBackend, FaultyBackend, reranker_over
from tests.llama_index_adapter.examples import (
    QUERY,
    TEXTS,
    InMemoryRetriever,
    nodes,
    outcome,
    snapshot,
)

ATOL = 1e-4  # law 1: float32 sums in another order


@pytest.fixture(scope="module")
def reranker() -> Iterator[Reranker]:
    """The tiny BERT with its 256-token window, on ONNX."""
    with Reranker.from_pretrained(str(exported("bert")), backend="onnx") as loaded:
        yield loaded


@pytest.fixture
def counting() -> Iterator[tuple[Reranker, CountingBackend]]:
    """A window of 64 tokens over a backend that counts its rows."""
    backend = CountingBackend()
    with reranker_over(backend) as over:
        yield over, backend


def embed_text(given: NodeWithScore) -> str:
    return given.node.get_content(metadata_mode=MetadataMode.EMBED)


# ------------------------------------------------------------------------------- scores and order


@pytest.mark.parametrize("backend", ["onnx", "torch"])
def test_scores_are_the_models_as_python_floats(backend: str):
    """§5.2, §5.9: order and scores are sentence-transformers', as floats that json takes."""
    folder = exported("bert") if backend == "onnx" else build("bert")
    postprocessor = CrossEncoderPostprocessor(
        model=str(folder), backend=backend, top_n=None, device="cpu", dtype="float32"
    )
    given = nodes()
    wanted = oracle(build("bert"), [(QUERY, embed_text(it)) for it in given])
    result = postprocessor.postprocess_nodes(given, query_str=QUERY)
    assert [it.node_id for it in result] == [f"node-{index}" for index in np.argsort(-wanted)]
    np.testing.assert_allclose(
        [it.score for it in result], np.sort(wanted)[::-1], rtol=0, atol=ATOL
    )
    assert all(type(it.score) is float and math.isfinite(it.score) for it in result)
    assert [json.loads(json.dumps(it.to_dict()))["score"] for it in result] == [
        it.score for it in result
    ]
    assert all(it.to_json() and it.model_dump_json() for it in result)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_raise(bad: float):
    """§5.2: NaN is an error with a name, never an order."""
    with reranker_over(ConstantBackend(bad)) as broken, pytest.raises(BackendError):
        CrossEncoderPostprocessor(reranker=broken).postprocess_nodes(nodes(), query_str=QUERY)


def test_ties_keep_the_order_given():
    """Equal scores: nothing moves."""
    with reranker_over(ConstantBackend(0.5)) as constant:
        result = CrossEncoderPostprocessor(reranker=constant, top_n=None).postprocess_nodes(
            nodes(), query_str=QUERY
        )
    assert [it.node_id for it in result] == [f"node-{index}" for index in range(5)]


def test_top_n(counting):
    """§5.6: None is all of them, more than there are is all of them, and the field stays."""
    over, _ = counting
    everything = outcome(
        CrossEncoderPostprocessor(reranker=over, top_n=None).postprocess_nodes(
            nodes(), query_str=QUERY
        )
    )
    assert len(everything) == len(TEXTS)
    for top_n in (1, 2, 5, 99):
        postprocessor = CrossEncoderPostprocessor(reranker=over, top_n=top_n)
        result = postprocessor.postprocess_nodes(nodes(), query_str=QUERY)
        assert outcome(result) == everything[:top_n]
        assert postprocessor.top_n == top_n


def test_the_threshold_is_inclusive_and_on_the_scores_scale(counting):
    """§5.6: the node at the threshold stays; SimilarityPostprocessor would say the same."""
    over, _ = counting
    everything = CrossEncoderPostprocessor(reranker=over, top_n=None)
    ranked = everything.postprocess_nodes(nodes(), query_str=QUERY)
    threshold = ranked[2].score
    cut = CrossEncoderPostprocessor(reranker=over, top_n=None, score_threshold=threshold)
    kept = cut.postprocess_nodes(nodes(), query_str=QUERY)
    assert outcome(kept) == outcome(ranked[:3])
    similar = SimilarityPostprocessor(similarity_cutoff=threshold).postprocess_nodes(ranked)
    assert outcome(similar) == outcome(kept)
    cut.top_n = 1
    assert outcome(cut.postprocess_nodes(nodes(), query_str=QUERY)) == outcome(ranked[:1])


def test_the_activation_fixes_the_scale():
    """§5.6: "sigmoid" of the "identity" scores, node for node."""
    raw, squashed = (
        CrossEncoderPostprocessor(
            model=str(exported("bert")), top_n=None, activation=activation
        ).postprocess_nodes(nodes(), query_str=QUERY)
        for activation in ("identity", "sigmoid")
    )
    np.testing.assert_allclose(
        [it.score for it in squashed], [1 / (1 + math.exp(-it.score)) for it in raw], atol=1e-6
    )


def test_queries_are_stripped(counting):
    """§2: RetrieverTool hands over the query and two newlines; it scores as the query alone."""
    over, _ = counting
    postprocessor = CrossEncoderPostprocessor(reranker=over)
    wanted = outcome(postprocessor.postprocess_nodes(nodes(), query_str=QUERY))
    for query in (f"{QUERY}\n\n", f" {QUERY}\t"):
        assert outcome(postprocessor.postprocess_nodes(nodes(), query_str=query)) == wanted
        bundle = QueryBundle(query)
        assert outcome(postprocessor.postprocess_nodes(nodes(), bundle)) == wanted
    # BERT's tokenizer sees no blanks; a ranker that counts them is given none.
    counted = CrossEncoderPostprocessor(reranker=ranker_from(lambda query, _: len(query)))
    spaced = f" {QUERY}\n\n"
    for given in ({"query_str": spaced}, {"query_bundle": QueryBundle(spaced)}):
        assert counted.postprocess_nodes(nodes(), **given)[0].score == len(QUERY)


@pytest.mark.parametrize("query", [None, "", " \n", 3])
@pytest.mark.parametrize("given", [nodes(), []])
def test_a_query_is_needed(counting, query, given):
    """No query, a blank one or no str is an InputError, whether there are nodes or not."""
    over, backend = counting
    postprocessor = CrossEncoderPostprocessor(reranker=over)
    bundle = None if query is None else QueryBundle(query)
    with pytest.raises(InputError, match="query"):
        postprocessor.postprocess_nodes(given, bundle)
    assert backend.rows == 0


def test_nodes_must_be_scored_nodes(counting):
    """A bare TextNode is an InputError naming its index."""
    over, _ = counting
    postprocessor = CrossEncoderPostprocessor(reranker=over)
    with pytest.raises(InputError, match=r"nodes\[5\].*TextNode"):
        postprocessor.postprocess_nodes([*nodes(), TextNode(text="bare")], query_str=QUERY)


# -------------------------------------------------------------------------------------- purity


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_inputs_stay_as_they_were(keep: bool, fails: bool):
    """§5.1: scores, metadata, hashes and the list itself, on success and when a forward fails."""
    backend = FaultyBackend(lambda batch: RuntimeError("broken") if fails else None)
    given = nodes()
    before, length = snapshot(given), len(given)
    with reranker_over(backend) as over:
        postprocessor = CrossEncoderPostprocessor(reranker=over, keep_retrieval_score=keep)
        if fails:
            with pytest.raises(Exception, match="broken"):
                postprocessor.postprocess_nodes(given, query_str=QUERY)
        else:
            result = postprocessor.postprocess_nodes(given, query_str=QUERY)
            assert not {id(it) for it in result} & {id(it) for it in given}
    assert snapshot(given) == before
    assert len(given) == length


@pytest.mark.parametrize("keep", [False, True])
def test_a_second_query_finds_the_same_retrieval_scores(counting, keep: bool):
    """§5.1: a retriever that returns its own objects gives the same result twice."""
    over, _ = counting
    retriever = InMemoryRetriever(nodes())
    postprocessor = CrossEncoderPostprocessor(reranker=over, keep_retrieval_score=keep, top_n=None)
    before = outcome(retriever.retrieve(QUERY))
    first = postprocessor.postprocess_nodes(retriever.retrieve(QUERY), query_str=QUERY)
    assert outcome(retriever.retrieve(QUERY)) == before
    second = postprocessor.postprocess_nodes(retriever.retrieve(QUERY), query_str=QUERY)
    assert outcome(first) == outcome(second)


@pytest.mark.parametrize("mode", list(MetadataMode))
def test_the_retrieval_score_is_kept_out_of_sight(counting, mode: MetadataMode):
    """§5.3: texts for embedding and LLM stay the same bytes; reranking again gives equal scores."""
    over, _ = counting
    postprocessor = CrossEncoderPostprocessor(
        reranker=over, keep_retrieval_score=True, top_n=None, metadata_mode=mode
    )
    given = nodes()
    given[1].score = np.float32(0.5)  # what careless earlier steps leave behind
    given[2].score = None
    by_id = {it.node_id: it for it in given}
    first = postprocessor.postprocess_nodes(given, query_str=QUERY)
    for it in first:
        before = by_id[it.node_id]
        assert it.metadata["retrieval_score"] == before.score
        for texts in (MetadataMode.EMBED, MetadataMode.LLM):
            assert it.node.get_content(texts) == before.node.get_content(texts)
        json.dumps(it.to_dict())
    second = postprocessor.postprocess_nodes(first, query_str=QUERY)
    assert outcome(second) == outcome(first)
    assert [it.metadata["retrieval_score"] for it in second] == [it.score for it in first]


# --------------------------------------------------------------------------- the text that counts


@pytest.mark.parametrize("mode", list(MetadataMode))
def test_metadata_mode_chooses_the_text(reranker: Reranker, mode: MetadataMode):
    """§5.7: the score is that of node.get_content(mode)."""
    node = TextNode(
        text=TEXTS[2],
        metadata={"a": "embedded", "b": "for the model"},
        excluded_embed_metadata_keys=["b"],
        excluded_llm_metadata_keys=["a"],
    )
    postprocessor = CrossEncoderPostprocessor(reranker=reranker, metadata_mode=mode)
    result = postprocessor.postprocess_nodes([NodeWithScore(node=node)], query_str=QUERY)
    assert result[0].score == float(reranker.score(QUERY, [node.get_content(mode)])[0])


def test_text_fn_builds_the_text(reranker: Reranker):
    """§5.7: called once per node; its text alone is scored; what is no str is an InputError."""
    seen = []

    def upper(node):
        seen.append(node.node_id)
        return node.get_content().upper()

    postprocessor = CrossEncoderPostprocessor(reranker=reranker, text_fn=upper, top_n=None)
    result = postprocessor.postprocess_nodes(nodes(), query_str=QUERY)
    assert seen == [f"node-{index}" for index in range(5)]
    wanted = reranker.score(QUERY, [text.upper() for text in TEXTS])
    assert {it.node_id: it.score for it in result} == {
        f"node-{index}": float(score) for index, score in enumerate(wanted)
    }
    wrong = CrossEncoderPostprocessor(reranker=reranker, text_fn=lambda node: None)
    with pytest.raises(InputError, match=r"text_fn\(nodes\[0\]"):
        wrong.postprocess_nodes(nodes(), query_str=QUERY)


def test_long_metadata_do_not_cut_the_passage_away(reranker: Reranker):
    """§5.7: under one metadata text longer than the window, two passages score differently."""
    summary = "the treaty was signed and ended thirty years of war " * 100
    given = [
        NodeWithScore(node=TextNode(text=text, metadata={"summary": summary})) for text in TEXTS[:2]
    ]
    as_upstream = oracle(build("bert"), [(QUERY, embed_text(it)) for it in given])
    assert as_upstream[0] == pytest.approx(as_upstream[1], abs=1e-6), "the passages are cut away"
    postprocessor = CrossEncoderPostprocessor(reranker=reranker, top_n=None)
    first, second = postprocessor.postprocess_nodes(given, query_str=QUERY)
    assert first.score - second.score > 1e-3  # ten times what law 1 allows


def test_where_metadata_goes_depends_on_its_tokens(reranker: Reranker):
    """§5.7: before the body up to a quarter of what the query leaves, after it beyond that."""
    left = reranker.info().max_length - reranker.count_tokens([QUERY])[0]
    room = left // 4  # as the migration page says
    lead = reranker.count_tokens(["file: the"])[0]
    fits, over = (
        TextNode(text=TEXTS[2], metadata={"file": " ".join(["the"] * (count - lead + 1))})
        for count in (room, room + 1)
    )
    assert reranker.count_tokens([fits.get_metadata_str(), over.get_metadata_str()]) == [
        room,
        room + 1,
    ]
    postprocessor = CrossEncoderPostprocessor(reranker=reranker, top_n=None)
    result = postprocessor.postprocess_nodes(
        [NodeWithScore(node=fits), NodeWithScore(node=over)], query_str=QUERY
    )
    scores = {it.node_id: it.score for it in result}
    before = fits.get_content(MetadataMode.EMBED)
    after = f"{over.text}\n\n{over.get_metadata_str()}"
    assert scores == {
        fits.node_id: float(reranker.score(QUERY, [before])[0]),
        over.node_id: float(reranker.score(QUERY, [after])[0]),
    }


NOTES = {"notes": "half fare for kids. " * 80, "file": "a.txt"}


class Bare(TextNode):
    """A node with a text of its own making."""

    def get_content(self, metadata_mode: MetadataMode = MetadataMode.NONE) -> str:
        return self.text


OWN = {
    "hidden": TextNode(text=TEXTS[2], metadata=NOTES, text_template="{content}"),
    "hidden, a Node": Node(
        text_resource=MediaResource(text=TEXTS[2]), metadata=NOTES, text_template="{content}"
    ),
    "hidden by a method": Bare(text=TEXTS[2], metadata=NOTES),
    "after": TextNode(text=TEXTS[2], metadata=NOTES, text_template="{content} | {metadata_str}"),
    "between": TextNode(
        text=TEXTS[2], metadata=NOTES, text_template="{content}\n{metadata_str}\n{content}"
    ),
    "in front, named": TextNode(
        text=TEXTS[2], metadata=NOTES, text_template="[{metadata_str}] {content}"
    ),
    "keys alone": TextNode(text=TEXTS[2], metadata=NOTES, metadata_template="{key}"),
    "excluded": TextNode(
        text=TEXTS[2], metadata=NOTES, excluded_embed_metadata_keys=["notes", "file"]
    ),
    "one excluded": TextNode(text=TEXTS[2], metadata=NOTES, excluded_embed_metadata_keys=["notes"]),
}


@pytest.mark.parametrize("name", OWN)
def test_a_nodes_own_template_decides(reranker: Reranker, name: str):
    """Long metadata too: the score is that of get_content(EMBED), however much of it is cut."""
    shown = OWN[name].get_content(metadata_mode=MetadataMode.EMBED)
    postprocessor = CrossEncoderPostprocessor(reranker=reranker)
    (result,) = postprocessor.postprocess_nodes([NodeWithScore(node=OWN[name])], query_str=QUERY)
    assert result.score == float(reranker.score(QUERY, [shown])[0])


@pytest.mark.parametrize("mode", [MetadataMode.LLM, MetadataMode.ALL])
def test_what_a_mode_excludes_is_not_scored(reranker: Reranker, mode: MetadataMode):
    """Long metadata excluded for the model of the mode chosen, and they alone, are left out."""
    node = TextNode(text=TEXTS[2], metadata=NOTES, excluded_llm_metadata_keys=["notes"])
    postprocessor = CrossEncoderPostprocessor(reranker=reranker, metadata_mode=mode)
    (result,) = postprocessor.postprocess_nodes([NodeWithScore(node=node)], query_str=QUERY)
    after = f"{TEXTS[2]}\n\n{node.get_metadata_str(mode)}"
    text = after if mode == MetadataMode.ALL else f"file: a.txt\n\n{TEXTS[2]}"
    assert result.score == float(reranker.score(QUERY, [text])[0])


def test_a_template_that_shows_nothing_has_no_score(counting):
    """There is nothing to score of a node whose template hides its text."""
    over, backend = counting
    node = TextNode(id_="hidden", text=TEXTS[2], metadata=NOTES, text_template=" ")
    postprocessor = CrossEncoderPostprocessor(reranker=over)
    result = postprocessor.postprocess_nodes([NodeWithScore(node=node)], query_str=QUERY)
    assert outcome(result) == [("hidden", 0.0)]
    assert backend.rows == 0


@pytest.mark.parametrize("truncation", ["longest_first", "only_second"])
def test_a_long_query_leaves_its_share_to_the_passage(truncation: str):
    """§5.7: metadata that would fit the window, but not beside this query, go after the body."""
    postprocessor = CrossEncoderPostprocessor(
        model=str(exported("bert")), backend="onnx", truncation=truncation, top_n=None
    )
    over = postprocessor._ranker()
    window, query, metadata = over.info().max_length, "the " * 200, "the " * 55
    assert over.count_tokens([metadata])[0] < window * METADATA_SHARE
    given = [
        NodeWithScore(node=TextNode(text=text, metadata={"m": metadata})) for text in TEXTS[:2]
    ]
    first, second = postprocessor.postprocess_nodes(given, query_str=query)
    assert first.score - second.score > 1e-3  # ten times what law 1 allows
    texts = [f"{it.node.text}\n\n{it.node.get_metadata_str().strip()}" for it in (first, second)]
    wanted = over.score(query.strip(), texts).tolist()
    assert [first.score, second.score] == pytest.approx(wanted, abs=1e-5)  # law 2


def test_only_long_metadata_are_counted(monkeypatch: pytest.MonkeyPatch, counting):
    """Short metadata are not tokenised twice; long ones are counted once each, with the query."""
    over, _ = counting
    counted: list[str] = []
    count = over.count_tokens
    monkeypatch.setattr(over, "count_tokens", lambda texts: counted.extend(texts) or count(texts))
    postprocessor = CrossEncoderPostprocessor(reranker=over)
    postprocessor.postprocess_nodes(nodes(TEXTS, file="f"), query_str="whales?")
    assert counted == []
    long = {"file": "f" * 64}
    postprocessor.postprocess_nodes(nodes(TEXTS[:2], **long) * 2, query_str="whales?")
    assert counted == [f"file: {long['file']}", "whales?"]


def test_a_window_of_128_positions_is_kept():
    """§5.7: a passage beyond the positions of the model is cut, not a crash."""
    postprocessor = CrossEncoderPostprocessor(model=str(build("bert_128")), backend="torch")
    given = nodes(["the lighthouse keeper climbed the narrow stairs " * 100])
    result = postprocessor.postprocess_nodes(given, query_str=QUERY)
    wanted = oracle(build("bert_128"), [(QUERY, embed_text(given[0]))])
    assert result[0].score == pytest.approx(float(wanted[0]), abs=ATOL)


# ----------------------------------------------------------------------------------- the node zoo


class Tagged(NodeWithScore):
    """A subclass, as applications make them."""

    tag: str = ""


KINDS = [
    TextNode(text=TEXTS[0], id_="text", metadata={"a": "b"}),
    Document(text=TEXTS[1], id_="document"),
    Node(text_resource=MediaResource(text=TEXTS[2]), id_="node"),
    IndexNode(text=TEXTS[3], id_="index", index_id="i", obj=TextNode(text="what it stands for")),
    ImageNode(text=TEXTS[4], id_="image", image_path="i.png"),
]


def test_node_zoo(reranker: Reranker):
    """§5.10: every kind of node gets the score of its own text, and comes back as what it is."""
    obj = object()
    zoo = [
        NodeWithScore(node=TextNode(text=TEXTS[0], id_="text"), score=0.1),
        NodeWithScore(node=Document(text=TEXTS[1], id_="document")),
        NodeWithScore(node=Node(text_resource=MediaResource(text=TEXTS[2]), id_="node"), score=3),
        NodeWithScore(node=IndexNode(text=TEXTS[3], id_="index", index_id="i", obj=obj)),
        NodeWithScore(node=ImageNode(text=TEXTS[4], id_="image", image_path="i.png"), score=-1.0),
        NodeWithScore(node=TextNode(text=TEXTS[2], id_="same")),
        NodeWithScore(node=TextNode(text=TEXTS[4], id_="same")),
        Tagged(node=TextNode(text="tagged", id_="tagged"), score=0.0, tag="kept"),
    ]
    postprocessor = CrossEncoderPostprocessor(reranker=reranker, top_n=None)
    result = postprocessor.postprocess_nodes(zoo, query_str=QUERY)
    wanted = reranker.score(QUERY, [it.node.get_content() for it in zoo])
    order = np.argsort(-wanted, kind="stable")
    assert [it.node for it in result] == [zoo[index].node for index in order]
    assert all(it.node is zoo[index].node for it, index in zip(result, order, strict=True))
    assert [it.score for it in result] == [float(wanted[index]) for index in order]
    by_id = {it.node_id: it for it in result}
    assert by_id["index"].node.obj is obj
    assert isinstance(by_id["tagged"], Tagged)
    assert by_id["tagged"].tag == "kept"


@pytest.mark.parametrize("node", KINDS, ids=lambda node: type(node).__name__)
def test_a_kept_retrieval_score_copies_no_more_than_it_must(counting, node: BaseNode):
    """§5.3, §5.10: the copy is of the same class and shares embedding, relationships and object."""
    over, _ = counting
    node.embedding = [0.5] * 8
    node.relationships = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id="source")}
    before = node.model_dump()
    postprocessor = CrossEncoderPostprocessor(reranker=over, keep_retrieval_score=True)
    (result,) = postprocessor.postprocess_nodes(
        [Tagged(node=node, score=0.25, tag="kept")], query_str=QUERY
    )
    assert isinstance(result, Tagged)
    assert result.tag == "kept"
    copied = result.node
    assert type(copied) is type(node)
    assert copied is not node
    assert copied.embedding is node.embedding
    assert copied.relationships is node.relationships
    assert getattr(copied, "obj", None) is getattr(node, "obj", None)
    after = copied.model_dump()
    assert after.pop("metadata") == {**before.pop("metadata"), "retrieval_score": 0.25}
    for key in ("excluded_embed_metadata_keys", "excluded_llm_metadata_keys"):
        assert after.pop(key) == [*before.pop(key), "retrieval_score"]
    assert after == before


def without_text() -> list[NodeWithScore]:
    image = ImageNode(id_="image", image_path="i.png", metadata={"caption": "the capital"})
    return [
        NodeWithScore(node=image, score=0.8),
        NodeWithScore(node=TextNode(id_="blank", text=" \n"), score=0.7),
        NodeWithScore(node=Node(id_="media"), score=0.6),
        *nodes(TEXTS[:2]),
    ]


def test_nodes_without_text_come_last_and_unscored(counting):
    """§5.10: nothing is scored for an image or an empty text, whatever its metadata say."""
    over, backend = counting
    postprocessor = CrossEncoderPostprocessor(reranker=over, top_n=None, keep_retrieval_score=True)
    result = postprocessor.postprocess_nodes(without_text(), query_str=QUERY)
    assert backend.rows == 2
    assert outcome(result[2:]) == [("image", 0.0), ("blank", 0.0), ("media", 0.0)]
    assert [it.metadata["retrieval_score"] for it in result[2:]] == [0.8, 0.7, 0.6]
    postprocessor.top_n = 3
    assert len(postprocessor.postprocess_nodes(without_text(), query_str=QUERY)) == 3
    postprocessor.score_threshold = -1e9
    kept = postprocessor.postprocess_nodes(without_text(), query_str=QUERY)
    assert {it.node_id for it in kept} == {"node-0", "node-1"}, (
        "what was not scored meets no threshold"
    )


def test_nodes_without_text_can_be_dropped_or_an_error(counting):
    """§5.10: on_empty_text="drop" leaves them out, "error" names the first."""
    over, _ = counting
    drop = CrossEncoderPostprocessor(reranker=over, top_n=None, on_empty_text="drop")
    result = drop.postprocess_nodes(without_text(), query_str=QUERY)
    assert {it.node_id for it in result} == {"node-0", "node-1"}
    error = CrossEncoderPostprocessor(reranker=over, on_empty_text="error")
    with pytest.raises(InputError, match=r"nodes\[0\]"):
        error.postprocess_nodes(without_text(), query_str=QUERY)
    only_blank = CrossEncoderPostprocessor(reranker=over)
    result = only_blank.postprocess_nodes(without_text()[:2], query_str=QUERY)
    assert outcome(result) == [("image", 0.0), ("blank", 0.0)]


def test_nodes_without_text_are_scored_where_that_is_asked(counting):
    """on_empty_text="score": by their metadata, as any; a ready ranker's own rule counts too."""
    over, backend = counting
    score = CrossEncoderPostprocessor(reranker=over, top_n=None, on_empty_text="score")
    given = without_text()
    result = score.postprocess_nodes(given, query_str=QUERY)
    by_id = {it.node_id: it.score for it in result}
    texts = [it.node.get_content(metadata_mode=MetadataMode.EMBED) for it in given]
    assert "the capital" in texts[0]
    expected = dict(zip((it.node_id for it in given), over.score(QUERY, texts), strict=True))
    assert by_id == pytest.approx(expected, abs=0)
    before = backend.rows
    own = Reranker.over(over._caller.scorer, on_empty_text="score")
    CrossEncoderPostprocessor(reranker=own).postprocess_nodes(given[1:2], query_str=QUERY)
    assert backend.rows == before + 1, "the ranker's rule, where the adapter says none"


UNSCORED = [("image", None), ("blank", None), ("media", None)]


async def test_nodes_without_text_can_stand_beside_top_n(counting):
    """keep_unscored: images come back after top_n nodes with text, whatever the threshold."""
    over, _ = counting
    best = CrossEncoderPostprocessor(reranker=over, top_n=1).postprocess_nodes(
        nodes(TEXTS[:2]), query_str=QUERY
    )
    for threshold, scored in ((None, outcome(best)), (best[0].score, outcome(best)), (99.0, [])):
        postprocessor = CrossEncoderPostprocessor(
            reranker=over, top_n=1, score_threshold=threshold, keep_unscored=True
        )
        requests = [(QUERY, without_text())]
        results = [
            postprocessor.postprocess_nodes(without_text(), query_str=QUERY),
            await postprocessor.apostprocess_nodes(without_text(), query_str=QUERY),
            *postprocessor.postprocess_nodes_batch(requests),
            *await postprocessor.apostprocess_nodes_batch(requests),
        ]
        assert [outcome(it) for it in results] == [[*scored, *UNSCORED]] * 4


@pytest.mark.parametrize("word", ["drop", "error"])
def test_nodes_without_text_are_kept_or_not(word: str):
    """Two fields that say the opposite are a ConfigError that names both."""
    with pytest.raises(ConfigError, match=r"keep_unscored.*on_empty_text"):
        CrossEncoderPostprocessor(on_empty_text=word, keep_unscored=True)


# ------------------------------------------------------------------------------ options of a call


async def ways(postprocessor: CrossEncoderPostprocessor, **options: object) -> list[list]:
    """What each way in gives with *options*."""
    requests = [(QUERY, nodes())]
    return [
        outcome(postprocessor.postprocess_nodes(nodes(), query_str=QUERY, **options)),
        outcome(await postprocessor.apostprocess_nodes(nodes(), query_str=QUERY, **options)),
        *map(outcome, postprocessor.postprocess_nodes_batch(requests, **options)),
        *map(outcome, await postprocessor.apostprocess_nodes_batch(requests, **options)),
    ]


@pytest.mark.parametrize("count", [3, np.int64(3), np.uint8(3)])
async def test_a_call_has_a_top_n_and_a_threshold_of_its_own(counting, count: int):
    """On every way in, for that call alone; None is all, and no bound. NumPy integers count."""
    over, _ = counting
    everything = outcome(
        CrossEncoderPostprocessor(reranker=over, top_n=None).postprocess_nodes(
            nodes(), query_str=QUERY
        )
    )
    second, third = everything[1][1], everything[2][1]

    def reach(least: float) -> list:  # a tie reaches it too
        return [it for it in everything if it[1] >= least]

    postprocessor = CrossEncoderPostprocessor(
        reranker=over, top_n=count, score_threshold=np.float32(second)
    )
    assert type(postprocessor.top_n) is int
    assert len(reach(second)) < len(everything)
    assert await ways(postprocessor) == [reach(second)[:3]] * 4
    assert await ways(postprocessor, top_n=np.int64(1)) == [everything[:1]] * 4
    assert await ways(postprocessor, score_threshold=None) == [everything[:3]] * 4
    assert await ways(postprocessor, top_n=None, score_threshold=None) == [everything] * 4
    assert await ways(postprocessor, top_n=None, score_threshold=third) == [reach(third)] * 4
    assert await ways(postprocessor) == [reach(second)[:3]] * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_n": True}, "top_n"),
        ({"top_n": "2"}, "top_n"),
        ({"top_n": 2.0}, "top_n"),
        ({"top_n": 0}, "top_n"),
        ({"score_threshold": "0.5"}, "score_threshold"),
        ({"score_threshold": float("nan")}, "score_threshold"),
        ({"prompt": 3}, "prompt"),
        ({"top_k": 3}, "top_k.*top_n"),
        ({"metadata_mode": "all"}, "a call takes"),
    ],
)
async def test_what_a_call_cannot_take_is_an_input_error(counting, options: dict, message: str):
    """The same error on every way in, before anything is scored."""
    over, backend = counting
    postprocessor = CrossEncoderPostprocessor(reranker=over)
    with pytest.raises(InputError, match=message):
        postprocessor.postprocess_nodes(nodes(), query_str=QUERY, **options)
    with pytest.raises(InputError, match=message):
        await postprocessor.apostprocess_nodes(nodes(), query_str=QUERY, **options)
    with pytest.raises(InputError, match=message):
        postprocessor.postprocess_nodes_batch([(QUERY, nodes())], **options)
    with pytest.raises(InputError, match=message):
        await postprocessor.apostprocess_nodes_batch([(QUERY, nodes())], **options)
    assert backend.rows == 0


async def test_a_call_has_a_prompt_of_its_own():
    """Scores are those of a model configured with that prompt; None is the configuration's."""
    folder = str(build("qwen3"))
    fields = {"model": folder, "backend": "torch", "dtype": "float32", "top_n": None}
    plain, told = (CrossEncoderPostprocessor(**fields, prompt=it) for it in (None, "Find eggs"))
    wanted = outcome(told.postprocess_nodes(nodes(), query_str=QUERY))
    usual = outcome(plain.postprocess_nodes(nodes(), query_str=QUERY))
    assert wanted != usual
    assert await ways(plain, prompt="Find eggs") == [wanted] * 4
    assert await ways(plain, prompt=None) == [usual] * 4
    assert await ways(told, prompt=None) == [wanted] * 4


def test_identical_texts_are_scored_once(counting):
    """§5.10: six nodes, two texts, two rows; each node keeps its own identity."""
    over, backend = counting
    given = [
        NodeWithScore(node=TextNode(text=TEXTS[index % 2], id_=f"n{index}")) for index in range(6)
    ]
    result = CrossEncoderPostprocessor(reranker=over, top_n=None).postprocess_nodes(
        given, query_str=QUERY
    )
    assert backend.rows == 2
    assert sorted(it.node_id for it in result) == [f"n{index}" for index in range(6)]
    assert len({it.score for it in result}) == 2


# ------------------------------------------------------------------------------------- in batches


REQUESTS = [
    (QUERY, nodes()),
    (QueryBundle("How many eggs?\n"), nodes(TEXTS[1:4])),
    ("Nothing was found", []),
    ("Which of these have no text?", without_text()),
]


async def test_a_batch_is_one_pool_of_pairs(counting):
    """Per request the same nodes and scores as alone; all pairs in one submission; twins agree."""
    over, _ = counting
    postprocessor = CrossEncoderPostprocessor(reranker=over, keep_retrieval_score=True)
    alone = [
        postprocessor.postprocess_nodes(
            given, query if isinstance(query, QueryBundle) else QueryBundle(query)
        )
        for query, given in REQUESTS
    ]
    requests = over.stats()["requests"]
    together = postprocessor.postprocess_nodes_batch(REQUESTS)
    assert over.stats()["requests"] == requests + 1
    awaited = await postprocessor.apostprocess_nodes_batch(REQUESTS)
    assert over.stats()["requests"] == requests + 2
    assert [outcome(it) for it in together] == [outcome(it) for it in alone]
    assert [outcome(it) for it in awaited] == [outcome(it) for it in alone]
    assert together[2] == []


async def test_an_empty_batch_loads_nothing():
    """No requests, or requests without nodes: empty answers, and no model is looked for."""
    postprocessor = CrossEncoderPostprocessor(model="no/such-model", local_files_only=True)
    assert postprocessor.postprocess_nodes_batch([]) == []
    assert await postprocessor.apostprocess_nodes_batch([("a", []), ("b", [])]) == [[], []]


def test_a_batch_names_the_request_at_fault(counting):
    """InputError says which request, and nothing is scored."""
    over, backend = counting
    postprocessor = CrossEncoderPostprocessor(reranker=over)
    with pytest.raises(InputError, match=r"requests\[1\]: query"):
        postprocessor.postprocess_nodes_batch([(QUERY, nodes()), (" ", nodes())])
    with pytest.raises(InputError, match=r"requests\[0\]: nodes\[1\]"):
        postprocessor.postprocess_nodes_batch([(QUERY, [nodes()[0], "a str"])])
    assert backend.rows == 0


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        (None, "requests must be"),
        ("ab", "requests must be"),
        ((QUERY, nodes()), r"requests\[0\] must be a \(query, nodes\) pair"),
        (["ab"], r"requests\[0\] must be"),
        ([(QUERY, nodes(), 2)], r"requests\[0\] must be"),
        ([(QUERY, nodes()), (QUERY, None)], r"requests\[1\]: nodes must be"),
        ([(QUERY, "ab")], r"requests\[0\]: nodes must be"),
    ],
)
async def test_what_is_no_batch_is_an_input_error(requests: object, message: str):
    """Neither a TypeError from inside, nor a str taken apart into a query and nodes."""
    postprocessor = CrossEncoderPostprocessor(model="no/such-model", local_files_only=True)
    with pytest.raises(InputError, match=message):
        postprocessor.postprocess_nodes_batch(requests)
    with pytest.raises(InputError, match=message):
        await postprocessor.apostprocess_nodes_batch(requests)


def test_a_batch_may_be_a_generator(counting):
    """Requests are read once, in order."""
    over, _ = counting
    postprocessor = CrossEncoderPostprocessor(reranker=over)
    listed = postprocessor.postprocess_nodes_batch(REQUESTS)
    generated = postprocessor.postprocess_nodes_batch(request for request in REQUESTS)
    assert [outcome(it) for it in generated] == [outcome(it) for it in listed]
