"""Documents with every kind of metadata, queries over them, and the oracle's numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from langchain_core.callbacks import (
    AsyncCallbackManagerForRetrieverRun,
    CallbackManagerForRetrieverRun,
)
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable
from numpy.typing import NDArray

from rerank_adapters.engine.batching import plan_batches
from tests import checkpoints
from tests.fakes import CountingBackend, encoded

KEY = "relevance_score"
TEXTS = list(dict.fromkeys(text for _, text in checkpoints.PAIRS if text.strip()))[:12]
QUERIES = ["why is the sky blue", "capital of Mongolia", "how long is the warranty?", "bread"]
QUERY = QUERIES[0]

# ONNX Runtime and sentence-transformers sum float32 in different orders (DESIGN, law 1).
TOLERANCE = 1e-4


def documents(texts: Sequence[str] = TEXTS) -> list[Document]:
    """One document per text, with an id and nested metadata."""
    return [
        Document(
            id=f"d{index}",
            page_content=text,
            metadata={"source": f"file {index}", "pages": [index, {"deep": index}]},
        )
        for index, text in enumerate(texts)
    ]


def oracle(query: str, texts: Sequence[str] = TEXTS) -> NDArray[np.float32]:
    """sentence-transformers' scores of the tiny BERT, in the order of *texts*."""
    return checkpoints.oracle(checkpoints.build("bert"), [(query, text) for text in texts])


def best(scores: NDArray[np.float32], top_n: int | None = None) -> list[str]:
    """The ids of `documents`, best first, ties in the order given."""
    return [f"d{index}" for index in np.argsort(-scores, kind="stable")[:top_n]]


def ids(found: Sequence[Document]) -> list[str | None]:
    return [document.id for document in found]


def scores(found: Sequence[Document]) -> list[float]:
    return [document.metadata[KEY] for document in found]


def planned(pairs: Sequence[tuple[str, str]]) -> int:
    """How many forwards `reranker_over` a CountingBackend takes for one pool of *pairs*.

    Identical pairs are scored once.
    """
    traits = CountingBackend().traits
    plan = plan_batches(
        encoded(list(dict.fromkeys(pairs))).lengths,
        max_batch_tokens=traits.batch_tokens,
        max_padding=traits.max_padding,
        free_padding=traits.free_padding,
    )
    return len(plan)


async def invoked(
    runnable: Runnable[Any, Any], given: Any, config: Any = None, *, asynchronous: bool
) -> Any:
    """What `ainvoke` or `invoke` gives."""
    if asynchronous:
        return await runnable.ainvoke(given, config)
    return runnable.invoke(given, config)


class ListRetriever(BaseRetriever):
    """Returns the same documents for every query; `fails_on` names one that it cannot answer."""

    found: list[Document]
    fails_on: str | None = None

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[Document]:
        if query == self.fails_on:
            raise LookupError(query)
        return list(self.found)

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun
    ) -> list[Document]:
        if query == self.fails_on:
            raise LookupError(query)
        return list(self.found)
