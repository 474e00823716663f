"""Where the answer stands: in metadata, as a passage of its own, and marked in the terminal."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from langchain_core.documents import Document
from langchain_core.load import dumps
from llama_index.core.callbacks import CallbackManager
from llama_index.core.schema import MetadataMode, NodeWithScore, TextNode
from typer.testing import CliRunner

from rerank_adapters import ConfigError, InputError, Reranker, ScoreCache, Windows
from rerank_adapters.adapter_fields import in_body
from rerank_adapters.cli.app import app
from rerank_adapters.cli.options import mapping
from rerank_adapters.langchain import CrossEncoderCompressor
from rerank_adapters.llama_index import CrossEncoderPostprocessor
from rerank_adapters.testing import ranker_from

QUERY = "how tall is the Eiffel tower?"
FILLER = "The committee met on Tuesday and discussed the budget for roads. "
ANSWER = "The Eiffel tower is 330 metres tall, measured to the tip."
BODY = FILLER * 12 + ANSWER + " " + FILLER * 9
WINDOWS = {"tokens": 64, "stride": 32}


@pytest.mark.parametrize("awaited", [False, True])
def test_langchain_writes_the_span_in_the_content(awaited: bool):
    """Metadata that are scored before it are taken off; the input stays as it was."""
    document = Document(BODY, metadata={"title": "Towers of iron", "kept": 1}, id="7")
    made = CrossEncoderCompressor(windows=WINDOWS, span_key="span", rank_fields=["title"])
    assert made.windows == Windows(64, 32)

    def ask(**overrides):
        if awaited:
            return asyncio.run(made.acompress_documents([document], QUERY, **overrides))
        return made.compress_documents([document], QUERY, **overrides)

    (found,) = ask()
    start, end = found.metadata["span"]
    assert BODY.index(ANSWER) >= start
    assert BODY.index(ANSWER) + len(ANSWER) <= end
    assert found.page_content == BODY
    assert json.loads(json.dumps(found.metadata))["span"] == [start, end]
    (passage,) = ask(return_passages=True, span_key=None)
    assert passage.page_content == BODY[start:end]
    assert (passage.id, "span" in passage.metadata) == ("7", False)
    assert document == Document(BODY, metadata={"title": "Towers of iron", "kept": 1}, id="7")
    (plain,) = ask(span_key=None)
    assert "span" not in plain.metadata
    made.close()


def test_a_span_in_what_stands_before_is_clipped():
    """Of a window over both only the content's part; of one over metadata alone nothing."""
    assert in_body((3, 20), 10, 50) == (0, 10)
    assert in_body((0, 10), 10, 50) is None
    assert in_body((30, 90), 10, 50) == (20, 50)
    assert in_body(None, 0, 5) is None


@pytest.mark.parametrize("metadata", [{}, {"title": "Towers of iron"}, {"notes": "long " * 300}])
@pytest.mark.parametrize("awaited", [False, True])
def test_llama_index_writes_the_span_in_the_text(metadata: dict, awaited: bool):
    """Metadata before or after the body; new nodes of the same ids for passages."""
    node = TextNode(
        text=BODY, metadata=metadata, start_char_idx=1000, end_char_idx=1000 + len(BODY)
    )
    given = [NodeWithScore(node=node, score=0.3)]
    before = node.model_copy(deep=True)

    def ask(**fields):
        made = CrossEncoderPostprocessor(windows=WINDOWS, **fields)
        if awaited:
            return asyncio.run(made.apostprocess_nodes(given, query_str=QUERY))
        return made.postprocess_nodes(given, query_str=QUERY)

    (found,) = ask(span_key="span")
    start, end = found.node.metadata["span"]
    assert start <= BODY.index(ANSWER) < BODY.index(ANSWER) + len(ANSWER) <= end
    assert "span" not in found.node.get_content(metadata_mode=MetadataMode.LLM)[:40]
    assert found.node.node_id == node.node_id
    (passage,) = ask(return_passages=True)
    assert passage.node.get_content(metadata_mode=MetadataMode.NONE) == BODY[start:end]
    assert passage.node.node_id == node.node_id
    assert (passage.node.start_char_idx, passage.node.end_char_idx) == (1000 + start, 1000 + end)
    assert passage.node is not node
    assert node == before


