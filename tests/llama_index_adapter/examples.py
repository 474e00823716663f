"""Nodes and small indexes that the LlamaIndex tests share."""

from __future__ import annotations

import pickle
from collections.abc import Sequence

from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

QUERY = "What is the capital of Mongolia?"
TEXTS = (
    "Whales are mammals: they breathe air and nurse their young.",
    "The warranty covers faults in material for two years.",
    "Ulaanbaatar is the capital of Mongolia; winter nights are cold.",
    "The recipe calls for two eggs and 250 grams of flour.",
    "A binary search halves the interval at every step.",
)


def nodes(texts: Sequence[str] = TEXTS, **metadata: str) -> list[NodeWithScore]:
    """One scored TextNode per text, with falling retrieval scores; every node its own file."""
    return [
        NodeWithScore(
            node=TextNode(
                id_=f"node-{index}", text=text, metadata={"file": f"f{index}", **metadata}
            ),
            score=0.9 - index / 10,
        )
        for index, text in enumerate(texts)
    ]


def snapshot(given: Sequence[NodeWithScore]) -> list[tuple[int, int, bytes, str]]:
    """Everything about *given* that a call could change: identities, contents, hashes."""
    return [(id(it), id(it.node), pickle.dumps(it.to_dict()), it.node.hash) for it in given]


def outcome(given: Sequence[NodeWithScore]) -> list[tuple[str, float | None]]:
    """(node id, score) in order."""
    return [(it.node.node_id, it.score) for it in given]


class InMemoryRetriever(BaseRetriever):
    """Returns the stored NodeWithScore objects themselves, as LlamaIndex's object retrievers do."""

    def __init__(self, stored: list[NodeWithScore]) -> None:
        self.stored = stored
        super().__init__()

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return self.stored
