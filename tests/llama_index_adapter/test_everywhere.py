"""One instance through every class that takes a node postprocessor, offline (§2, §5.11)."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import pytest
from llama_index.core import SummaryIndex, VectorStoreIndex
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.base_selector import BaseSelector, SelectorResult, SingleSelection
from llama_index.core.chat_engine import CondensePlusContextChatEngine, ContextChatEngine
from llama_index.core.evaluation import RetrieverEvaluator
from llama_index.core.indices.query.query_transform.base import IdentityQueryTransform
from llama_index.core.llms import ChatMessage, MockLLM
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.objects import ObjectIndex
from llama_index.core.postprocessor import LongContextReorder, SimilarityPostprocessor
from llama_index.core.query_engine import (
    CitationQueryEngine,
    RetrieverQueryEngine,
    RouterQueryEngine,
    SubQuestionQueryEngine,
    TransformQueryEngine,
)
from llama_index.core.question_gen.types import BaseQuestionGenerator, SubQuestion
from llama_index.core.retrievers import QueryFusionRetriever
from llama_index.core.retrievers.fusion_retriever import FUSION_MODES
from llama_index.core.schema import MetadataMode, NodeWithScore
from llama_index.core.tools import QueryEngineTool, RetrieverTool, ToolMetadata
from llama_index.core.workflow import StartEvent, StopEvent, Workflow, step
from llama_index.retrievers.bm25 import BM25Retriever

from rerank_adapters import Reranker
from rerank_adapters.llama_index import CrossEncoderPostprocessor
from tests.exported import exported
from tests.llama_index_adapter.examples import QUERY, TEXTS, nodes, outcome
from tests.llama_index_adapter.recording import Recording, recording

# LlamaIndex's workflows read pydantic attributes that newer versions of pydantic warn about.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pydantic.PydanticDeprecatedSince20", "ignore::pydantic.PydanticDeprecatedSince211"
)

SUB_QUESTIONS = (QUERY, "How many eggs are needed?", "What do whales breathe?")

Nodes = Sequence[NodeWithScore] | None
"""What came out, where it is shown."""


class First(BaseSelector):
    """Routes every query to the first engine."""

    def _get_prompts(self) -> dict[str, Any]:
        return {}

    def _update_prompts(self, prompts: dict[str, Any]) -> None:
        pass

    def _select(self, choices: Any, query: Any) -> SelectorResult:
        return SelectorResult(selections=[SingleSelection(index=0, reason="the only one")])

    async def _aselect(self, choices: Any, query: Any) -> SelectorResult:
        return self._select(choices, query)


class Fixed(BaseQuestionGenerator):
    """Splits every question into SUB_QUESTIONS."""

    def _get_prompts(self) -> dict[str, Any]:
        return {}

    def _update_prompts(self, prompts: dict[str, Any]) -> None:
        pass

    def generate(self, tools: Any, query: Any) -> list[SubQuestion]:
        return [SubQuestion(sub_question=text, tool_name="search") for text in SUB_QUESTIONS]

    async def agenerate(self, tools: Any, query: Any) -> list[SubQuestion]:
        return self.generate(tools, query)


class Uses:
    """Every use, built around one postprocessor over one index of TEXTS."""

    def __init__(self, postprocessor: CrossEncoderPostprocessor) -> None:
        self.reranked = {"node_postprocessors": [postprocessor]}
        self.postprocessor = postprocessor
        stored = [it.node for it in nodes()]
        self.index = VectorStoreIndex(stored)
        self.summary = SummaryIndex(stored)
        self.bm25 = BM25Retriever.from_defaults(nodes=stored, similarity_top_k=5)
        self.retriever = self.index.as_retriever(similarity_top_k=5)
        self.engine = self.index.as_query_engine(similarity_top_k=5, **self.reranked)
        self.tool = QueryEngineTool(
            query_engine=self.engine, metadata=ToolMetadata(name="search", description="searches")
        )

    async def query_engine(self) -> Nodes:
        return self.engine.query(QUERY).source_nodes

    async def query_engine_awaited(self) -> Nodes:
        return (await self.engine.aquery(QUERY)).source_nodes

    async def retriever_query_engine_without_scores(self) -> Nodes:
        engine = RetrieverQueryEngine.from_args(self.summary.as_retriever(), **self.reranked)
        assert all(it.score is None for it in engine.retriever.retrieve(QUERY))
        return (await engine.aquery(QUERY)).source_nodes

    async def citation_query_engine(self) -> Nodes:
        engine = CitationQueryEngine.from_args(
            self.index, similarity_top_k=5, citation_chunk_size=512, **self.reranked
        )
        assert len(engine.query(QUERY).source_nodes) == 2  # it renumbers the nodes it cites
        return None

    async def transform_query_engine(self) -> Nodes:
        engine = TransformQueryEngine(self.engine, query_transform=IdentityQueryTransform())
        return (await engine.aquery(QUERY)).source_nodes

    async def router(self) -> Nodes:
        engine = RouterQueryEngine(selector=First(), query_engine_tools=[self.tool])
        return (await engine.aquery(QUERY)).source_nodes

    async def sub_questions(self) -> Nodes:
        engine = SubQuestionQueryEngine.from_defaults(
            query_engine_tools=[self.tool], question_gen=Fixed(), use_async=True, verbose=False
        )
        await engine.aquery(QUERY)
        return None

    async def condense_plus_context(self) -> Nodes:
        engine = CondensePlusContextChatEngine.from_defaults(
            self.retriever, memory=ChatMemoryBuffer.from_defaults(), **self.reranked
        )
        return engine.chat(QUERY).source_nodes

    async def condense_plus_context_awaited(self) -> Nodes:
        engine = CondensePlusContextChatEngine.from_defaults(
            self.retriever, memory=ChatMemoryBuffer.from_defaults(), **self.reranked
        )
        return (await engine.achat(QUERY)).source_nodes

    async def context_chat(self) -> Nodes:
        engine = ContextChatEngine.from_defaults(
            self.retriever, memory=ChatMemoryBuffer.from_defaults(), **self.reranked
        )
        return (await engine.achat(QUERY)).source_nodes

    async def chat_engine_of_the_index(self) -> Nodes:
        engine = self.index.as_chat_engine(
            chat_mode="context",
            similarity_top_k=5,
            memory=ChatMemoryBuffer.from_defaults(),
            **self.reranked,
        )
        return engine.chat(QUERY).source_nodes

    async def streamed_chat(self) -> Nodes:
        engine = ContextChatEngine.from_defaults(
            self.retriever, memory=ChatMemoryBuffer.from_defaults(), **self.reranked
        )
        answer = engine.stream_chat(QUERY)
        assert list(answer.response_gen)
        return answer.source_nodes

    async def streamed_chat_awaited(self) -> Nodes:
        engine = CondensePlusContextChatEngine.from_defaults(
            self.retriever, memory=ChatMemoryBuffer.from_defaults(), **self.reranked
        )
        answer = await engine.astream_chat(QUERY)
        assert [token async for token in answer.async_response_gen()]
        return answer.source_nodes

    async def streamed_answer(self) -> Nodes:
        engine = self.index.as_query_engine(similarity_top_k=5, streaming=True, **self.reranked)
        answer = engine.query(QUERY)
        assert list(answer.response_gen)
        return answer.source_nodes

    async def among_other_postprocessors(self) -> Nodes:
        others = [SimilarityPostprocessor(), self.postprocessor, LongContextReorder()]
        engine = self.index.as_query_engine(similarity_top_k=5, node_postprocessors=others)
        return sorted(engine.query(QUERY).source_nodes, key=lambda it: -it.score)

    async def fusion(self) -> Nodes:
        return self._fusion().query(QUERY).source_nodes

    async def fusion_awaited(self) -> Nodes:
        return (await self._fusion().aquery(QUERY)).source_nodes

    def _fusion(self) -> RetrieverQueryEngine:
        fusion = QueryFusionRetriever(
            [self.retriever, self.bm25],
            num_queries=1,
            use_async=False,
            similarity_top_k=5,
            mode=FUSION_MODES.RECIPROCAL_RANK,
            llm=MockLLM(),
        )
        return RetrieverQueryEngine.from_args(fusion, **self.reranked)

    async def bm25_retriever(self) -> Nodes:
        engine = RetrieverQueryEngine.from_args(self.bm25, **self.reranked)
        return (await engine.aquery(QUERY)).source_nodes

    async def query_engine_tool(self) -> Nodes:
        return self.tool.call(QUERY).raw_output.source_nodes

    async def query_engine_tool_awaited(self) -> Nodes:
        return (await self.tool.acall(QUERY)).raw_output.source_nodes

    async def retriever_tool(self) -> Nodes:
        tool = RetrieverTool.from_defaults(
            self.retriever, name="r", description="retrieves", **self.reranked
        )
        return tool.call(QUERY).raw_output

    async def retriever_tool_awaited(self) -> Nodes:
        tool = RetrieverTool.from_defaults(
            self.retriever, name="r", description="retrieves", **self.reranked
        )
        return (await tool.acall(QUERY)).raw_output

    async def function_agent(self) -> Nodes:
        # Not at the top: they came with llama-index-core 0.14, and all other uses run on 0.13.
        from llama_index.core.base.llms.types import ToolCallBlock
        from llama_index.core.llms.mock import MockFunctionCallingLLM

        def choose(messages: Sequence[ChatMessage], **kwargs: Any) -> ChatMessage:
            if any(message.role == "tool" for message in messages):
                return ChatMessage(role="assistant", content="done")
            call = ToolCallBlock(tool_call_id="1", tool_name="search", tool_kwargs={"input": QUERY})
            return ChatMessage(role="assistant", blocks=[call])

        llm = MockFunctionCallingLLM(response_generator=choose)
        answer = await FunctionAgent(tools=[self.tool], llm=llm, streaming=False).run(
            QUERY, memory=ChatMemoryBuffer.from_defaults()
        )
        (call,) = answer.tool_calls
        return call.tool_output.raw_output.source_nodes

    async def workflow(self) -> Nodes:
        retriever, postprocessor = self.retriever, self.postprocessor

        class Search(Workflow):
            @step
            async def search(self, event: StartEvent) -> StopEvent:
                found = await retriever.aretrieve(event.query)
                return StopEvent(
                    result=await postprocessor.apostprocess_nodes(found, query_str=event.query)
                )

        return await Search().run(query=QUERY)

    async def evaluator(self) -> Nodes:
        metrics = ["hit_rate", "mrr", "ndcg", "precision", "recall", "ap"]
        evaluator = RetrieverEvaluator.from_metric_names(
            metrics, retriever=self.retriever, **self.reranked
        )
        result = await evaluator.aevaluate(QUERY, expected_ids=["node-2"])
        assert len(result.retrieved_ids) == 2
        saved = evaluator.model_dump(include={"node_postprocessors"})["node_postprocessors"]
        assert json.loads(json.dumps(saved))[0]["backend"] == "onnx"
        return None

    async def object_index(self) -> Nodes:
        objects = ObjectIndex.from_objects(list(TEXTS), index_cls=VectorStoreIndex)
        retriever = objects.as_retriever(similarity_top_k=5, **self.reranked)
        assert len(retriever.retrieve(QUERY)) == len(await retriever.aretrieve(QUERY)) == 2
        return None


USES = [name for name, it in vars(Uses).items() if name[0] != "_" and callable(it)]
CALLS = {"sub_questions": 3, "object_index": 2}
"""How often a use reranks, where that is not once."""


@pytest.fixture(scope="module")
def postprocessor() -> Iterator[CrossEncoderPostprocessor]:
    """The same instance everywhere."""
    with CrossEncoderPostprocessor(model=str(exported("bert")), backend="onnx") as it:
        yield it


@pytest.mark.usefixtures("mocks")
@pytest.mark.parametrize("use", USES)
async def test_drop_in_everywhere(use: str, postprocessor: CrossEncoderPostprocessor):
    """§5.11: each of them calls it once per query, and gets the reranker's own best two."""
    run: Callable[[], Awaitable[Nodes]] = getattr(Uses(postprocessor), use)
    with recording() as seen:
        shown = await run()
    assert len(seen.starts) == len(seen.ends) == CALLS.get(use, 1)
    assert seen.dropped == []
    assert_truthful(seen, postprocessor._ranker())
    if shown is not None:
        assert outcome(shown) == outcome(seen.ends[0].nodes)


def assert_truthful(seen: Recording, reranker: Reranker) -> None:
    ends = {end.span_id: end for end in seen.ends}
    queries = set()
    for start in seen.starts:
        texts = [it.node.get_content(MetadataMode.EMBED) for it in start.nodes]
        query = start.query.query_str.strip()
        ranking = reranker.rerank(query, texts, top_n=2)
        ids = [it.node_id for it in ranking.select(start.nodes)]
        wanted = [(name, one.score) for name, one in zip(ids, ranking, strict=True)]
        # Alone or with another query's pairs: other shapes, other sums (law 2).
        found = outcome(ends[start.span_id].nodes)
        assert [name for name, _ in found] == ids
        assert [score for _, score in found] == pytest.approx([it for _, it in wanted], abs=1e-5)
        queries.add(query)
    assert queries <= {QUERY, *SUB_QUESTIONS}
