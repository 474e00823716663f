"""`rerank-adapters demo`: one question through LangChain and LlamaIndex, before and after."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever as LangChainRetriever
from langchain_core.runnables import RunnablePassthrough
from llama_index.core import Settings
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import BaseRetriever as LlamaIndexRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from rich.console import Console
from rich.table import Table

from ..langchain import RerankingRetriever
from ..llama_index import CrossEncoderPostprocessor
from ..reranker import Reranker
from .corpus import Bm25, Passage, example_folder, passages

QUESTIONS = (
    "How can I get back the files that I threw away last week?",
    "When can we stroll over to the Rock on foot, and what do we do if the sea has cut us off?",
)
CANDIDATES = 20
TOP_N = 3


def run(console: Console) -> None:
    """Prints, for each framework, what BM25 retrieved and what the reranker made of it."""
    with no_network():
        start = time.perf_counter()
        reranker = Reranker.from_pretrained()
        facts = reranker.info()
        loaded = (time.perf_counter() - start) * 1e3
        console.print(
            f"Sockets are blocked. Model: {facts['model']} ({facts['backend']}, {facts['dtype']}, "
            f"{facts['device']}), loaded in {loaded:.0f} ms."
        )
        collection = list(passages(example_folder()))
        index = Bm25([passage.full_text for passage in collection])
        _show(console, "LangChain chain", QUESTIONS[0], *_langchain(reranker, collection, index))
        _show(
            console,
            "LlamaIndex query engine",
            QUESTIONS[1],
            *_llama_index(reranker, collection, index),
        )
        reranker.close()


@contextmanager
def no_network() -> Iterator[None]:
    """While inside, connecting any socket raises: what runs, runs offline."""

    def refuse(*_: object) -> None:
        raise OSError("the demo reached for the network, which it must not")

    connect: Callable[..., Any] = socket.socket.connect
    socket.socket.connect = refuse  # type: ignore[method-assign]  # the demo's own proof
    try:
        yield
    finally:
        socket.socket.connect = connect  # type: ignore[method-assign]  # put back


Row = tuple[str, float]


def _langchain(
    reranker: Reranker, collection: Sequence[Passage], index: Bm25
) -> tuple[list[Row], list[Row], str, float]:
    question = QUESTIONS[0]

    class Retriever(LangChainRetriever):
        def _get_relevant_documents(
            self,
            query: str,
            *,
            run_manager: CallbackManagerForRetrieverRun,  # noqa: ARG002  # LangChain passes it
        ) -> list[Document]:
            return [
                Document(
                    collection[place].text,
                    id=collection[place].id,
                    metadata={"title": collection[place].title},
                )
                for place, _ in index.search(query, CANDIDATES)
            ]

    retriever = RerankingRetriever(
        base_retriever=Retriever(), reranker=reranker, top_n=TOP_N, rank_fields=("title",)
    )
    model = FakeListChatModel(responses=["(a mock model answers here, reading the passages above)"])
    prompt = ChatPromptTemplate.from_template("Answer {question} from:\n{context}")
    chain = (
        {"context": retriever, "question": RunnablePassthrough()}
        | prompt
        | model
        | StrOutputParser()
    )
    start = time.perf_counter()
    answer = chain.invoke(question)
    seconds = time.perf_counter() - start
    after = [
        (document.metadata["title"], document.metadata["relevance_score"])
        for document in retriever.invoke(question)
    ]
    return _before(collection, index, question), after, answer, seconds


def _llama_index(
    reranker: Reranker, collection: Sequence[Passage], index: Bm25
) -> tuple[list[Row], list[Row], str, float]:
    question = QUESTIONS[1]
    Settings.llm = MockLLM(max_tokens=12)

    class Retriever(LlamaIndexRetriever):
        def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
            return [
                NodeWithScore(
                    node=TextNode(
                        text=collection[place].text,
                        id_=collection[place].id,
                        metadata={"title": collection[place].title},
                    ),
                    score=score,
                )
                for place, score in index.search(query_bundle.query_str, CANDIDATES)
            ]

    engine = RetrieverQueryEngine.from_args(
        Retriever(),
        node_postprocessors=[CrossEncoderPostprocessor(reranker=reranker, top_n=TOP_N)],
    )
    start = time.perf_counter()
    response = engine.query(question)
    seconds = time.perf_counter() - start
    after = [(node.metadata["title"], float(node.score or 0)) for node in response.source_nodes]
    answer = f"(a mock model answers here: {str(response)[:40].strip()} …)"
    return _before(collection, index, question), after, answer, seconds


def _before(collection: Sequence[Passage], index: Bm25, question: str) -> list[Row]:
    return [(collection[place].title, score) for place, score in index.search(question, TOP_N)]


def _show(
    console: Console,
    name: str,
    question: str,
    before: Sequence[Row],
    after: Sequence[Row],
    answer: str,
    seconds: float,
) -> None:
    table = Table(title=f"{name}: {question}", title_justify="left")
    for column in ("", "BM25 retrieved", "score", "reranked", "score"):
        table.add_column(column, justify="right" if column == "score" else "left")
    for rank, (old, new) in enumerate(zip(before, after, strict=False), 1):
        table.add_row(str(rank), old[0], f"{old[1]:.2f}", new[0], f"[bold]{new[1]:.3f}[/bold]")
    console.print(table)
    console.print(
        f"{CANDIDATES} candidates retrieved, reranked and answered in {seconds * 1e3:.0f} ms. "
        f"{answer}\n"
    )
