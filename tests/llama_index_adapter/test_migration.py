"""The migration page says what is true: names exist, and old and new rank alike."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import numpy as np
import pytest
from llama_index.core.postprocessor import SentenceTransformerRerank

from rerank_adapters.llama_index import CrossEncoderPostprocessor
from tests.checkpoints import build
from tests.exported import exported
from tests.llama_index_adapter.examples import QUERY, TEXTS, nodes

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


def test_the_first_table_has_every_argument_of_the_old_class():
    """No argument of core's class is missing from the page."""
    named = {re.match(r"`(\w+)", old)[1] for old, _ in section("SentenceTransformerRerank")}
    assert set(inspect.signature(SentenceTransformerRerank).parameters) <= named


@pytest.mark.parametrize(
    "title", ["SentenceTransformerRerank", "FlagEmbeddingReranker", "FlashRankRerank"]
)
def test_every_new_name_is_a_field(title: str):
    """What the right column names is a field of CrossEncoderPostprocessor."""
    rows = section(title)
    assert len(rows) >= 4
    assert {re.match(r"`(\w+)", new)[1] for _, new in rows} <= FIELDS


def test_the_examples_can_be_made():
    """Every call of the page is constructed with its own arguments."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    calls = [
        node
        for block in blocks
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.Call) and node.func.id == "CrossEncoderPostprocessor"
    ]
    assert len(calls) == 3
    for call in calls:
        CrossEncoderPostprocessor(**{it.arg: ast.literal_eval(it.value) for it in call.keywords})
