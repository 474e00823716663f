"""On the example corpus: reranking BM25 raises what RetrieverEvaluator measures."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest
from llama_index.core.evaluation import RetrieverEvaluator
from llama_index.core.schema import TextNode
from llama_index.retrievers.bm25 import BM25Retriever

from rerank_adapters.llama_index import CrossEncoderPostprocessor

CORPUS = Path(__file__).parents[2] / "notebooks" / "corpus"
CANDIDATES = 30
MARGIN = 0.02
"""By how much nDCG@10 must rise over BM25's, at least.

A floor for every bundled model: half of what the first one gained.
"""


def passages() -> list[TextNode]:
    lines = (CORPUS / "corpus.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [TextNode(id_=row["_id"], text=f"{row['title']}. {row['text']}") for row in rows]


def questions() -> list[tuple[str, list[str]]]:
    """(question, ids of its relevant passages), of either grade: LlamaIndex's nDCG is binary."""
    relevant = defaultdict(list)
    for line in (CORPUS / "qrels.tsv").read_text("utf-8").splitlines()[1:]:
        question, passage, _ = line.split("\t")
        relevant[question].append(passage)
    lines = (CORPUS / "queries.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [(row["text"], relevant[row["_id"]]) for row in rows]


async def mean_ndcg(evaluator: RetrieverEvaluator) -> float:
    results = [
        await evaluator.aevaluate(question, expected_ids=relevant)
        for question, relevant in questions()
    ]
    return sum(result.metric_vals_dict["ndcg"] for result in results) / len(results)


@pytest.mark.usefixtures("mocks")
async def test_reranking_raises_ndcg_over_bm25():
    """§5.11: nDCG@10 of BM25's first 30, reranked by the bundled model, is higher by MARGIN."""
    stored = passages()
    ten, thirty = (
        BM25Retriever.from_defaults(nodes=stored, similarity_top_k=count)
        for count in (10, CANDIDATES)
    )
    bm25 = RetrieverEvaluator.from_metric_names(["ndcg"], retriever=ten)
    with CrossEncoderPostprocessor(top_n=10) as postprocessor:
        reranked = RetrieverEvaluator.from_metric_names(
            ["ndcg"], retriever=thirty, node_postprocessors=[postprocessor]
        )
        before, after = await mean_ndcg(bm25), await mean_ndcg(reranked)
    assert len(questions()) == 45
    assert after >= before + MARGIN, f"BM25 {before:.3f}, reranked {after:.3f}"
