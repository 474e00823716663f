"""An instruction per call, with a model that takes one: the numbers are sentence-transformers'."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from rerank_adapters import InputError, Reranker
from rerank_adapters.langchain import (
    CrossEncoderCompressor,
    RerankingMiddleware,
    RerankingRetriever,
)
from tests import checkpoints
from tests.langchain_adapter.samples import (
    QUERY,
    TEXTS,
    TOLERANCE,
    ListRetriever,
    best,
    documents,
    ids,
    scores,
)
from tests.langchain_adapter.test_agents import ASKED, agent_of, found_in
from tests.langchain_adapter.test_hooks import WAYS, ask
from tests.langchain_adapter.test_middleware import search

EGGS, BREAD = "Find what is said of eggs", "Find what is said of bread"


@pytest.fixture(scope="module")
def instructed() -> Iterator[Reranker]:
    folder = str(checkpoints.build("qwen3"))
    with Reranker(folder, backend="torch", device="cpu", dtype="float32") as reranker:
        yield reranker


@pytest.fixture(scope="module")
def wanted() -> dict[str | None, np.ndarray]:
    """The oracle's scores of TEXTS under each prompt; None is the checkpoint's own."""
    folder = checkpoints.build("qwen3")
    pairs = [(QUERY, text) for text in TEXTS]
    return {
        prompt: checkpoints.oracle(folder, pairs, prompt=prompt) for prompt in (None, EGGS, BREAD)
    }


def check(found: Any, expected: np.ndarray) -> None:
    assert ids(found) == best(expected)
    np.testing.assert_allclose(scores(found), -np.sort(-expected), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("way", WAYS)
async def test_scores_are_those_of_the_call_s_prompt(
    instructed: Reranker, wanted: dict[str | None, np.ndarray], way: str
) -> None:
    """As an argument, bound, and in configurable, by compressor and retriever; None is its own."""
    assert best(wanted[EGGS]) != best(wanted[None])
    compressor = CrossEncoderCompressor(reranker=instructed, top_n=None)
    retriever = RerankingRetriever(
        base_retriever=ListRetriever(found=documents()), compressor=compressor
    )
    given = {"query": QUERY, "documents": documents()}
    for adapter, one in ((compressor, given), (retriever, QUERY)):
        check(await ask(adapter, one, way, prompt=EGGS), wanted[EGGS])
        check(await ask(adapter.bind(prompt=BREAD), one, way), wanted[BREAD])
        config: Any = {"configurable": {"prompt": EGGS}}
        check(await ask(adapter, one, way, config), wanted[EGGS])
        check(await ask(adapter, one, way, config, prompt=None), wanted[None])
        check(await ask(adapter, one, way), wanted[None])


async def test_inputs_of_one_batch_have_prompts_of_their_own(
    instructed: Reranker, wanted: dict[str | None, np.ndarray]
) -> None:
    """Scored in one pool, each as if alone."""
    compressor = CrossEncoderCompressor(reranker=instructed, top_n=None)
    given = {"query": QUERY, "documents": documents()}
    configs: Any = [{"configurable": {"prompt": it}} for it in (EGGS, BREAD)] + [{}]
    for found in (
        compressor.batch([given] * 3, configs),
        await compressor.abatch([given] * 3, configs),
    ):
        for one, prompt in zip(found, (EGGS, BREAD, None), strict=True):
            check(one, wanted[prompt])


def test_an_agent_s_tools_are_ranked_by_the_prompt_of_its_compressor(
    instructed: Reranker, wanted: dict[str | None, np.ndarray]
) -> None:
    """Two instances that differ in the prompt alone have names of their own."""
    compressor = CrossEncoderCompressor(reranker=instructed, top_n=None)
    tools = [search("news", documents()), search("books", documents())]
    parts = [
        RerankingMiddleware(compressor.bind(prompt=prompt), tools=[tool])
        for prompt, tool in zip((EGGS, BREAD), tools, strict=True)
    ]
    agent, _ = agent_of(parts, "news", "books", tools=tools)
    messages = agent.invoke(ASKED)["messages"]
    check(found_in(messages).artifact, wanted[EGGS])
    check(found_in(messages, "books").artifact, wanted[BREAD])
    named = RerankingMiddleware(compressor.bind(prompt="query: | "))
    assert named.name == f"RerankingMiddleware(prompt={zlib.crc32(b'query: | '):08x})"
    agent_of(named, "news")  # LangGraph refuses : and | in the name of a node


def test_a_prompt_that_the_model_cannot_take_is_an_input_error(instructed: Reranker) -> None:
    """Nor is it dropped in silence where documents would be kept in spite of failures."""
    compressor = CrossEncoderCompressor(reranker=instructed, on_error="keep")
    with pytest.raises(InputError, match="prompt must be None"):
        compressor.compress_documents(documents(), QUERY, prompt="")
