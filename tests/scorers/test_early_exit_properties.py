"""Early exit as a function of one query and its documents, whatever else is asked for with it.

Oracle: both parts and the whole network run on one pair at a time, a product written out, and two
sorts. Int8 answers are the oracle's bit for bit; torch's differ by rounding, which company changes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank_adapters import EarlyExit, Ranking, Reranker, RerankerConfig
from rerank_adapters.checkpoints.tensors import read_tensors, write_tensors
from rerank_adapters.loading import find
from rerank_adapters.loading.assembly import start
from rerank_adapters.loading.meaning import read
from rerank_adapters.protocols import Call, StagedBackend
from tests.checkpoints import TRAINING_TEXT, build
from tests.exported import exported_with_exits, write_heads

QUERIES = ("why is the sky blue", "how long is a river", "what do bees make")
POOL = (*[line for line in TRAINING_TEXT.splitlines() if line.strip()][:10], " ")
"""Ten documents and a blank one."""

KEEPS = (1, 3, len(POOL))
EXAMPLES = settings(max_examples=20, deadline=None)  # a bound on time is no property


@dataclass(frozen=True)
class Model:
    """A model whole, with exits that keep 1, 3 and all, and with exits that are all ties.

    exits and whole are its logits after layer 1 and after the last, one row a query.
    """

    plain: Reranker
    early: dict[int, Reranker]
    tied: Reranker
    exits: np.ndarray
    whole: np.ndarray
    bound: float

    def check(self, found: Ranking, query: int, documents: Sequence[int], keep: int) -> None:
        """*found* is what the two sorts say."""
        expected = _expected(self.exits[query], self.whole[query], documents, keep)
        assert [(it.index, it.exit) for it in found] == [row[:2] for row in expected]
        scores = np.array([row[2] for row in expected])
        np.testing.assert_allclose(found.scores, scores, rtol=0, atol=self.bound)


def _expected(
    exits: np.ndarray, whole: np.ndarray, documents: Sequence[int], keep: int
) -> list[tuple[int, int | None, float]]:
    """(index, exit, score), best first, of *documents*, numbers in POOL.

    Equal documents compete as one, by where the first of them stands; blank ones follow all others.
    """
    blank = len(POOL) - 1
    asked = [number for number in dict.fromkeys(documents) if number != blank]
    going = set(asked)
    if len(asked) > keep:
        going = set(sorted(asked, key=lambda it: -exits[it])[:keep])
    rows: list[tuple[tuple[int, float, int], tuple[int, int | None, float]]] = []
    for index, number in enumerate(documents):
        if number == blank:
            continue
        logit, exit_ = (whole[number], None) if number in going else (exits[number], 1)
        rows.append(((exit_ or 0, -logit, index), (index, exit_, float(logit))))
    ranked = [row for _, row in sorted(rows)]
    lowest = min([0.0, *(score for _, _, score in ranked)])
    return ranked + [(at, None, lowest) for at, it in enumerate(documents) if it == blank]


def _by_itself(folder: Path, backend: str, weight: np.ndarray, bias: float) -> list[np.ndarray]:
    """Logits after layer 1 and after the last of QUERIES by POOL, one pair a batch."""
    found = find(RerankerConfig(model=str(folder), **_options(backend)))
    meaning = read(found)
    loaded = start(found, meaning)
    try:
        network = cast("StagedBackend", loaded.backends[0])
        logits = []
        for query in QUERIES:
            for document in POOL:
                pair = meaning.tokenizer.encode([(query, document)], Call().prompts, None).batch
                pooled, _ = network.start(pair, 1)
                head = np.float32((pooled[0].astype(np.float64) * weight).sum() + bias)
                logits.append((float(head), float(network.logits(pair)[0, 0])))
    finally:
        loaded.engine.close()
    table = np.array(logits).reshape(len(QUERIES), len(POOL), 2)
    return [table[..., 0], table[..., 1]]


def _options(backend: str) -> dict[str, Any]:
    dtype = {"torch": "float32", "onnx": "int8"}[backend]
    return {"backend": backend, "dtype": dtype, "device": "cpu"}


@pytest.fixture(scope="module", params=["torch", "onnx"])
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Model]:
    """Both backends, over the same weights, with the same random head and with one of zeros."""
    folder = build("bert") if request.param == "torch" else exported_with_exits()
    made = tmp_path_factory.mktemp("heads")
    heads = write_heads(made / "random", (1,), seed=20, bias=0.25)
    tensors = read_tensors(heads)
    ties = made / "ties"
    write_tensors(ties, {name: np.zeros_like(values) for name, values in tensors.items()})
    weight, bias = tensors["layer_1.weight"][0], float(tensors["layer_1.bias"][0])
    exits, whole = _by_itself(folder, request.param, weight, bias)
    for row in exits:  # no two so near that rounding turns them
        assert np.diff(np.sort(row)).min() > 1e-3
    options = {**_options(request.param), "activation": "identity"}
    early = {
        keep: Reranker(folder, **options, early_exit=EarlyExit(1, keep, str(heads)))
        for keep in KEEPS
    }
    tied = Reranker(folder, **options, early_exit=EarlyExit(1, KEEPS[1], str(ties)))
    bound = 1e-4 if request.param == "torch" else 0.0  # law 2
    plain = Reranker(folder, **options)
    yield Model(plain, early, tied, exits, whole, bound)
    for reranker in (plain, tied, *early.values()):
        reranker.close()


NUMBERS = st.lists(st.integers(0, len(POOL) - 1), max_size=16)
"""Documents of one query: none, few, blank ones, the same ones again."""

CALLS = st.lists(st.tuples(st.integers(0, len(QUERIES) - 1), NUMBERS), min_size=1, max_size=4)


def _request(query: int, documents: Sequence[int]) -> tuple[str, list[str]]:
    return QUERIES[query], [POOL[number] for number in documents]


@EXAMPLES
@given(query=st.integers(0, 2), documents=NUMBERS, keep=st.sampled_from(KEEPS))
def test_the_best_by_exit_logit_go_on_and_who_stopped_ranks_below(model, query, documents, keep):
    """Whole logits bit for bit for who went on, the head's for the others, duplicates as one."""
    found = model.early[keep].rerank(*_request(query, documents))
    model.check(found, query, documents, keep)


