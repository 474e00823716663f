"""LlamaIndex: SentenceTransformerRerank beside CrossEncoderPostprocessor, on the same weights.

    python tests/benchmarks/llama_index_adapter.py [--rounds 5] [--model FOLDER] [--nodes 50]

(a) one query with 50 nodes, (b) 32 concurrent aquery with 5 nodes each. The model is the bundled
one unless a local folder is named. Prints Markdown; machines are noisy, so read the ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Callable
from pathlib import Path

from llama_index.core import MockEmbedding, Settings
from llama_index.core.llms import MockLLM
from llama_index.core.postprocessor import SentenceTransformerRerank
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from texts import QUERY, documents, machine, medians

from rerank_adapters.llama_index import CrossEncoderPostprocessor
from rerank_adapters.loading import bundled

QUERIES = 32
NODES_PER_QUERY = 5


class Stored(BaseRetriever):
    """Fresh nodes for every query, each query its own part of the texts."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts
        super().__init__()

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        start = int(query_bundle.query_str.split()[-1]) * NODES_PER_QUERY
        return nodes(self.texts[start : start + NODES_PER_QUERY])


def nodes(texts: list[str]) -> list[NodeWithScore]:
    return [NodeWithScore(node=TextNode(text=text), score=0.5) for text in texts]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="default")
    parser.add_argument("--nodes", type=int, default=50)
    options = parser.parse_args()
    # LlamaIndex's engines ask for these even where no model answers.
    Settings.llm, Settings.embed_model = MockLLM(), MockEmbedding(embed_dim=8)
    with tempfile.TemporaryDirectory() as cache:
        torch_folder = bundled.unpack(cache) if options.model == "default" else options.model
        rerankers = _rerankers(options.model, str(torch_folder))
        print(f"# LlamaIndex\n\n{machine()}\n")
        texts = documents(options.nodes)
        one = {name: _one_query(it, texts) for name, it in rerankers.items()}
        _table(f"One query, {options.nodes} nodes", medians(one, rounds=options.rounds))
        many_texts = documents(QUERIES * NODES_PER_QUERY, seed=1)
        many = {name: _many_queries(it, many_texts) for name, it in rerankers.items()}
        title = f"{QUERIES} concurrent aquery, {NODES_PER_QUERY} nodes each"
        _table(title, medians(many, rounds=options.rounds))


def _rerankers(model: str, torch_folder: str) -> dict[str, BaseNodePostprocessor]:
    found: dict[str, BaseNodePostprocessor] = {
        "SentenceTransformerRerank": SentenceTransformerRerank(
            model=torch_folder, top_n=5, device="cpu", trust_remote_code=False
        ),
        "ours, torch float32": CrossEncoderPostprocessor(
            model=torch_folder, top_n=5, device="cpu", backend="torch", dtype="float32"
        ),
    }
    if model == "default" or any(Path(model).rglob("*.onnx")):
        for dtype in ("float32", "int8"):
            found[f"ours, onnx {dtype}"] = CrossEncoderPostprocessor(
                model=model, top_n=5, device="cpu", backend="onnx", dtype=dtype
            )
    return found


def _one_query(it: BaseNodePostprocessor, texts: list[str]) -> Callable[[], object]:
    # Fresh nodes: upstream writes its scores into those it is given.
    return lambda: it.postprocess_nodes(nodes(texts), query_str=QUERY)


def _many_queries(it: BaseNodePostprocessor, texts: list[str]) -> Callable[[], object]:
    engine = RetrieverQueryEngine.from_args(
        Stored(texts), node_postprocessors=[it], response_mode="no_text"
    )

    async def together() -> None:
        await asyncio.gather(*(engine.aquery(f"{QUERY} {number}") for number in range(QUERIES)))

    return lambda: asyncio.run(together())


def _table(title: str, seconds: dict[str, float]) -> None:
    base = next(iter(seconds.values()))
    print(f"## {title}\n\n| | median ms | x SentenceTransformerRerank |\n|---|---|---|")
    for name, value in seconds.items():
        print(f"| {name} | {value * 1e3:.0f} | {base / value:.2f} |")
    print()


if __name__ == "__main__":
    main()
