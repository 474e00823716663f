"""The migration page says what is true: names exist, and old and new rank alike."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.llms import CompletionResponse, CustomLLM, LLMMetadata
from llama_index.core.postprocessor import LLMRerank, SentenceTransformerRerank

from rerank_adapters.llama_index import CrossEncoderPostprocessor
from tests.checkpoints import build, oracle
from tests.exported import exported
from tests.llama_index_adapter.examples import QUERY, TEXTS, nodes, outcome

PAGE = (Path(__file__).parents[2] / ".docs" / "migration-llama-index.md").read_text("utf-8")
FIELDS = set(CrossEncoderPostprocessor.model_fields)
MORE_TEXTS = [*TEXTS, "Winter in Mongolia is long and cold.", "wine ? " * 60, "日本語 and rain 🙂"]


@pytest.mark.parametrize("backend", ["torch", "onnx"])
@pytest.mark.parametrize("metadata", [{}, {"source": "the handbook of the foundation"}])
def test_old_and_new_rank_alike(backend: str, metadata: dict[str, str]):
    """Same checkpoint: SentenceTransformerRerank's order, and its scores within 1e-4 (float32)."""
    folder = build("bert") if backend == "torch" else exported("bert")
    old = SentenceTransformerRerank(model=str(build("bert")), top_n=7, device="cpu")
    new = CrossEncoderPostprocessor(
        model=str(folder), backend=backend, dtype="float32", top_n=7, device="cpu", max_length=512
    )
    before = old.postprocess_nodes(nodes(MORE_TEXTS, **metadata), query_str=QUERY)
    after = new.postprocess_nodes(nodes(MORE_TEXTS, **metadata), query_str=QUERY)
    assert [it.node_id for it in after] == [it.node_id for it in before]
    np.testing.assert_allclose(
        [it.score for it in after], [it.score for it in before], rtol=0, atol=1e-4
    )


def section(title: str) -> list[tuple[str, str]]:
    """The first two columns of the table under *title*."""
    text = PAGE.split(f"## From `{title}`")[1].split("\n## ")[0]
    rows = [line.split("|")[1:3] for line in text.splitlines() if line.startswith("| ")]
    return [(old.strip(), new.strip()) for old, new in rows if old.strip() != "before"]


@pytest.mark.parametrize("old_class", [SentenceTransformerRerank, LLMRerank])
def test_a_table_has_every_argument_of_the_old_class(old_class: type):
    """No argument of core's classes is missing from the page."""
    named = {re.match(r"`(\w+)", old)[1] for old, _ in section(old_class.__name__)}
    arguments = inspect.signature(old_class.__init__).parameters
    assert set(arguments) - {"self"} <= named


TITLES = (
    *("SentenceTransformerRerank", "FlagEmbeddingReranker", "FlashRankRerank"),
    *("ColbertRerank", "LLMRerank", "CohereRerank", "JinaRerank"),
)


@pytest.mark.parametrize("title", TITLES)
def test_every_new_name_is_a_field(title: str):
    """What the right column names is a field of CrossEncoderPostprocessor, with the value shown."""
    rows = section(title)
    assert len(rows) >= 3
    assert {re.match(r"`(\w+)", new)[1] for _, new in rows} <= FIELDS
    for _, new in rows:
        for shown in re.findall(r"`(\w+=[\"\w/.()-]+)`", new):
            call = ast.parse(f"f({shown})", mode="eval").body
            if all(isinstance(it.value, ast.Constant) for it in call.keywords):
                fields = {it.arg: it.value.value for it in call.keywords}
                made = CrossEncoderPostprocessor(**fields)
                assert {name: getattr(made, name) for name in fields} == fields