@EXAMPLES
@given(calls=CALLS, keep=st.sampled_from(KEEPS))
def test_queries_are_answered_alike_in_any_company(model, calls, keep):
    """Several in one call, in calls at once and awaited: each as the oracle says of it alone."""
    early, asked = model.early[keep], [_request(*call) for call in calls]
    with ThreadPoolExecutor(4) as threads:
        at_once = list(threads.map(lambda one: early.rerank(*one), asked))
    for rankings in (early.rerank_many(asked), at_once, asyncio.run(early.arerank_many(asked))):
        for (query, documents), found in zip(calls, rankings, strict=True):
            model.check(found, query, documents, keep)


@EXAMPLES
@given(query=st.integers(0, 2), order=st.permutations(range(len(POOL) - 1)))
def test_the_order_of_documents_changes_nobody(model, query, order):
    """Each document's score and exit are its own, wherever it stands."""
    found = model.early[3].rerank(*_request(query, order))
    model.check(found, query, order, 3)
    sorted_ = model.early[3].rerank(*_request(query, range(len(order))))
    assert [order[it.index] for it in found] == sorted_.indices
    np.testing.assert_allclose(found.scores, sorted_.scores, rtol=0, atol=2 * model.bound)


@EXAMPLES
@given(query=st.integers(0, 2), documents=NUMBERS)
def test_keeping_as_many_as_there_are_is_no_exit(model, query, documents):
    """Law 11: bit for bit with int8, and by the same batches with torch."""
    asked = _request(query, documents)
    expected = model.plain.rerank(*asked)
    found = model.early[len(POOL)].rerank(*asked)
    assert found.indices == expected.indices
    assert [it.exit for it in found] == [None] * len(found)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=0, atol=model.bound)


@EXAMPLES
@given(query=st.integers(0, 2), documents=NUMBERS)
def test_of_equal_exit_logits_the_first_go_on(model, query, documents):
    """A head of zeros: all are even, and who stopped keeps the order given."""
    blank, keep = len(POOL) - 1, KEEPS[1]
    asked = [number for number in dict.fromkeys(documents) if number != blank]
    going = set(asked if len(asked) <= keep else asked[:keep])
    found = model.tied.rerank(*_request(query, documents))
    went = [it for it in found if documents[it.index] in going]
    assert list(found)[: len(went)] == went
    assert all(it.exit is None for it in went)
    stopped = [it for it in found if documents[it.index] not in going | {blank}]
    assert [it.exit for it in stopped] == [1] * len(stopped)
    assert [it.index for it in stopped] == sorted(it.index for it in stopped)
    assert {it.score for it in stopped} <= {0.0}
    for it in went:
        expected = model.whole[query][documents[it.index]]
        assert it.score == pytest.approx(expected, rel=0, abs=model.bound)


@pytest.mark.parametrize("keep", KEEPS)
def test_no_documents_are_an_empty_ranking(model, keep):
    """Beside queries that have some."""
    rankings = model.early[keep].rerank_many([("nobody", []), _request(0, range(9)), ("no", [" "])])
    assert [len(ranking) for ranking in rankings] == [0, 9, 1]
    model.check(rankings[1], 0, range(9), keep)
