"""Each row of .docs/migration-sentence-transformers.md is true: both cells give the same result."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder

from rerank_adapters import Ranking, Reranker
from tests.checkpoints import PAIRS, build

PAGE = Path(__file__).parents[1] / ".docs" / "migration-sentence-transformers.md"
ROWS = re.findall(r"^\| `(.+?)` \| `(.+?)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
CLOSE = 1e-4  # law 1


def test_the_page_has_rows() -> None:
    """The table is read, and there are rows of loading, scoring and ranking in it."""
    assert len(ROWS) > 20


@pytest.fixture(scope="module")
def names():
    """What the page's cells may use."""
    name = str(build("bert"))
    texts = list(dict.fromkeys(text for _, text in PAIRS if text.strip()))[:9]
    queries = list(dict.fromkeys(query for query, _ in PAIRS))[:3]
    with Reranker.from_pretrained(name, device="cpu") as reranker:
        yield {
            "asyncio": asyncio, "torch": torch, "CrossEncoder": CrossEncoder, "Reranker": Reranker,
            "name": name, "two_labels": str(build("bert_two_labels")), "queries": queries,
            "texts": texts, "pairs": [(queries[0], text) for text in texts],
            "model": CrossEncoder(name, device="cpu"), "reranker": reranker,
        }  # fmt: skip


@pytest.mark.parametrize(("before", "after"), ROWS)
def test_both_cells_give_the_same(before: str, after: str, names) -> None:
    """The old expression and the new one, on the same checkpoint and texts."""
    old, new = (_plain(eval(cell, dict(names)), names) for cell in (before, after))
    if isinstance(old, list) and old and isinstance(old[0], str):
        assert old == new
    else:
        np.testing.assert_allclose(np.array(new), np.array(old), rtol=0, atol=CLOSE)


def _plain(value, names):
    """Numbers or texts: what a value scores, ranks or holds."""
    if isinstance(value, CrossEncoder):
        return value.predict(names["pairs"])
    if isinstance(value, Reranker):
        with value:
            return value.score_pairs(names["pairs"])
    if isinstance(value, torch.Tensor):
        return value.numpy()
    if isinstance(value, Ranking):
        return [(document.index, document.score) for document in value]
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [(row["corpus_id"], row["score"]) for row in value]
    if isinstance(value, list) and value and isinstance(value[0], list | Ranking):
        return [_plain(ranking, names) for ranking in value]
    return value
