"""Use what is installed: the default model alone, and under both frameworks; print versions."""

# ruff: noqa: INP001  # a script, not a package
from __future__ import annotations

import sys
from importlib.metadata import version

from langchain.agents import create_agent
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, TextNode

from rerank_adapters import Reranker
from rerank_adapters.langchain import CrossEncoderCompressor, RerankingMiddleware
from rerank_adapters.llama_index import CrossEncoderPostprocessor

QUERY, TEXTS = "how tall is the tower", ["bread and butter", "the tower is 70 m tall"]

with Reranker() as reranker:
    ranking = reranker.rerank(QUERY, TEXTS)
    middleware = RerankingMiddleware(reranker=reranker)
if ranking.indices != [1, 0] or not callable(create_agent) or not middleware.name:
    raise SystemExit(f"wrong: {ranking!r}")
(document,) = CrossEncoderCompressor(top_n=1).compress_documents(map(Document, TEXTS), QUERY)
nodes = [NodeWithScore(node=TextNode(text=text)) for text in TEXTS]
(node,) = CrossEncoderPostprocessor(top_n=1).postprocess_nodes(nodes, query_str=QUERY)
for score in (document.metadata["relevance_score"], node.score):
    if abs(score - ranking[0].score) > 1e-6:  # int8: bit for bit, in any batch
        raise SystemExit(f"wrong: {score} is not {ranking[0].score}")
names = ("numpy", "tokenizers", "onnxruntime", "huggingface_hub", "langchain-core", "langchain")
names += ("llama-index-core", "typer", "rich")
sys.stdout.write(f"{sys.version.split()[0]}: {', '.join(f'{it} {version(it)}' for it in names)}\n")
