"""Large calls are tokenised in chunks while the device computes, and stay one request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from rerank_adapters import ClosedError, InputError, OverloadedError, Reranker
from rerank_adapters.engine import pairs, queue
from rerank_adapters.engine.admission import Limits
from rerank_adapters.loading import assemble
from rerank_adapters.protocols import BackendTraits, Call
from rerank_adapters.scorers import queued
from rerank_adapters.scorers.queued import FIRST_CHUNK
from rerank_adapters.tokenization import PairTokenizer
from tests import checkpoints
from tests.engine.traffic import PATIENCE, until
from tests.fakes import (
    CountingBackend,
    FirstLogitFamily,
    HeldBackend,
    queued_pairs,
    reranker_over,
    scorer_over,
    tiny_tokenizer,
    token_logits,
)

QUERY = "how do whales breathe"
CPU = BackendTraits(batch_tokens=512, max_padding=0.03, free_padding=24)
GPU = BackendTraits(device_kind="cuda", batch_tokens=65_536, free_padding=4096)


def documents(count: int) -> list[str]:
    """Distinct texts of 1 to 60 words, in no order of length."""
    words = np.random.default_rng(count).integers(1, 61, count).tolist()
    return [f"{number} " + "whale sea " * (size // 2) for number, size in enumerate(words)]


class Encodings:
    """The pairs of each call of a tokenizer's encode; `before` runs with their number first."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.before: Callable[[int], None] = lambda number: None


@pytest.fixture
def encodings(monkeypatch: pytest.MonkeyPatch) -> Iterator[Encodings]:
    """What PairTokenizer.encode is asked for."""
    seen, encode = Encodings(), PairTokenizer.encode

    def watched(self, pairs, prompts=None, known=None):
        seen.before(len(seen.sizes))
        seen.sizes.append(len(pairs))
        return encode(self, pairs, prompts, known)

    monkeypatch.setattr(PairTokenizer, "encode", watched)
    return seen


def score(reranker: Reranker, texts: list[str], *, awaited: bool) -> np.ndarray:
    """The scores of one call, sync or async."""
    if awaited:
        return asyncio.run(reranker.ascore(QUERY, texts))
    return reranker.score(QUERY, texts)


@pytest.mark.parametrize("awaited", [False, True])
def test_the_first_forward_begins_before_the_last_text_is_tokenised(encodings, awaited: bool):
    """The second chunk is tokenised once a forward of the first runs; scores are the pairs' own."""
    texts, backend = documents(700), HeldBackend()
    expected = token_logits(tiny_tokenizer().encode([(QUERY, text) for text in texts]).batch)[:, 0]
    encodings.sizes.clear()

    def before(number: int) -> None:
        if number == 1:
            assert backend.entered.wait(PATIENCE)
            assert backend.forwards == 0  # it is held, and two chunks are still to come
        if number == 2:
            backend.release.set()

    encodings.before = before
    with reranker_over(backend) as reranker:
        scores = score(reranker, texts, awaited=awaited)
        stats = reranker.stats()
    np.testing.assert_array_equal(scores, expected)
    assert encodings.sizes == [128, 256, 316]
    assert (stats["requests"], stats["done"], stats["pairs"]) == (1, 1, 700)
    assert backend.rows == 700


def test_the_first_chunk_holds_the_longest_texts(encodings):
    """So that batches of one chunk are of like lengths, and the end of the call is short."""
    texts, backend = documents(400), CountingBackend()
    with reranker_over(backend) as reranker:
        encodings.before = lambda _: until(lambda: not queued_pairs(reranker))
        reranker.score(QUERY, texts)
    longest = [int(it.lengths.max()) for it in backend.batches]
    assert longest == sorted(longest, reverse=True)


def test_a_call_of_fewer_pairs_is_tokenised_at_once(encodings):
    """Up to twice the first chunk: one call of the tokenizer, and the batches of one request."""
    texts, backend = documents(2 * FIRST_CHUNK - 1), CountingBackend()
    with reranker_over(backend) as reranker:
        reranker.score(QUERY, texts)
    assert encodings.sizes == [len(texts)]


