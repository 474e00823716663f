"""Stored tokens: equal scores, no tokenizer call for documents; what does not fit is refused."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import stat
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda
from llama_index.core.schema import MetadataMode, NodeWithScore, TextNode
from typer.testing import CliRunner

from rerank_adapters import (
    DocumentTokens,
    Paragraphs,
    Reranker,
    RerankerConfig,
    ScoreCache,
    Windows,
)
from rerank_adapters.calls import inside
from rerank_adapters.cli.app import app
from rerank_adapters.cli.corpus import example_folder, passages
from rerank_adapters.errors import ConfigError, InputError, ModelError
from rerank_adapters.langchain import CrossEncoderCompressor, RerankingRetriever
from rerank_adapters.llama_index import CrossEncoderPostprocessor
from rerank_adapters.protocols import RerankRequest
from rerank_adapters.scorers.stored import Stored
from rerank_adapters.sharing import acquire
from rerank_adapters.tokenization.accelerators.trusted import Trusted
from rerank_adapters.tokenization.reader import Reader
from tests.checkpoints import build
from tests.engine.traffic import until
from tests.fakes import CountingBackend, HeldBackend, reranker_over

QUERY = "how tall is it?"
DOCUMENTS = ["It is red.", "The tower is 70 m tall.", "tall words " * 400, "half \ud83d", " \n"]
IDS = ["a", "b", "c", "d", "e"]
REQUEST = RerankRequest(QUERY, DOCUMENTS, ids=IDS, on_empty_text="score")


def opened(kind: str, tmp_path) -> DocumentTokens:
    return DocumentTokens.memory() if kind == "memory" else DocumentTokens.at(tmp_path / "tokens")


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """The texts that a tokenizer is given from now on."""
    texts: list[str] = []
    for kind, name in ((Reader, "fast"), (Reader, "full"), (Trusted, "read")):
        usual = getattr(kind, name)

        def call(self, given, usual=usual):
            texts.extend(given)
            return usual(self, given)

        monkeypatch.setattr(kind, name, call)
    return texts


@pytest.mark.parametrize("kind", ["memory", "folder"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"truncation": "only_second"},
        {"max_length": 16},
        {"windows": {"tokens": 40}},
        {"windows": {"tokens": 40, "stride": 20, "max_windows": 3}},
        {"windows": {"tokens": 40, "aggregate": "first"}},
        {"windows": {"tokens": 40, "aggregate": "topk_mean", "topk": 2}},
    ],
)
def test_the_bundled_model_scores_bit_for_bit(tmp_path, read, kind, options):
    """Cut documents among them; the query alone is tokenised, awaited too."""
    tokens = opened(kind, tmp_path)
    with Reranker(document_tokens=tokens, **options) as stored, Reranker(**options) as bare:
        expected = bare.rerank_many([REQUEST])
        assert tokens.add(zip(IDS, DOCUMENTS, strict=True)) == 5
        read.clear()
        assert stored.rerank_many([REQUEST]) == expected
        assert asyncio.run(stored.arerank_many([REQUEST])) == expected
        assert set(read) <= {QUERY, ""}, "a document was tokenised"
        assert (tokens.stats()["hits"], tokens.stats()["misses"]) == (10, 0)
        assert tokens.stats()["window_misses"] == 0
        assert len(tokens) == 5, "windows are no documents"


@pytest.mark.parametrize("windows", [None, Windows(30)])
@pytest.mark.parametrize("kind", ["bert", "roberta", "modernbert", "qwen3"])
def test_frames_templates_and_long_queries(tmp_path, read, kind, windows):
    """Any family whose texts are read apart; a query longer than the limit on the odd token too."""
    config = RerankerConfig(model=str(build(kind)), backend="torch", device="cpu", windows=windows)
    tokens = DocumentTokens.at(tmp_path)
    with (
        Reranker.from_config(replace(config, document_tokens=tokens)) as stored,
        Reranker.from_config(config) as bare,
    ):
        tokens.add(zip(IDS, DOCUMENTS, strict=True))
        for query in (QUERY, "long question " * 900):
            request = replace(REQUEST, query=query)
            (expected,) = bare.rerank_many([request])
            read.clear()
            (found,) = stored.rerank_many([request])
            assert found.indices == expected.indices
            assert np.allclose(found.scores, expected.scores, atol=1e-6)  # torch: law 2
            assert not [text for text in read if "tower" in text or "tall words" in text]
            assert [it.span for it in found] == [it.span for it in expected]


LONG = [
    "塔の高さは七十メートルです。" * 20 + "とても高い。",
    "Ce\u0301tait une tour\r\n\U0001f469\u200d\U0001f692 haute. " * 20,
    "w" * 300 + " tower",
    "The tower is tall. " * 40,
]


@pytest.mark.parametrize("kind", ["memory", "folder"])
def test_windows_are_those_that_are_cut_at_call_time(tmp_path, read, kind):
    """Spans, scores and what is left unread, of texts with and without blanks."""
    windows, tokens = Windows(24, 12, max_windows=5), opened(kind, tmp_path)
    request = RerankRequest(QUERY, LONG, ids=list("abcd"))
    with (
        reranker_over(CountingBackend(), document_tokens=tokens, windows=windows) as stored,
        reranker_over(CountingBackend(), windows=windows) as bare,
    ):
        expected = bare.rerank_many([request])
        tokens.add(zip("abcd", LONG, strict=True))
        read.clear()
        assert stored.rerank_many([request]) == expected
        assert set(read) <= {QUERY, ""}
        assert all(it.truncated for it in expected[0] if it.index != 2)
        # Another text under the id, and paragraphs of it, are cut as they come.
        changed = [LONG[0] + "!", Paragraphs(LONG[1:3], closeness=[1, 0], keep=1)]
        request = RerankRequest(QUERY, changed, ids=["a", "b"])
        assert stored.rerank_many([request]) == bare.rerank_many([request])
        assert tokens.stats()["window_misses"] == 1


def test_windows_that_are_not_kept_are_cut_and_said_once(tmp_path, read, caplog):
    """Of tokens that were built without, and where a query leaves less than a window has."""
    tokens = DocumentTokens.at(tmp_path)
    with reranker_over(CountingBackend(), document_tokens=tokens):
        tokens.add([("d", LONG[3])])
    request = RerankRequest(QUERY, LONG[3:], ids=["d"])
    caplog.set_level("INFO", "rerank_adapters")
    with (
        reranker_over(CountingBackend(), document_tokens=tokens, windows=Windows(24)) as stored,
        reranker_over(CountingBackend(), windows=Windows(24)) as bare,
    ):
        for _ in range(2):
            read.clear()
            assert stored.rerank_many([request]) == bare.rerank_many([request])
        assert [it for it in read if "tower" in it], "it was cut"
        assert [it.message for it in caplog.records if "24 tokens, 18 apart" in it.message]
        assert len(caplog.records) == 1
        assert tokens.stats()["window_misses"] == 2
        tokens.add([("d", LONG[3])])
        longer = replace(request, query="how tall is it? " * 200)
        assert stored.rerank_many([longer]) == bare.rerank_many([longer])
    other = Windows(30, 10)
    with reranker_over(CountingBackend(), document_tokens=tokens, windows=other) as wider:
        tokens.add([("d", LONG[3])])
        read.clear()
        wider.rerank_many([request])
        assert set(read) <= {QUERY, ""}, "windows of several settings live in one folder"


@pytest.mark.parametrize("kind", ["memory", "folder"])
def test_changed_unknown_and_replaced_documents(tmp_path, read, kind):
    """A changed text is tokenised anew; a later `add` counts, an id alone finds nothing."""
    tokens = opened(kind, tmp_path)
    backend = CountingBackend()
    with reranker_over(backend, document_tokens=tokens) as reranker:
        tokens.add([("a", "red"), ("a", "tower"), ("b", "tall")])
        request = RerankRequest("q", ["red", "tower", "tall", "tall"], ids=["a", "a", None, "c"])
        read.clear()
        reranker.rerank_many([request])
        assert {"red", "tall"} <= set(read)
        assert "tower" not in read
        tokens.add([("a", "red")])
        read.clear()
        reranker.rerank_many([request, ("q", ["other"])])
        # In a folder the earlier file still has it, and its text says that it is right.
        assert {"red", "tower"} & set(read) == (set() if kind == "folder" else {"tower"})
        assert tokens.add([]) == 0
    assert backend.rows == 7, "equal pairs of different ids are scored once"


def test_a_folder_is_its_owners_and_read_by_others(tmp_path, read):
    """Files of mode 0600, written aside and renamed, never changed; opened again by path."""
    folder = tmp_path / "deep" / "tokens"
    with Reranker(document_tokens=folder) as reranker:
        counts: list[int] = []
        tokens = inside(reranker._caller.scorer, Stored).tokens
        tokens.add(((str(at), f"text {at}") for at in range(1200)), on_progress=counts.append)
        assert sum(counts) == 1200
        (first,) = folder.iterdir()
        before = first.read_bytes()
        tokens.add([("x", "other")])
    names = sorted(folder.iterdir())
    assert len(names) == 2
    assert names[0].read_bytes() == before
    assert {stat.S_IMODE(it.stat().st_mode) for it in names} == {0o600}
    (folder / ".left.part").write_bytes(b"a build that was stopped")
    with Reranker(document_tokens=str(folder)) as again:
        read.clear()
        request = RerankRequest("q", ["text 7", "other"], ids=["7", "x"])
        (ranking,) = again.rerank_many([request])
        assert set(read) <= {"q", ""}
    with Reranker() as bare:
        assert ranking == bare.rerank("q", ["text 7", "other"])


def test_a_build_that_fails_leaves_nothing(tmp_path):
    """Neither a segment nor a part of one."""
    tokens = DocumentTokens.at(tmp_path)
    wrong = pytest.raises(InputError, match=r"documents\[1\] must be an \(id, text\) pair")
    with reranker_over(CountingBackend(), document_tokens=tokens), wrong:
        tokens.add([("a", "red"), "b"])
    assert list(tmp_path.iterdir()) == []
    assert len(tokens) == 0


def _segment(tmp_path):
    tokens = DocumentTokens.at(tmp_path)
    with reranker_over(CountingBackend(), document_tokens=tokens):
        tokens.add([("a", "the red tower"), ("b", "tall")])
    (path,) = tmp_path.iterdir()
    return path


@pytest.mark.parametrize(
    ("at", "what"),
    [(0, "another program's"), (8, "its format is"), (-3, "tables"), (-60, "tables")],
)
def test_a_damaged_file_is_refused_by_name(tmp_path, at, what):
    """At once, where its start or its tables are; the error names file and cure."""
    path = _segment(tmp_path)
    data = bytearray(path.read_bytes())
    data[at] ^= 0x15
    path.write_bytes(data)
    with pytest.raises(ModelError, match=what) as raised:
        DocumentTokens.at(tmp_path)
    assert path.name in str(raised.value)
    assert "build" in str(raised.value)


@pytest.mark.parametrize("size", [0, 40, 70, -1])
def test_a_file_cut_short_is_refused_by_name(tmp_path, size):
    """As a copy that stopped leaves it."""
    path = _segment(tmp_path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ModelError, match=path.name):
        DocumentTokens.at(tmp_path)


def test_damaged_tokens_are_refused_when_they_are_used(tmp_path):
    """Other documents of the file, and other requests, go on."""
    path = _segment(tmp_path)
    data = bytearray(path.read_bytes())
    data[64] ^= 1
    path.write_bytes(data)
    with reranker_over(CountingBackend(), document_tokens=DocumentTokens.at(tmp_path)) as reranker:
        bad = RerankRequest("q", ["the red tower"], ids=["a"])
        good = RerankRequest("q", ["tall"], ids=["b"])
        with pytest.raises(ModelError, match=path.name):
            reranker.rerank_many([bad])
        found = reranker.rerank_many([bad, good], return_exceptions=True)
        assert isinstance(found[0], ModelError)
        assert found[1].indices == [0]


def test_another_tokenizers_tokens_are_refused_by_name(tmp_path):
    """In memory and on disk, another template and another library version too."""
    tokens = DocumentTokens.at(tmp_path)
    with Reranker(document_tokens=tokens):
        tokens.add([("a", "red")])
        with pytest.raises(ConfigError, match="built with this model's tokenizer: they have"):
            reranker_over(CountingBackend(), document_tokens=tokens)
    with pytest.raises(ConfigError, match="tokenizer"):
        reranker_over(CountingBackend(), document_tokens=DocumentTokens.at(tmp_path))

    class Newer:
        def document_facts(self):
            return {**tokens._facts, "tokenizers version": "99"}

        document_ids = None

    with pytest.raises(ConfigError, match=r"tokenizers version: they have .* here it is '99'"):
        DocumentTokens.at(tmp_path).bind(Newer())
    other = DocumentTokens.at(tmp_path / "other")
    with reranker_over(CountingBackend(), document_tokens=other):
        other.add([("a", "red")])
    next((tmp_path / "other").iterdir()).rename(tmp_path / "99999.tokens")
    with pytest.raises(ConfigError, match=r"one tokenizer: .*99999\.tokens"):
        DocumentTokens.at(tmp_path)


def test_pairs_that_are_encoded_whole_are_refused_by_name():
    """So is a template with the document first, whose documents are not read by themselves."""
    options = {"backend": "torch", "device": "cpu", "document_tokens": DocumentTokens.memory()}
    with pytest.raises(ConfigError, match=r"document_tokens must be None .*document first"):
        Reranker(
            str(build("qwen3")),
            template="{document} is it about {query}",
            answers=("yes", "no"),
            **options,
        )


def test_nothing_is_added_before_a_tokenizer_is_known():
    """The error says how it becomes known."""
    with pytest.raises(ConfigError, match="given to a Reranker before documents are added"):
        DocumentTokens.memory().add([("a", "red")])


@pytest.mark.parametrize("wrong", [7, {"path": "x"}, " "])
def test_what_is_no_store_is_refused(wrong):
    """In the core and in both adapters alike."""
    for make in (RerankerConfig, CrossEncoderCompressor, CrossEncoderPostprocessor):
        with pytest.raises(ConfigError, match="document_tokens must be"):
            make(document_tokens=wrong)


def test_ids_are_checked():
    """The index of the one at fault."""
    wrong = pytest.raises(InputError, match=r"ids\[1\] must be a str or None: got 7")
    with reranker_over(CountingBackend()) as reranker, wrong:
        reranker.rerank_many([RerankRequest("q", ["a", "b"], ids=["a", 7])])


def test_both_adapters_pass_ids(read):
    """LangChain's Document.id, LlamaIndex's node_id."""
    tokens = DocumentTokens.memory()
    documents = [Document("the red tower", id="a"), Document("tall", metadata={"x": 1})]
    nodes = [NodeWithScore(node=TextNode(id_="b", text="it is tall"))]
    with CrossEncoderCompressor(document_tokens=tokens) as compressor:
        compressor.warm()
        tokens.add([("a", "the red tower"), ("b", "it is tall")])
        read.clear()
        assert len(compressor.compress_documents(documents, "q")) == 2
        assert "tall" in read
        assert "the red tower" not in read
    with CrossEncoderPostprocessor(document_tokens=tokens) as postprocessor:
        assert len(postprocessor.postprocess_nodes(nodes, query_str="q")) == 1
        assert "it is tall" not in read
    assert (tokens.stats()["hits"], tokens.stats()["misses"]) == (2, 0)


async def test_adapters_cut_no_document_whose_windows_are_kept(read):
    """On every way in: called, awaited, in batches, behind a retriever; metadata before the text.

    Spans are in the content that came, as without stored tokens.
    """
    tokens, options = DocumentTokens.memory(), {"windows": Windows(24, 12), "span_key": "span"}
    long = [Document(text, id=key) for key, text in zip("abcd", LONG, strict=True)]
    node = TextNode(text=LONG[3], id_="n", metadata={"topic": "height"})
    asked, nodes = {"query": QUERY, "documents": long}, [NodeWithScore(node=node)]
    expected = CrossEncoderCompressor(**options).compress_documents(long, QUERY)
    (shown,) = CrossEncoderPostprocessor(**options).postprocess_nodes(nodes, query_str=QUERY)
    with (
        CrossEncoderCompressor(document_tokens=tokens, **options) as compressor,
        CrossEncoderPostprocessor(document_tokens=tokens, **options) as postprocessor,
    ):
        compressor.warm()
        node_text = node.get_content(metadata_mode=MetadataMode.EMBED)
        tokens.add([*zip("abcd", LONG, strict=True), ("n", node_text)])
        retriever = RerankingRetriever(
            base_retriever=RunnableLambda(lambda _: long), compressor=compressor
        )
        read.clear()
        for found in (
            compressor.compress_documents(long, QUERY),
            await compressor.acompress_documents(long, QUERY),
            *compressor.batch([asked]),
            *await compressor.abatch([asked]),
            retriever.invoke(QUERY),
            *await retriever.abatch([QUERY]),
        ):
            assert found == expected
        for found in (
            postprocessor.postprocess_nodes(nodes, query_str=QUERY),
            await postprocessor.apostprocess_nodes(nodes, query_str=QUERY),
            *postprocessor.postprocess_nodes_batch([(QUERY, nodes)]),
            *await postprocessor.apostprocess_nodes_batch([(QUERY, nodes)]),
        ):
            assert [(it.score, it.metadata) for it in found] == [(shown.score, shown.metadata)]
    assert len(shown.metadata["span"]) == 2
    pieces = {text[start : start + 12] for text in LONG for start in range(0, len(text), 12)}
    assert not [text for text in read if any(piece in text for piece in pieces)]
    assert tokens.stats()["window_misses"] == 0


def test_a_live_store_stays_out_of_dumps_pickles_equality_and_sharing():
    """As a cache does; leases with and without share one network, not one view."""
    tokens = DocumentTokens.memory()
    one, two = RerankerConfig(document_tokens=tokens), RerankerConfig()
    assert one == two
    assert hash(one) == hash(two)
    assert "DocumentTokens" not in repr(one)
    assert pickle.loads(pickle.dumps(one)).document_tokens is None
    assert copy.deepcopy(tokens) is tokens
    with pytest.raises(TypeError, match="alive"):
        pickle.dumps(tokens)
    for adapter in (CrossEncoderCompressor, CrossEncoderPostprocessor):
        made = adapter(document_tokens=tokens)
        assert "document_tokens" not in json.dumps(made.model_dump(), default=str)
        assert pickle.loads(pickle.dumps(made)).document_tokens is None
        assert made.model_copy().document_tokens is tokens
    leases = [acquire(it) for it in (one, two)]
    first, second = [lease.get() for lease in leases]
    assert first is not second
    assert len({id(it._caller.queue._admission._engine) for it in (first, second)}) == 1
    for lease in leases:
        lease.close()


def test_deadline_and_cancel_with_a_held_backend():
    """What waits for the device is cancelled, or told in time, as without."""
    backend, tokens = HeldBackend(), DocumentTokens.memory()
    with reranker_over(backend, document_tokens=tokens, cache=ScoreCache.memory(bytes=9999)) as it:
        tokens.add([("a", "red")])
        blocking = it.submit("hold", ["it"])
        assert backend.entered.wait(30)
        with pytest.raises(TimeoutError):
            it.rerank_many([RerankRequest("q", ["red"], ids=["a"])], timeout=0.05)
        until(lambda: it.stats()["queue_pairs"] == 0)
        backend.release.set()
        assert len(blocking.result(30)) == 1
    assert backend.rows == 1, "nobody waited for it any more"


def test_the_command_line_builds(tmp_path, read):
    """From a corpus, without the network; `rerank` reads ids and tokenises no document."""
    corpus = tmp_path / "corpus.jsonl"
    rows = [{"_id": "a", "text": "The tower is 70 m tall."}, {"_id": "b", "text": "It is red."}]
    corpus.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    folder = tmp_path / "tokens"
    result = CliRunner().invoke(app, ["tokens", "build", str(corpus), str(folder), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {"documents": 2, "folder": str(folder)}
    read.clear()
    lines = "\n".join(json.dumps({"id": it["_id"], "text": it["text"]}) for it in rows)
    arguments = ["rerank", "how tall?", "--document-tokens", str(folder), "--json"]
    result = CliRunner().invoke(app, arguments, input=lines)
    assert result.exit_code == 0, result.output
    assert [json.loads(line)["id"] for line in result.stdout.splitlines()] == ["a", "b"]
    assert not {it["text"] for it in rows} & set(read)


def test_the_command_line_builds_windows(tmp_path, read):
    """With the setting that ranks by them; `search` takes none: its passages have no ids."""
    corpus, folder = tmp_path / "corpus.jsonl", str(tmp_path / "tokens")
    row = json.dumps({"_id": "d", "text": LONG[3].strip()})
    corpus.write_text(row, "utf-8")
    cut = ["--windows", "tokens=24,stride=12"]
    result = CliRunner().invoke(app, ["tokens", "build", str(corpus), folder, *cut])
    assert result.exit_code == 0, result.output
    read.clear()
    arguments = ["rerank", QUERY, "--document-tokens", folder, "--json", *cut]
    result = CliRunner().invoke(app, arguments, input=row)
    assert result.exit_code == 0, result.output
    assert not [it for it in read if "The tower is tall" in it]
    result = CliRunner().invoke(app, ["search", QUERY, str(tmp_path), "--document-tokens", folder])
    assert result.exit_code == 2


texts = st.lists(
    st.sampled_from(["", "a", "red", "tower 70", "x " * 90, "\r\n", "é塔"]), max_size=6
)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(requests=st.lists(st.tuples(st.sampled_from(["p", "q"]), texts), max_size=3), data=st.data())
def test_properties(shared, requests, data):
    """However much is stored: numbers, order, ties and duplicates of a run without; one is many."""
    stored, bare = shared
    ids = st.sampled_from([None, "a", "b", "other"])
    asked = [
        RerankRequest(query, documents, ids=[data.draw(ids) for _ in documents])
        for query, documents in requests
    ]
    assert stored.rerank_many(asked) == bare.rerank_many(requests)
    assert [stored.rerank_many([it])[0] for it in asked] == bare.rerank_many(requests)
    backwards = [RerankRequest(it.query, it.documents[::-1], ids=it.ids[::-1]) for it in asked]
    for one, two in zip(stored.rerank_many(backwards), bare.rerank_many(requests), strict=True):
        assert one.scores == two.scores


@pytest.fixture(scope="module")
def shared():
    tokens = DocumentTokens.memory()
    with (
        reranker_over(CountingBackend(), document_tokens=tokens, windows=Windows(40)) as stored,
        reranker_over(CountingBackend(), windows=Windows(40)) as bare,
    ):
        tokens.add([("a", "red"), ("b", "x " * 90), ("other", "é塔")])
        yield stored, bare


def test_evaluate_reads_stored_tokens_by_the_corpus_ids(tmp_path, read):
    """Built once from corpus.jsonl; the measures are the same, and no document is tokenised."""
    corpus = example_folder()
    folder = tmp_path / "tokens"
    built = CliRunner().invoke(app, ["tokens", "build", str(corpus / "corpus.jsonl"), str(folder)])
    assert built.exit_code == 0, built.output
    arguments = ["evaluate", str(corpus), "--rerank-count", "2", "--json", "--device", "cpu"]
    plain = CliRunner().invoke(app, arguments)
    texts = {passage.full_text for passage in passages(corpus)}
    assert texts & set(read), "the check below can fail"
    read.clear()
    stored = CliRunner().invoke(app, [*arguments, "--document-tokens", str(folder)])
    assert json.loads(stored.stdout)["measures"] == json.loads(plain.stdout)["measures"]
    assert not texts & set(read)
