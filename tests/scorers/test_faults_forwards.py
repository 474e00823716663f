"""Faults 1 to 5, forwards that fail: each failure stays with the request that met it.

The numbers are those of fault_table.py. A forward is held with an Event while others queue, and
forwards are counted; no test races a clock.
"""

from __future__ import annotations

import threading

import numpy as np
import pytest

from rerank_adapters.errors import (
    BackendError,
    RerankError,
)
from tests.engine.traffic import PATIENCE, until
from tests.scorers.tapped import (
    POISON,
    QUERY,
    TOLERANCE,
    assert_serves,
    behind_a_held_forward,
    has_row,
    on,
    poison_row,
    poisoned,
    tapped,
    texts,
)


@on(1)
def test_01_poison_fails_its_own_request_alone(backend):
    """Sixteen threads share a batch; one gets the error with its pair, fifteen their scores."""
    reranker, tap = tapped(backend)
    requests = [texts(2, start=10 * n) for n in range(16)]
    alone = [reranker.score(QUERY, documents) for documents in requests]
    requests[3][1] = POISON
    tap.rule = poisoned(lambda: ValueError("cannot score this"))
    outcomes: dict[int, object] = {}

    def caller(n: int) -> None:
        try:
            outcomes[n] = reranker.score(QUERY, requests[n])
        except RerankError as error:
            outcomes[n] = error

    threads = [threading.Thread(target=caller, args=(n,)) for n in range(16)]
    with tap.held():
        first = reranker.submit(QUERY, ["held"])
        assert tap.entered.wait(PATIENCE)
        for thread in threads:
            thread.start()
        until(lambda: reranker.stats()["queue_requests"] == 16)
    for thread in threads:
        thread.join(PATIENCE)
    error = outcomes.pop(3)
    assert isinstance(error, BackendError)
    assert "pair 1 failed: ValueError('cannot score this')" in str(error)
    for n, scores in outcomes.items():
        np.testing.assert_allclose(scores, alone[n], atol=TOLERANCE[backend], rtol=0)
    assert len(first.result(PATIENCE)) == 1
    assert reranker.stats()["failed"] == 1
    assert reranker.stats()["retries"] <= 5  # halvings from 32 pairs to one
    assert_serves(reranker)
    reranker.close()


def out_of_memory(backend: str) -> Exception:
    """The error this backend raises in earnest."""
    if backend == "torch":
        import torch

        return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    if backend == "onnx":
        from onnxruntime.capi.onnxruntime_pybind11_state import RuntimeException

        return RuntimeException(
            "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while "
            "running MatMul node. Failed to allocate memory for requested buffer of size 1073741824"
        )
    return MemoryError()


@on(2)
def test_02_oom_split_scores_everything_in_order(backend):
    """A device takes 40 pairs: 1000 documents are scored, the budget shrinks and comes back."""
    reranker, tap = tapped(backend)
    documents = texts(1000)
    expected = reranker.score(QUERY, documents)
    full_budget = reranker.stats()["max_batch_tokens"]
    tap.rule = lambda batch: out_of_memory(backend) if len(batch) > 40 else None
    scores = reranker.score(QUERY, documents)
    np.testing.assert_allclose(scores, expected, atol=TOLERANCE[backend], rtol=0)
    stats = reranker.stats()
    assert stats["splits"] > 0
    assert stats["retries"] == stats["failed"] == 0
    assert stats["max_batch_tokens"] < full_budget
    # The errors' frames were gone when the halves ran: they would have held device memory.
    assert tap.pinned == 0
    tap.rule = lambda batch: None
    for _ in range(400):
        reranker.score(QUERY, ["recovering"])
        if reranker.stats()["max_batch_tokens"] == full_budget:
            break
    assert reranker.stats()["max_batch_tokens"] == full_budget
    assert_serves(reranker)
    reranker.close()


@on(3)
def test_03_oom_at_one_pair_fails_only_its_request(backend):
    """A pair that never fits fails its request by name; its neighbours and the queue go on."""
    reranker, tap = tapped(backend)
    tap.rule = poisoned(lambda: out_of_memory(backend))
    before, bad, after = behind_a_held_forward(
        reranker, tap, [texts(5), [*texts(3, start=10), POISON], texts(5, start=20)]
    )
    with pytest.raises(BackendError, match="pair 3 ran out of memory, even alone, with"):
        bad.result(PATIENCE)
    assert len(before.result(PATIENCE)) == len(after.result(PATIENCE)) == 5
    assert tap.pinned == 0
    assert_serves(reranker)
    reranker.close()


@on(4)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_04_nan_is_tried_again_alone(backend, value):
    """A row that is not finite in a shared batch but is alone costs one forward and no request."""
    reranker, tap = tapped(backend)
    row = poison_row()
    expected = reranker.score(QUERY, [POISON, *texts(3)])

    def edit(batch, logits):
        spoilt = has_row(batch, row) if len(batch) > 1 else np.zeros(1, bool)
        return np.where(spoilt[:, None], np.float32(value), logits)

    tap.edit = edit
    tap.sizes.clear()
    scores = reranker.score(QUERY, [POISON, *texts(3)])
    np.testing.assert_allclose(scores, expected, atol=TOLERANCE[backend], rtol=0)
    assert tap.sizes[-1] == 1
    assert reranker.stats()["retries"] == 1
    assert_serves(reranker)
    reranker.close()


@on(4)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_04_nan_alone_fails_its_request_alone(backend, value):
    """A pair that never has a finite score fails its request; it is not sorted among the others."""
    reranker, tap = tapped(backend)
    row = poison_row()
    tap.edit = lambda batch, logits: np.where(
        has_row(batch, row)[:, None], np.float32(value), logits
    )
    good, bad = behind_a_held_forward(reranker, tap, [texts(5), [texts(1)[0], POISON]])
    with pytest.raises(BackendError, match=r"the score of pair 1 must be finite: got (nan|inf)"):
        bad.result(PATIENCE)
    assert np.isfinite(good.result(PATIENCE).scores).all()
    assert_serves(reranker)
    reranker.close()


WRONG = {
    "one row short": lambda logits: logits[:-1],
    "one row more": lambda logits: np.concatenate([logits, logits[:1]]),
    "two labels": lambda logits: np.repeat(logits, 2, axis=1),
    "no label axis": lambda logits: logits[:, 0],
    "nothing": lambda logits: logits[:0],
}


@on(5)
@pytest.mark.parametrize("wrong", WRONG)
def test_05_wrong_length_is_an_error_for_every_caller(backend, wrong):
    """Logits that do not match the batch are never handed out: each caller gets a BackendError."""
    reranker, tap = tapped(backend)
    with tap.held():
        first = reranker.submit(QUERY, texts(1))
        assert tap.entered.wait(PATIENCE)
        tap.edit = lambda batch, logits: WRONG[wrong](logits)
        futures = [reranker.submit(QUERY, texts(2, start=n)) for n in range(4)]
    for future in [first, *futures]:
        with pytest.raises(BackendError, match=r"the model returned logits of shape"):
            future.result(PATIENCE)
    tap.edit = lambda batch, logits: logits
    assert_serves(reranker)
    reranker.close()