@pytest.mark.parametrize("traits", [CPU, GPU], ids=["cpu", "gpu"])
def test_chunks_pad_as_little_as_one_plan_of_all(encodings, monkeypatch, traits: BackendTraits):
    """Within 3 %, even where a fast device has done each chunk before the next one comes."""
    texts, backend = documents(3000), CountingBackend(traits=traits)
    with reranker_over(backend, max_length=512) as reranker:
        encodings.before = lambda _: until(lambda: not queued_pairs(reranker))
        scores = reranker.score(QUERY, texts)
    assert encodings.sizes == [128, 256, 512, 1024, 1024, 56]
    monkeypatch.setattr(queued, "FIRST_CHUNK", len(texts))
    encodings.before = lambda _: None
    whole = CountingBackend(traits=traits)
    with reranker_over(whole, max_length=512) as reranker:
        np.testing.assert_array_equal(reranker.score(QUERY, texts), scores)
    assert encodings.sizes[6:] == [3000]
    assert _padded(backend) <= 1.03 * _padded(whole)
    assert backend.tokens == whole.tokens


def test_what_a_slow_device_has_not_begun_is_planned_with_what_comes(encodings):
    """Held until all is tokenised, a device gets the batches of one plan, over all chunks."""
    texts, backend = documents(1500), HeldBackend()

    def before(number: int) -> None:
        if number == 1:
            assert backend.entered.wait(PATIENCE)

    encodings.before = before
    with reranker_over(backend) as reranker:
        future = reranker.submit(QUERY, texts)
        assert queued_pairs(reranker) > 1000
        backend.release.set()
        future.result(PATIENCE)
    lengths = [int(it.lengths.max()) for it in backend.batches[1:]]
    assert lengths == sorted(lengths, reverse=True)  # each plan is longest first


@pytest.mark.parametrize("held", [False, True], ids=["a fast device", "a slow one"])
def test_each_token_is_copied_once_and_each_pair_planned_twice_at_most(
    encodings, monkeypatch, held: bool
):
    """However many chunks have come: nothing that waits is moved, sorted pairs are cut once."""
    copied, planned = [], []
    joined, plan = pairs._joined, queue.iterate_batches

    def counting_copies(runs):
        copied.append(0 if len(runs) == 1 else sum(map(len, runs)))
        return joined(runs)

    def counting_plans(lengths, **rule):
        planned.append(len(lengths))
        return plan(lengths, **rule)

    monkeypatch.setattr(pairs, "_joined", counting_copies)
    monkeypatch.setattr(queue, "iterate_batches", counting_plans)
    texts, backend = documents(4000), HeldBackend()
    if not held:
        backend.release.set()
    with reranker_over(backend) as reranker:
        future = reranker.submit(QUERY, texts)
        backend.release.set()
        future.result(PATIENCE)
    real = sum(len(it.input_ids) for it in backend.batches)
    assert len(encodings.sizes) == 7
    assert sum(copied) <= 2 * real  # ids and types
    assert sum(planned) <= 2 * len(texts)


def _padded(backend: CountingBackend) -> int:
    return sum(len(it) * int(it.lengths.max()) for it in backend.batches)


# -- one request ----------------------------------------------------------------------------------


async def test_a_cancelled_call_tokenises_no_more(encodings):
    """Cancelled after the first chunk: the others are never read, and the queue is empty."""
    backend, loop = HeldBackend(), asyncio.get_running_loop()
    with reranker_over(backend) as reranker:
        task = asyncio.create_task(reranker.ascore(QUERY, documents(1000)))

        def before(number: int) -> None:
            if number == 1:
                loop.call_soon_threadsafe(task.cancel)
                until(lambda: reranker.stats()["cancelled"] == 1)

        encodings.before = before
        with pytest.raises(asyncio.CancelledError):
            await task
        backend.release.set()
        encodings.before = lambda _: None
        assert len(await reranker.ascore(QUERY, ["a"])) == 1
        until(lambda: len(encodings.sizes) == 3)
        assert sorted(encodings.sizes) == [1, 128, 256]
        assert reranker.stats()["unfinished"] == queued_pairs(reranker) == 0
        assert backend.rows <= 128 + 1


