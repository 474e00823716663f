"""The migration page: old and new side by side on one checkpoint, and its examples run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers
from langchain_classic.retrievers import ContextualCompressionRetriever, MultiQueryRetriever
from langchain_classic.retrievers.document_compressors import (
    CrossEncoderReranker,
    DocumentCompressorPipeline,
)
from langchain_core.cross_encoders import BaseCrossEncoder
from langchain_core.language_models import FakeListLLM
from langchain_core.messages import AIMessage

from rerank_adapters import RerankerConfig
from rerank_adapters.langchain import CrossEncoderCompressor, RerankingRetriever
from tests import checkpoints
from tests.langchain_adapter.samples import (
    KEY,
    QUERIES,
    TEXTS,
    TOLERANCE,
    ListRetriever,
    best,
    documents,
    ids,
    scores,
)
from tests.langchain_adapter.test_arguments import Reversed, Tenants
from tests.langchain_adapter.test_middleware import ScriptedModel, calls

PAGE = Path(__file__).parents[2] / ".docs" / "migration-langchain.md"
EXAMPLES = re.findall(
    r"^(Before|After|Or, [^\n]*):\n\n```python\n(.*?)```$",
    PAGE.read_text(),
    re.MULTILINE | re.DOTALL,
)


class OldCrossEncoder(BaseCrossEncoder):
    """HuggingFaceCrossEncoder of langchain-community 0.4.2, as far as models of one label go."""

    def __init__(self, model_name: str, **model_kwargs: Any) -> None:
        self.client = sentence_transformers.CrossEncoder(model_name, **model_kwargs)

    def score(self, text_pairs: list[tuple[str, str]]) -> list[float]:
        return list(self.client.predict(text_pairs, show_progress_bar=False))


@pytest.fixture(scope="module")
def old() -> OldCrossEncoder:
    return OldCrossEncoder(str(checkpoints.build("bert")), device="cpu", local_files_only=True)


@pytest.mark.parametrize("query", QUERIES)
def test_old_and_new_give_the_same(old: OldCrossEncoder, model: str, query: str) -> None:
    """CrossEncoderReranker under ContextualCompressionRetriever, and RerankingRetriever."""
    base = ListRetriever(found=documents())
    before = ContextualCompressionRetriever(
        base_compressor=CrossEncoderReranker(model=old, top_n=len(TEXTS)), base_retriever=base
    )
    after = RerankingRetriever(
        base_retriever=base, model=model, backend="onnx", device="cpu", top_n=len(TEXTS)
    )
    was, found = before.invoke(query), after.invoke(query)
    assert ids(found) == ids(was)
    pairs = [(query, document.page_content) for document in was]
    np.testing.assert_allclose(scores(found), old.score(pairs), atol=TOLERANCE)
    # What the old one leaves out.
    assert all(KEY not in document.metadata for document in was)


def test_every_new_name_on_the_page_exists() -> None:
    """Each `name=` in a table's right column is a field of ours."""
    rows = re.findall(r"^\|.*?\| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"\b([a-z_]+)=", row)}
    assert "score_threshold" in named
    fields = set(RerankingRetriever.model_fields) | set(RerankerConfig.__dataclass_fields__)
    assert named <= fields | {"tenant", "update"}  # a search's own argument, and pydantic's


def test_the_page_has_its_examples() -> None:
    """Three classes and an agent before and after, and the one-line change."""
    assert [title.partition(",")[0] for title, _ in EXAMPLES] == [
        *("Before", "After", "Or"),
        *("Before", "After") * 3,
    ]


@pytest.mark.parametrize("code", [code for title, code in EXAMPLES if title != "Before"])
def test_the_page_s_examples_run(code: str, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every "after" returns documents with scores, or classic's reranker returns documents."""
    named = re.sub(r'"BAAI/bge-reranker-base"', repr(model), code)
    assert "BAAI" not in named
    if "model=" not in code:
        named = named.replace(
            "CrossEncoderCompressor(", f"CrossEncoderCompressor(model={model!r}, "
        )
        named = named.replace("score_threshold=0.5", "score_threshold=-9.0")
    space: dict[str, Any] = {
        "retriever": ListRetriever(found=documents()),
        "documents": documents(),
        "llm": ScriptedModel(messages=iter([calls("search"), AIMessage("done")])),
    }
    exec(compile(named, str(PAGE), "exec"), space)
    assert len(space["found"]) == 3
    compressor = space.get("compressor")
    if isinstance(compressor, CrossEncoderCompressor):
        assert {type(d.metadata[compressor.score_key]) for d in space["found"]} == {float}


def rows_of(section: str) -> list[tuple[str, str]]:
    """Both cells of each row of code in the table under that heading."""
    text = PAGE.read_text().partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| `(.*?)`[^|]* \| `(.*?)` \|$", text, re.MULTILINE)


SITUATIONS = rows_of("Situations")
CONSTRUCTORS = [after for _, after in rows_of("Jina, Voyage, NVIDIA, OpenVINO, LLMListwiseRerank")]


@pytest.fixture
def names(old: OldCrossEncoder, ready: Any, model: str) -> dict[str, Any]:
    """What the cells of the tables may use."""
    compressor = CrossEncoderCompressor(reranker=ready)
    return {
        "base": ListRetriever(found=documents()), "tenants": Tenants(seen=[]), "model": model,
        "classic": CrossEncoderReranker(model=old, top_n=3), "compressor": compressor,
        "pipeline": DocumentCompressorPipeline(transformers=[compressor, Reversed()]),
        "llm": lambda: FakeListLLM(responses=[f"{QUERIES[0]}\nwhy, then, is it blue"]),
        "query": QUERIES[0], "documents": documents(),
        "ContextualCompressionRetriever": ContextualCompressionRetriever,
        "MultiQueryRetriever": MultiQueryRetriever, "RerankingRetriever": RerankingRetriever,
        "CrossEncoderCompressor": CrossEncoderCompressor,
    }  # fmt: skip


@pytest.mark.parametrize(("before", "after"), SITUATIONS)
def test_both_cells_give_the_same_documents(before: str, after: str, names: dict[str, Any]) -> None:
    """Ids in order, of the old expression and of the new one."""
    assert ids(eval(after, dict(names))) == ids(eval(before, dict(names)))


@pytest.mark.parametrize("cell", CONSTRUCTORS)
def test_each_constructor_of_the_last_table_reranks(cell: str, names: dict[str, Any]) -> None:
    """sentence-transformers' best two, cut where the row cuts, with scores unless left out."""
    compressor = eval(cell, names)
    pairs = [(QUERIES[0], text) for text in TEXTS]
    expected = checkpoints.oracle(
        checkpoints.build("bert"), pairs, max_length=compressor.max_length
    )
    found = compressor.compress_documents(documents(), QUERIES[0])
    assert ids(found) == best(expected, 2)
    if "score_key=None" in cell:
        assert all(KEY not in one.metadata for one in found)
    else:
        np.testing.assert_allclose(scores(found), -np.sort(-expected)[:2], atol=TOLERANCE)


def test_the_last_tables_have_their_rows() -> None:
    """Five situations and five vendors."""
    assert (len(SITUATIONS), len(CONSTRUCTORS)) == (5, 5)
