"""Sixteen threads, 1,600 calls, mixed lengths and truncation settings: equal to one thread.

Other libraries keep truncation and padding as state of a shared tokenizer: with two settings in two
threads up to a third of their scores are silently wrong. Here every setting has its own immutable
tokenizer, and this is the proof.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

from rerank_adapters import Reranker
from rerank_adapters.tokenization import PairTokenizer
from tests.checkpoints import PAIRS, build
from tests.exported import exported

THREADS, CALLS = 16, 100

# The same folder under several settings, and other folders beside it.
SETTINGS = [
    ("bert", {}),
    ("bert", {"max_length": 24}),
    ("bert", {"max_length": 64, "truncation": "only_second", "query_max_tokens": 8}),
    ("roberta", {"max_length": 40}),
    ("xlm_roberta", {"query_max_tokens": 5}),
    ("modernbert", {}),
]

Call = Callable[[], Any]


def _share(calls: list[Call], serial: list[Any]) -> list[tuple[int, Any]]:
    """Runs THREADS threads of CALLS calls each, begun together; (call, answer) of every one.

    Each thread takes the calls in an order of its own, so that settings meet in every combination.
    """
    barrier = threading.Barrier(THREADS)
    answers: list[list[tuple[int, Any]]] = [[] for _ in range(THREADS)]
    errors: list[BaseException] = []

    def work(number: int) -> None:
        order = np.random.default_rng(number).integers(0, len(calls), CALLS)
        barrier.wait()
        try:
            answers[number] += [(int(at), calls[at]()) for at in order]
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    flat = [pair for part in answers for pair in part]
    assert len(flat) == THREADS * CALLS
    assert {at for at, _ in flat} == set(range(len(serial)))
    return flat


def _pairs(start: int) -> list[tuple[str, str]]:
    """Three pairs of any length, the query of the first for all of them."""
    query = PAIRS[start][0] if len(PAIRS[start][0]) < 40 else "bread"
    return [(query, PAIRS[(start + step) % len(PAIRS)][1]) for step in (0, 5, 17)]


def test_tokens_of_sixteen_threads_equal_serial_ones_bit_for_bit():
    """1,600 encodings under six settings at once: every id, type id, length and flag is equal."""
    calls: list[Call] = []
    for kind, options in SETTINGS:
        tokenizer = PairTokenizer.from_folder(build(kind), **options)
        for start in range(0, len(PAIRS), 3):
            pairs = _pairs(start)
            calls.append(lambda tokenizer=tokenizer, pairs=pairs: tokenizer.encode(pairs))
    serial = [call() for call in calls]
    for at, answer in _share(calls, serial):
        for name in ("input_ids", "type_ids", "lengths"):
            np.testing.assert_array_equal(
                getattr(answer.batch, name), getattr(serial[at].batch, name)
            )
        np.testing.assert_array_equal(answer.truncated, serial[at].truncated)


@pytest.fixture
def rerankers() -> Iterator[list[Reranker]]:
    """One Reranker per setting on onnxruntime, each with its own queue and session."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                Reranker.from_pretrained(
                    str(exported(kind)),
                    backend="onnx",
                    device="cpu",
                    num_threads=1,
                    activation="identity",
                    **options,
                )
            )
            for kind, options in SETTINGS
        ]


def test_scores_of_sixteen_threads_equal_serial_ones(rerankers: list[Reranker]):
    """1,600 calls on six rerankers at once: scores within law 2's bound, which batches may move."""
    calls: list[Call] = []
    for reranker in rerankers:
        for start in range(0, len(PAIRS), 3):
            pairs = _pairs(start)
            calls.append(lambda reranker=reranker, pairs=pairs: reranker.score_pairs(pairs))
    serial = [call() for call in calls]
    for at, answer in _share(calls, serial):
        np.testing.assert_allclose(answer, serial[at], rtol=0, atol=1e-5)