@pytest.mark.parametrize("end", ["deadline", "close"])
def test_a_call_that_has_its_end_tokenises_no_more(encodings, end: str):
    """Its deadline passes, or the model is closed, between two chunks."""
    backend = HeldBackend()
    with reranker_over(backend) as reranker:

        def before(number: int) -> None:
            if number == 1:
                backend.release.set()
                if end == "close":
                    reranker.close()
                else:
                    until(lambda: reranker.stats()["timed_out"] == 1)

        encodings.before = before
        kind = ClosedError if end == "close" else TimeoutError
        with pytest.raises(kind):
            reranker.rerank(QUERY, documents(1000), timeout=None if end == "close" else 0.2)
    assert encodings.sizes == [128, 256]


@pytest.mark.parametrize("awaited", [False, True])
def test_a_pair_that_cannot_be_written_fails_its_call_alone(awaited: bool):
    """It is named as the caller counts, whichever chunk it is in; others come back."""
    tokenizer = PairTokenizer.from_folder(
        checkpoints.build("bert"), max_length=32, truncation="only_second"
    )
    scorer = assemble(tokenizer, FirstLogitFamily(), [CountingBackend()])
    with Reranker.over(scorer) as reranker:
        pairs = [(QUERY, text) for text in documents(900)]
        pairs[610] = ("a ferry " * 40, "x")  # the shortest: it is in the last chunk
        with pytest.raises(InputError, match=r"pairs\[610\]: truncation='only_second'"):
            scorer.submit_pairs(pairs, Call()).result(PATIENCE)
        assert len(score(reranker, documents(900), awaited=awaited)) == 900
        assert reranker.stats()["unfinished"] == queued_pairs(reranker) == 0


def test_a_call_in_chunks_is_admitted_whole(encodings):
    """While its first chunk is tokenised others are refused for all its pairs; after it, served."""
    backend = CountingBackend()
    scorer = scorer_over(backend, max_queue_pairs=400, when_full="error")
    refused = []
    with Reranker.over(scorer) as reranker:

        def before(number: int) -> None:
            if number == 1:
                until(lambda: not queued_pairs(reranker))
                with pytest.raises(
                    OverloadedError, match="it holds 172 pairs of 11008 tokens"
                ) as it:
                    reranker.score(QUERY, documents(240))
                refused.append(it.value)

        encodings.before = before
        reranker.score(QUERY, documents(300))
        assert len(refused) == 1
        until(lambda: not queued_pairs(reranker))
        encodings.before = lambda _: None
        assert len(reranker.score(QUERY, documents(240))) == 240


def test_a_call_without_room_is_tokenised_whole_and_waits(encodings):
    """What waits anyway gains nothing by chunks: it is counted by its own tokens."""
    backend = HeldBackend()
    scorer = assemble(
        tiny_tokenizer(), FirstLogitFamily(), [backend], limits=Limits(pairs=50, block=True)
    )
    with Reranker.over(scorer) as reranker:
        first = reranker.submit(QUERY, documents(40))
        assert backend.entered.wait(PATIENCE)
        task_sizes = len(encodings.sizes)

        async def later() -> np.ndarray:
            call = asyncio.create_task(reranker.ascore(QUERY, documents(600)))
            await asyncio.to_thread(until, lambda: reranker.stats()["parked"] == 1)
            backend.release.set()
            return await call

        assert len(asyncio.run(later())) == 600
        assert len(first.result(PATIENCE)) == 40
        assert encodings.sizes[task_sizes:] == [600]