@pytest.mark.parametrize("adapter", [CrossEncoderCompressor, CrossEncoderPostprocessor])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"span_key": "span"}, "span_key tells where"),
        ({"return_passages": True}, "return_passages tells where"),
    ],
)
def test_a_text_of_ones_own_has_no_place_in_the_content(adapter, fields: dict, message: str):
    """The same ConfigError in both, and for a call the same words as an InputError."""
    with pytest.raises(ConfigError, match=message):
        adapter(text_fn=lambda given: "x", **fields)
    with pytest.raises(ConfigError, match="span_key must be a non-empty str"):
        adapter(span_key="")
    with pytest.raises(ConfigError, match="return_passages must be True or False"):
        adapter(return_passages=1)


def test_a_call_may_not_mix_them_either():
    """An argument of a call is an InputError."""
    made = CrossEncoderCompressor(text_fn=lambda document: "x")
    with pytest.raises(InputError, match="span_key tells where"):
        made.compress_documents([Document("a")], "q", span_key="span")


def test_without_windows_nothing_is_written():
    """There is no passage then: the document is as it was, its score beside it."""
    ranker = ranker_from(lambda query, document: float(len(document)))
    made = CrossEncoderCompressor(reranker=ranker, span_key="span", return_passages=True)
    (found,) = made.compress_documents([Document(FILLER)], "q")
    assert found.page_content == FILLER
    assert set(found.metadata) == {"relevance_score"}


@pytest.mark.parametrize("adapter", [CrossEncoderCompressor, CrossEncoderPostprocessor])
def test_a_live_cache_is_in_no_dump_and_no_comparison(adapter):
    """Windows are saved and compared, a cache is not; a copy uses the same one."""
    cache = ScoreCache.memory(bytes=1000)
    manager = {"callback_manager": CallbackManager()}  # LlamaIndex compares it too
    fields = manager if adapter is CrossEncoderPostprocessor else {}
    one = adapter(windows=WINDOWS, cache=cache, **fields)
    two = adapter(windows=WINDOWS, **fields)
    assert one == two
    assert one != adapter(**fields)
    assert "cache" not in one.model_dump()
    assert "ScoreCache" not in repr(one)
    assert one.model_copy().cache is cache
    saved = json.loads(two.model_dump_json(exclude_none=True))
    saved.pop("class_name", None)  # LlamaIndex's own from_dict takes it out too
    assert adapter.model_validate(saved).windows == two.windows
    if adapter is CrossEncoderCompressor:
        assert "ScoreCache" not in dumps(one)
        assert json.loads(dumps(one))["kwargs"]["windows"]["stride"] == 32
    else:
        assert "ScoreCache" not in one.to_json()


def run(*arguments: str) -> str:
    """What the command prints."""
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_search_marks_the_passage(tmp_path: Path):
    """The span is in the JSON, and between marks in what people read."""
    (tmp_path / "notes.txt").write_text(FILLER * 4 + ANSWER + " " + FILLER * 4)
    options = ("--windows", "tokens=24,stride=12", "--cache", "bytes=100000")
    report = json.loads(run("search", QUERY, str(tmp_path), "--json", *options))
    best = report["results"][0]
    assert ANSWER[:30] in best["text"][slice(*best["span"])]
    shown = run("search", QUERY, str(tmp_path), *options)
    marked = " ".join(shown[shown.index("»") : shown.index("«")].replace("│", " ").split())
    assert ANSWER[:30] in marked
    assert "»" not in run("search", QUERY, str(tmp_path))


def test_options_that_belong_together_are_one_word():
    """Pairs or JSON; what is neither is refused by its name."""
    assert mapping("--windows", "tokens=8, aggregate=max") == {"tokens": 8, "aggregate": "max"}
    assert mapping("--cache", '{"bytes": 5, "ttl": 1.5}') == {"bytes": 5, "ttl": 1.5}
    assert mapping("--cache", None) is None
    with pytest.raises(ConfigError, match="--windows must be key=value"):
        mapping("--windows", "256")
    with pytest.raises(ConfigError, match="--windows must be a JSON object"):
        mapping("--windows", "{256")


def test_the_first_line_of_a_reranker_is_told_its_span():
    """`to_dicts` carries it for JSON."""
    with Reranker(windows=WINDOWS) as reranker:
        (row,) = reranker.rerank(QUERY, [BODY]).to_dicts()
    assert ANSWER in BODY[slice(*row["span"])]
