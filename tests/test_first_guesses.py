"""First guesses of people who come from other libraries: each works, or its error says the word."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, TextNode

from rerank_adapters import InputError, Ranking, Reranker, RerankerConfig
from rerank_adapters.cli import main
from rerank_adapters.hints import _worded, option_hint
from rerank_adapters.langchain import (
    CrossEncoderCompressor,
    LangChainCrossEncoder,
    RerankingMiddleware,
    RerankingRetriever,
)
from rerank_adapters.llama_index import CrossEncoderPostprocessor
from rerank_adapters.testing import ranker_from

pandas = pytest.importorskip("pandas")

DOCUMENTS = ["a", "three", "it is"]


def lengths() -> Reranker:
    """Ranks by length: 1, 2, 0."""
    return ranker_from(lambda _, document: len(document) / 8)


ranker = lengths()

WORKS: list[tuple[Callable[[], object], object]] = [
    (lambda: ranker.rerank(query="q", documents=DOCUMENTS).indices, [1, 2, 0]),
    (lambda: ranker.rerank("q", documents=DOCUMENTS, top_n=2).indices, [1, 2]),
    (lambda: ranker.score("q", DOCUMENTS).dtype, np.float32),
    (lambda: [i for i, _ in ranker.rerank("q", DOCUMENTS)], [1, 2, 0]),
    (lambda: ranker.rerank("q", DOCUMENTS).scores, [0.625, 0.625, 0.125]),
    (lambda: ranker.rerank("q", DOCUMENTS).top(1).indices, [1]),
    (lambda: ranker.rerank("q", DOCUMENTS).select(DOCUMENTS), ["three", "it is", "a"]),
    (lambda: ranker.rerank("q", DOCUMENTS).scored(DOCUMENTS)[0], ("three", 0.625)),
    (lambda: ranker.rerank("q", DOCUMENTS).to_dicts(DOCUMENTS)[0]["document"], "three"),
    (lambda: ranker.rerank("q", np.array(DOCUMENTS)).indices, [1, 2, 0]),
    (lambda: ranker.rerank("q", pandas.Series(DOCUMENTS, index=[7, 8, 9])).indices, [1, 2, 0]),
    (lambda: ranker.rerank("q", tuple(DOCUMENTS)).indices, [1, 2, 0]),
    (lambda: ranker.info().model, "rerank_adapters.testing"),
    (lambda: asyncio.run(_async_with()), [1, 2, 0]),
    (lambda: RerankerConfig(dtype=torch.float16).dtype, "float16"),
    (lambda: RerankerConfig(dtype=torch.bfloat16).dtype, "bfloat16"),
    (lambda: RerankerConfig(dtype=None).dtype, "auto"),
    (lambda: RerankerConfig(device=torch.device("cuda", 1)).device, "cuda:1"),
    (lambda: RerankerConfig(device=torch.device("cpu")).device, "cpu"),
    (lambda: RerankerConfig(device=0).device, "cuda:0"),
    (lambda: RerankerConfig(device=[0, 1]).device, ("cuda:0", "cuda:1")),
    (lambda: RerankerConfig(device=None).device, "auto"),
    (lambda: RerankerConfig(backend=None).backend, "auto"),
    (lambda: RerankerConfig(activation=None).activation, "default"),
    (lambda: CrossEncoderCompressor(dtype=torch.float16).dtype, "float16"),
    (lambda: CrossEncoderPostprocessor(device=0).device, "cuda:0"),
]


async def _async_with() -> list[int]:
    async with lengths() as one:
        return (await one.arerank("q", DOCUMENTS)).indices


@pytest.mark.parametrize(("guess", "value"), WORKS)
def test_it_works(guess: Callable[[], object], value: object) -> None:
    """What is plain is taken as it is meant."""
    assert guess() == value


DOCUMENT, NODE = Document("text"), NodeWithScore(node=TextNode(text="text"))
compressor = CrossEncoderCompressor(reranker=ranker)
nodes = CrossEncoderPostprocessor(reranker=ranker).postprocess_nodes

WORDS: list[tuple[Callable[[], object], type[Exception], str]] = [
    # methods and attributes
    (lambda: ranker.rank("q", DOCUMENTS), AttributeError, "called rerank"),
    (lambda: ranker.arank, AttributeError, "called arerank"),
    (lambda: ranker.predict([("q", "a")]), AttributeError, "called score_pairs"),
    (lambda: ranker.compute_score([("q", "a")]), AttributeError, "called score_pairs"),
    (lambda: ranker.rerank_pairs([("q", "a")]), AttributeError, "called score_pairs"),
    (lambda: ranker.encode(["a"]), AttributeError, "no vectors"),
    (lambda: ranker.compress_documents([DOCUMENT], "q"), AttributeError, "CrossEncoderCompressor"),
    (lambda: ranker.postprocess_nodes([NODE]), AttributeError, "CrossEncoderPostprocessor"),
    (lambda: ranker.max_seq_length, AttributeError, "called max_length"),
    (lambda: ranker.device, AttributeError, r"called info\(\).device"),
    (lambda: ranker.nonsense, AttributeError, "no attribute 'nonsense'$"),
    (lambda: ranker.rerank("q", DOCUMENTS).results, AttributeError, "iterate over it"),
    (lambda: ranker.rerank("q", DOCUMENTS).top_k(1), AttributeError, "called top$"),
    (lambda: ranker.rerank("q", DOCUMENTS).documents, AttributeError, "called select"),
    (lambda: ranker.rerank("q", DOCUMENTS)[0].text, AttributeError, "select"),
    (lambda: ranker.rerank("q", DOCUMENTS)[0].rank, AttributeError, "enumerate"),
    (lambda: ranker.rerank("q", DOCUMENTS)[0].corpus_id, AttributeError, "called index"),
    (lambda: ranker.rerank("q", DOCUMENTS)[0]["score"], TypeError, r"write .score for"),
    # options of a call
    (lambda: ranker.rerank("q", DOCUMENTS, top_k=1), TypeError, "top_k is called top_n"),
    (lambda: ranker.rerank("q", texts=DOCUMENTS), TypeError, "texts is called documents"),
    (lambda: ranker.rerank("q", docs=DOCUMENTS), TypeError, "docs is called documents"),
    (lambda: ranker.rerank("q", DOCUMENTS, return_documents=True), TypeError, "ranking.select"),
    (lambda: ranker.rerank("q", DOCUMENTS, threshold=0.5), TypeError, "called score_threshold"),
    (lambda: ranker.rerank("q", DOCUMENTS, instruction="x"), TypeError, "called prompt"),
    (lambda: ranker.score("q", DOCUMENTS, batch_size=8), TypeError, "called max_batch_tokens"),
    (
        lambda: asyncio.run(ranker.arerank("q", DOCUMENTS, top_k=1)),
        TypeError,
        "top_k is called top_n",
    ),
    (lambda: ranker.rerank("q", DOCUMENTS, 3), TypeError, "positional"),
    # what is ranked
    (lambda: ranker.score("q", "one"), InputError, "pass a list"),
    (lambda: ranker.score_pairs(("q", "d")), InputError, r"pass \[pair\]"),
    (lambda: ranker.rerank("q", (it for it in DOCUMENTS)), InputError, "pass a list"),
    (lambda: ranker.rerank("q", [DOCUMENT]), InputError, "langchain.CrossEncoderCompressor"),
    (lambda: ranker.rerank("q", [NODE]), InputError, "llama_index.CrossEncoderPostprocessor"),
    (lambda: ranker.rerank("q", [{"text": "a"}]), InputError, "rank its text"),
    (lambda: ranker.rerank_many("q", DOCUMENTS), TypeError, "positional"),
    (lambda: ranker.rerank_many([("q", "a")]), InputError, "sequence of str"),
    # options of a model
    (lambda: Reranker(batch_size=8), TypeError, "called max_batch_tokens"),
    (lambda: Reranker(model_name="m"), TypeError, "called model"),
    (lambda: Reranker(cache_dir="x"), TypeError, "called cache_folder"),
    (lambda: Reranker(normalize=True), TypeError, "called activation"),
    (lambda: Reranker.from_pretrained(torch_dtype="x"), TypeError, "called dtype"),
    (lambda: Reranker(dtype="fp16"), ValueError, "called float16"),
    (lambda: Reranker(device="gpu"), ValueError, 'device must be "auto"'),
    (lambda: RerankerConfig(max_seq_length=3), TypeError, "max_seq_length"),
    # adapters
    (lambda: CrossEncoderCompressor(top_k=3), TypeError, "top_k is called top_n"),
    (lambda: CrossEncoderCompressor(model_name="m"), TypeError, "model_name is called model"),
    (lambda: CrossEncoderCompressor(model=ranker), ValueError, "reranker="),
    (lambda: LangChainCrossEncoder(model_name="m"), TypeError, "model_name is called model"),
    (lambda: RerankingRetriever(base_compressor=1), TypeError, "called compressor"),
    (lambda: CrossEncoderPostprocessor(top_k=3), TypeError, "top_k is called top_n"),
    (lambda: CrossEncoderPostprocessor(similarity_cutoff=1), TypeError, "called score_threshold"),
    (lambda: RerankingMiddleware(k=1), TypeError, r"CrossEncoderCompressor\(top_n=...\)"),
    (lambda: RerankingMiddleware(model="m"), TypeError, r"CrossEncoderCompressor\(model=...\)"),
    (lambda: RerankingMiddleware("m"), ValueError, r"CrossEncoderCompressor\(model=...\)"),
    (lambda: RerankingRetriever(retriever=1), TypeError, "did you mean base_retriever"),
    (lambda: RerankingRetriever(base_retriever=len), ValueError, "RunnableLambda"),
    (lambda: RerankingRetriever(base_retriever="x"), ValueError, "from a query to documents"),
    # slips of the keyboard
    (lambda: ranker.rerank("q", DOCUMENTS, topn=1), TypeError, r"'topn': did you mean top_n\?$"),
    (lambda: ranker.rerank("q", DOCUMENTS, treshold=1), TypeError, "did you mean score_threshold"),
    (lambda: ranker.rerank("q", DOCUMENTS, sparkle=1), TypeError, "argument 'sparkle'$"),
    (lambda: asyncio.run(ranker.arerank("q", DOCUMENTS, topn=1)), TypeError, r"mean top_n\?$"),
    (lambda: Reranker(devise="cpu"), TypeError, "did you mean device"),
    (lambda: CrossEncoderCompressor(topn=3), TypeError, "did you mean top_n"),
    (lambda: CrossEncoderCompressor(rank_field=["a"]), TypeError, "did you mean rank_fields"),
    (lambda: CrossEncoderCompressor(batchsize=3), TypeError, "did you mean max_batch_tokens"),
    (lambda: CrossEncoderCompressor(sparkle=3), TypeError, "argument 'sparkle'$"),
    (lambda: CrossEncoderPostprocessor(max_lenght=3), TypeError, "did you mean max_length"),
    (lambda: RerankingMiddleware(formaters={}), TypeError, "did you mean formatters"),
    # by position, where adapters have names alone
    (lambda: CrossEncoderCompressor("m"), TypeError, r"^CrossEncoderCompressor\(\) takes .*'m'"),
    (lambda: CrossEncoderPostprocessor("m"), TypeError, "model=... among them"),
    # one thing where a list is meant, or the thing without its wrapping
    (lambda: compressor.compress_documents(DOCUMENT, "q"), InputError, r"pass \[document\]"),
    (lambda: compressor.compress_documents(["text"], "q"), InputError, r"Document\(text\) makes"),
    (lambda: nodes(NODE, query_str="q"), InputError, r"pass \[node\]"),
    (lambda: nodes(NODE.node, query_str="q"), InputError, r"pass \[NodeWithScore\(node=node\)\]"),
    (
        lambda: nodes([NODE.node], query_str="q"),
        InputError,
        r"got TextNode; pass NodeWithScore\(node=node\)",
    ),
    (
        lambda: nodes(["text"], query_str="q"),
        InputError,
        r"got str; pass NodeWithScore\(node=TextNode\(",
    ),
    (lambda: nodes([NODE], query="q"), InputError, "query is called query_str"),
    (lambda: nodes([NODE], top_k=3), InputError, "top_k is called top_n"),
    (lambda: nodes([NODE], topn=3), InputError, "did you mean top_n"),
]


@pytest.mark.parametrize(("guess", "kind", "word"), WORDS)
def test_its_error_says_the_word(
    guess: Callable[[], object], kind: type[Exception], word: str
) -> None:
    """A name of another library is answered with the one it has here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a coroutine that never began
        with pytest.raises(kind, match=word):
            guess()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["search", "q", ".", "--top-k", "3"], "top_k is called top_n"),
        (["search", "q", ".", "--model-name", "m"], "model_name is called model"),
        (["rerank", "q", "--threshold", "1"], "threshold is called score_threshold"),
    ],
)
def test_the_command_line_says_the_word(capsys, arguments: list[str], word: str) -> None:
    """One table for all of them."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert word in capsys.readouterr().err


def test_at_least_sixty_four_guesses_are_tried() -> None:
    """As many as the review tried, and no name twice in the table."""
    assert len(WORKS) + len(WORDS) >= 64


def test_a_hint_never_hides_an_inner_error() -> None:
    """A TypeError from inside a call is not mistaken for one about its options."""

    def inner(_: str, __: str) -> float:
        raise TypeError("inner() got an unexpected keyword argument 'top_k'")

    with pytest.raises(TypeError, match=r"'top_k'$"):
        ranker_from(inner).rerank("q", ["a"])


def test_python_s_own_guess_makes_room_for_the_right_word() -> None:
    """Python 3.13 puts one behind the message, of the call's own names alone."""
    known = ("top_n",)
    for name, said in (("top_k", "top_k is called top_n"), ("topn", "did you mean top_n?")):
        error = TypeError(f"f() got an unexpected keyword argument {name!r}. Did you mean 'top_n'?")
        assert str(_worded(_raised(error), option_hint, known)) == (
            f"f() got an unexpected keyword argument {name!r}: {said}"
        )


def _raised(error: TypeError) -> TypeError:
    """*error* as a call raises it: caught in the frame that it comes from."""
    try:
        raise error
    except TypeError as caught:
        return caught


def test_a_ranking_is_still_plain_data() -> None:
    """Hints for foreign names do not get in the way of copying, pickling and comparing."""
    import copy
    import pickle

    ranking = ranker.rerank("q", DOCUMENTS)
    assert pickle.loads(pickle.dumps(ranking)) == copy.deepcopy(ranking) == ranking
    assert isinstance(ranking, Ranking)
    assert not hasattr(ranking, "nonsense")
