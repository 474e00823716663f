"""The bundled model through the adapters: no arguments, no network, better than BM25."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import bm25s
import ir_measures
import pytest
from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda

from rerank_adapters.langchain import CrossEncoderCompressor, RerankingRetriever

CORPUS = Path(__file__).parents[2] / "notebooks" / "corpus"
CANDIDATES = 10


def lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (CORPUS / name).read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def bm25() -> RunnableLambda[str, list[Document]]:
    """The corpus's first stage, as its README describes it."""
    passages = lines("corpus.jsonl")
    index = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    index.index(tokens([f"{p['title']} {p['text']}" for p in passages]), show_progress=False)

    def search(query: str) -> list[Document]:
        best, _ = index.retrieve(tokens([query]), k=CANDIDATES, show_progress=False)
        return [
            Document(id=p["_id"], page_content=p["text"], metadata={"title": p["title"]})
            for p in (passages[row] for row in best[0])
        ]

    return RunnableLambda(search)


def tokens(texts: list[str]) -> Any:
    return bm25s.tokenize(texts, stopwords="en", show_progress=False)


def ndcg(queries: list[dict[str, Any]], found: list[list[Document]]) -> float:
    """Mean nDCG@10; the order that came back is the ranking."""
    rows = [line.split() for line in (CORPUS / "qrels.tsv").read_text("utf-8").splitlines()[1:]]
    asked = {query["_id"] for query in queries}
    qrels = [ir_measures.Qrel(q, d, int(grade)) for q, d, grade in rows if q in asked]
    run = [
        ir_measures.ScoredDoc(query["_id"], str(document.id), -float(rank))
        for query, documents in zip(queries, found, strict=True)
        for rank, document in enumerate(documents)
    ]
    return float(
        ir_measures.calc_aggregate([ir_measures.nDCG @ 10], qrels, run)[ir_measures.nDCG @ 10]
    )


def test_it_ranks_better_than_bm25(bm25: RunnableLambda[str, list[Document]]) -> None:
    """nDCG@10 over 20 questions, 10 candidates each, titles scored along: above the first stage's.

    Measured: 0.758 against 0.712; a margin of 0.02 leaves room for a retrained model.
    """
    queries = lines("queries.jsonl")[:20]
    texts = [query["text"] for query in queries]
    retriever = RerankingRetriever(base_retriever=bm25, top_n=None, rank_fields=["title"])
    assert ndcg(queries, retriever.batch(texts)) >= ndcg(queries, bm25.batch(texts)) + 0.02


async def test_no_argument_is_needed(bm25: RunnableLambda[str, list[Document]]) -> None:
    """The plain constructor: three documents, and scores that are probabilities."""
    query = "What does ternkit.gaps() return?"
    compressor = CrossEncoderCompressor()
    found = await compressor.acompress_documents(bm25.invoke(query), query)
    scores = [document.metadata["relevance_score"] for document in found]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)


def test_it_runs_without_torch() -> None:
    """The default model needs neither torch nor transformers."""
    script = """
import sys
from langchain_core.documents import Document
from rerank_adapters.langchain import CrossEncoderCompressor
CrossEncoderCompressor().compress_documents([Document("rain")], "sky")
print("torch" in sys.modules, "transformers" in sys.modules)
"""
    command = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "False False\n", done.stderr