# What a row's field does not say itself, such that the scores stay what they are.
SAMPLES: dict[str, Any] = {
    "keep_retrieval_score": True,
    "trust_remote_code": False,
    "cache_folder": "/nowhere",
    "revision": "main",
    "token": "hf_of_nobody",
    "max_length": 128,
    "max_batch_tokens": 64,
    "on_error": "keep",
    "activation": "identity",
    "text_fn": lambda node: node.get_content(),
    "device": "cpu",
    "top_n": 3,
}
FIXED = {"model", "backend", "dtype", "prompt"}  # the oracle's; of prompts test_nodes.py tells
ROWS = [
    (title, name)
    for title in TITLES
    for name in dict.fromkeys(re.match(r"`(\w+)", new)[1] for _, new in section(title))
    if name not in FIXED
]


@pytest.mark.parametrize(("title", "name"), ROWS)
def test_each_row_reranks(title: str, name: str):
    """With the field set, the order and numbers are sentence-transformers' of the same weights."""
    fields = {"model": str(exported("bert")), "backend": "onnx", "dtype": "float32", "top_n": None}
    made = CrossEncoderPostprocessor(**{**fields, name: SAMPLES[name]}, metadata_mode="none")
    found = outcome(made.postprocess_nodes(nodes(), query_str=QUERY))
    expected = oracle(build("bert"), [(QUERY, text) for text in TEXTS])
    order = np.argsort(-expected, kind="stable")[: made.top_n]
    assert [node_id for node_id, _ in found] == [f"node-{index}" for index in order]
    np.testing.assert_allclose([it for _, it in found], expected[order], rtol=0, atol=1e-4)


class Grading(CustomLLM):
    """Answers an LLMRerank with the documents and grades that it was made with."""

    grades: dict[int, int]

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata()

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return CompletionResponse(
            text="\n".join(f"Doc: {n + 1}, Relevance: {it}" for n, it in self.grades.items())
        )

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> None:
        raise NotImplementedError


def test_llm_rerank_and_its_successor_choose_alike():
    """Both keep top_n in the order of their scores; only ours keeps nodes that no answer named."""
    ours = CrossEncoderPostprocessor(model=str(exported("bert")), backend="onnx", top_n=3)
    after = ours.postprocess_nodes(nodes(), query_str=QUERY)
    order = [int(it.node_id.removeprefix("node-")) for it in after]
    grades = {order[0]: 9, order[1]: 5}  # what a language model that left one out would say
    before = LLMRerank(llm=Grading(grades=grades), top_n=3).postprocess_nodes(
        nodes(), query_str=QUERY
    )
    assert [it.node_id for it in before] == [it.node_id for it in after[:2]]
    assert len(after) == 3


def test_what_replaces_retries_and_prompts_runs():
    """Rows of Cohere, Colbert and LLMRerank: a failure keeps nodes, `text_fn`, the old score."""
    kept = CrossEncoderPostprocessor(model="/no/such/folder", on_error="keep", top_n=2)
    result = kept.postprocess_nodes(nodes(), query_str=QUERY)
    assert [(it.node_id, it.score) for it in result] == [("node-0", None), ("node-1", None)]
    fields = {"model": str(exported("bert")), "backend": "onnx", "top_n": 1}
    given = [it for it in nodes() if it.node_id == "node-2"]
    (scored,) = CrossEncoderPostprocessor(**fields, keep_retrieval_score=True).postprocess_nodes(
        given, query_str=QUERY
    )
    assert scored.metadata["retrieval_score"] == given[0].score
    (formatted,) = CrossEncoderPostprocessor(
        **fields, text_fn=lambda node: node.get_content().upper()
    ).postprocess_nodes(given, query_str=QUERY)
    assert formatted.score != scored.score


def test_the_examples_can_be_made():
    """Every call of the page is constructed with its own arguments."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    calls = [
        node
        for block in blocks
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.Call) and node.func.id == "CrossEncoderPostprocessor"
    ]
    assert len(calls) == 7
    for call in calls:
        CrossEncoderPostprocessor(**{it.arg: ast.literal_eval(it.value) for it in call.keywords})
