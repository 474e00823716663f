"""`rerank-adapters demo`: one question through LangChain and LlamaIndex, before and after."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever as LangChainRetriever
from langchain_core.runnables import RunnablePassthrough
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import BaseRetriever as LlamaIndexRetriever
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from ..langchain import RerankingRetriever
from ..llama_index import CrossEncoderPostprocessor
from ..reranker import Reranker
from .collection import Row
from .console import emit, say, table
from .corpus import Bm25, Passage, example_folder, passages

QUESTIONS = (
    "How can I get back the files that I threw away last week?",
    "When can we stroll over to the Rock on foot, and what do we do if the sea has cut us off?",
)
CANDIDATES = 20
TOP_N = 3


@dataclass(frozen=True, slots=True)
class Shown:
    """One framework's run: titles and scores as retrieved and as reranked, answer, milliseconds."""

    framework: str
    question: str
    retrieved: list[Row]
    reranked: list[Row]
    answer: str
    milliseconds: float


def run(*, as_json: bool) -> None:
    """Prints, for each framework, what BM25 retrieved and what the reranker made of it."""
    with no_network():
        start = time.perf_counter()
        with Reranker() as reranker:
            info = reranker.info()
            loaded = (time.perf_counter() - start) * 1e3
            collection = list(passages(example_folder()))
            index = Bm25(passage.full_text for passage in collection)
            shown = [show(reranker, collection, index) for show in (_langchain, _llama_index)]
    model = {name: getattr(info, name) for name in ("model", "backend", "dtype", "device")}
    if as_json:
        emit({**model, "load_ms": loaded, "runs": [asdict(one) for one in shown]})
        return
    say(
        f"Sockets are blocked. Model: {info.model} ({info.backend}, {info.dtype}, "
        f"{info.device}), loaded in {loaded:.0f} ms."
    )
    for one in shown:
        _show(one)


BLOCKED = ("connect", "connect_ex", "sendto", "sendmsg")


@contextmanager
def no_network() -> Iterator[None]:
    """While inside, connecting or sending by any socket raises, and so does a look-up of a name."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError("the demo reached for the network, which it must not")

    owners = [(socket.socket, name) for name in BLOCKED] + [(socket, "getaddrinfo")]
    saved = [(owner, name, getattr(owner, name)) for owner, name in owners if hasattr(owner, name)]
    for owner, name, _ in saved:
        setattr(owner, name, refuse)
    try:
        yield
    finally:
        for owner, name, method in saved:
            setattr(owner, name, method)


def _langchain(reranker: Reranker, collection: Sequence[Passage], index: Bm25) -> Shown:
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
                    collection[row].text,
                    id=collection[row].id,
                    metadata={"title": collection[row].title},
                )
                for row, _ in index.search(query, CANDIDATES)
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
    before = _before(collection, index, question)
    return Shown("LangChain chain", question, before, after, answer, seconds * 1e3)


def _llama_index(reranker: Reranker, collection: Sequence[Passage], index: Bm25) -> Shown:
    question = QUESTIONS[1]

    class Retriever(LlamaIndexRetriever):
        def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
            return [
                NodeWithScore(
                    node=TextNode(
                        text=collection[row].text,
                        id_=collection[row].id,
                        metadata={"title": collection[row].title},
                    ),
                    score=score,
                )
                for row, score in index.search(query_bundle.query_str, CANDIDATES)
            ]

    engine = RetrieverQueryEngine.from_args(
        Retriever(),
        llm=MockLLM(max_tokens=12),
        node_postprocessors=[CrossEncoderPostprocessor(reranker=reranker, top_n=TOP_N)],
    )
    start = time.perf_counter()
    response = engine.query(question)
    seconds = time.perf_counter() - start
    after = [(node.metadata["title"], float(node.score or 0)) for node in response.source_nodes]
    answer = f"(a mock model answers here: {str(response)[:40].strip()} …)"
    before = _before(collection, index, question)
    return Shown("LlamaIndex query engine", question, before, after, answer, seconds * 1e3)


def _before(collection: Sequence[Passage], index: Bm25, question: str) -> list[Row]:
    return [(collection[row].title, score) for row, score in index.search(question, TOP_N)]


def _show(one: Shown) -> None:
    say()
    say(f"{one.framework}: {one.question}", style="bold")
    rows = zip(one.retrieved, one.reranked, strict=True)
    table(
        ["", "BM25 retrieved", "score", "reranked", "score"],
        [
            [str(rank), old, f"{old_score:.2f}", new, f"{new_score:.3f}"]
            for rank, ((old, old_score), (new, new_score)) in enumerate(rows, 1)
        ],
    )
    say(
        f"{CANDIDATES} candidates retrieved, reranked and answered in {one.milliseconds:.0f} ms. "
        f"{one.answer}"
    )
