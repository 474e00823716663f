"""Reranker: what it checks, how it ranks, and that one path serves every way to ask."""

from __future__ import annotations

import asyncio
import gc
import json
import math
import threading
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
from transformers import AutoTokenizer

from rerank_adapters import ClosedError, ConfigError, InputError
from rerank_adapters.engine.batching import plan_batches
from rerank_adapters.errors import BackendError
from rerank_adapters.protocols import BackendTraits
from rerank_adapters.reranker import Reranker
from rerank_adapters.scorers import Wrapper
from rerank_adapters.sharing import acquire
from rerank_adapters.testing import FunctionScorer
from tests.checkpoints import PAIRS, build
from tests.exported import exported
from tests.fakes import (
    ConstantBackend,
    CountingBackend,
    FaultyBackend,
    HeldBackend,
    encoded,
    reranker_over,
)

TEXTS = ["the ferry", "a long walk on the island", "bread", "the ferry", "rain in the harbour"]


@pytest.fixture
def counting() -> Iterator[tuple[Reranker, CountingBackend]]:
    """A Reranker over a backend that counts and gives each pair a number of its own."""
    backend = CountingBackend()
    with reranker_over(backend) as reranker:
        yield reranker, backend


def test_ranking_is_best_first_and_ties_keep_the_order_given(counting) -> None:
    """Equal to a stable sort of the scores, descending."""
    reranker, _ = counting
    scores = reranker.score("a query", TEXTS)
    ranking = reranker.rerank("a query", TEXTS)
    expected = sorted(range(len(TEXTS)), key=lambda index: -scores[index])
    assert [it.index for it in ranking] == expected
    assert [it.score for it in ranking] == [float(scores[index]) for index in expected]
    assert all(type(it.score) is float for it in ranking)
    order = [it.index for it in ranking]
    assert order.index(0) < order.index(3), "the same text twice: the first stays first"


def test_all_equal_scores_keep_the_input_order() -> None:
    """Ties everywhere: nothing moves."""
    with reranker_over(ConstantBackend(0.5)) as reranker:
        assert [it.index for it in reranker.rerank("q", TEXTS)] == [0, 1, 2, 3, 4]


def test_identical_pairs_are_scored_once(counting) -> None:
    """Four distinct texts among five make four rows; within a pool of queries too."""
    reranker, backend = counting
    scores = reranker.score("a query", TEXTS)
    assert backend.rows == 4
    assert scores[0] == scores[3]
    reranker.rerank_many([("a query", TEXTS), ("a query", TEXTS), ("another", TEXTS[:1])])
    assert backend.rows == 4 + 4 + 1


def test_top_n_cuts_after_the_threshold(counting) -> None:
    """The threshold is inclusive, then the cut: checked against the scores themselves."""
    reranker, _ = counting
    scores = sorted((float(score) for score in reranker.score("a query", TEXTS)), reverse=True)
    kept = reranker.rerank("a query", TEXTS, score_threshold=scores[2])
    assert [it.score for it in kept] == [score for score in scores if score >= scores[2]]
    both = reranker.rerank("a query", TEXTS, score_threshold=scores[2], top_n=1)
    assert [it.score for it in both] == scores[:1]
    assert len(reranker.rerank("a query", TEXTS, top_n=99)) == len(TEXTS)
    assert len(reranker.rerank("a query", TEXTS, score_threshold=2.0)) == 0
    assert len(reranker.rerank("a query", TEXTS, score_threshold=0)) == len(TEXTS)


def test_no_texts_give_no_places_and_no_forward(counting) -> None:
    """[] in, [] out, in every form."""
    reranker, backend = counting
    assert len(reranker.rerank("q", [])) == 0
    assert reranker.score("q", []).shape == (0,)
    assert reranker.score_pairs([]).dtype == np.float32
    assert reranker.rerank_many([]) == []
    assert [len(ranking) for ranking in reranker.rerank_many([("q", []), ("q", ["a"])])] == [0, 1]
    assert asyncio.run(reranker.arerank_many([("q", [])]))[0] == reranker.rerank("q", [])
    assert backend.forwards == 1


REFUSED = [
    (lambda r: r.rerank("", ["a"]), "query must not be blank: got ''"),
    (lambda r: r.rerank(" \n", ["a"]), "query must not be blank: got ' \\n'"),
    (lambda r: r.rerank(None, ["a"]), "query must be a str: got None"),
    (
        lambda r: r.rerank("q", "text"),
        "documents must be a sequence of str: got 'text': pass a list",
    ),
    (
        lambda r: r.rerank("q", {"a"}),
        "documents must be a sequence of str: got {'a'}: pass a list",
    ),
    (lambda r: r.score("q", None), "documents must be a sequence of str: got None: pass a list"),
    (
        lambda r: r.score_pairs(None),
        "pairs must be a sequence of (query, document) pairs: got None: pass a list",
    ),
    (
        lambda r: r.score_pairs({("q", "a"): 1}),
        "pairs must be a sequence of (query, document) pairs: got {('q', 'a'): 1}: pass a list",
    ),
    (
        lambda r: r.rerank_many(None),
        "requests must be a sequence of (query, documents) pairs: got None: pass a list",
    ),
    (lambda r: r.count_tokens("ab"), "texts must be a sequence of str: got 'ab': pass a list"),
    (lambda r: r.count_tokens([1]), "texts[0] must be a str: got 1"),
    (lambda r: r.rerank("q", ["a", None]), "documents[1] must be a str: got None"),
    (lambda r: r.rerank("q", ["a", b"b"]), "documents[1] must be a str: got b'b'"),
    (lambda r: r.score("q", [3]), "documents[0] must be a str: got 3"),
    (lambda r: r.submit("q", [3]), "documents[0] must be a str: got 3"),
    (
        lambda r: r.score_pairs([("q", "a"), "qa"]),
        "pairs[1] must be a (query, document) pair: got 'qa'",
    ),
    (lambda r: r.score_pairs([("q", "a"), ("", "a")]), "pairs[1][0] must not be blank: got ''"),
    (lambda r: r.score_pairs([("q", 1)]), "pairs[0][1] must be a str: got 1"),
    (
        lambda r: r.rerank("q", ["a"], top_n=0),
        "top_n must be an int of at least 1, or None for all: got 0",
    ),
    (
        lambda r: r.rerank("q", [], top_n=0),
        "top_n must be an int of at least 1, or None for all: got 0",
    ),
    (
        lambda r: r.rerank("q", ["a"], top_n=True),
        "top_n must be an int of at least 1, or None for all: got True",
    ),
    (
        lambda r: r.rerank("q", ["a"], score_threshold=math.nan),
        "score_threshold must be a number or None: got nan",
    ),
    (
        lambda r: r.rerank("q", ["a"], score_threshold=True),
        "score_threshold must be a number or None: got True",
    ),
    (
        lambda r: r.rerank("q", ["a"], score_threshold=10**400),
        f"score_threshold must be a number or None: got 1{'0' * 79}",
    ),
    (
        lambda r: r.rerank("q", ["a"], timeout="5"),
        "timeout must be above 0 seconds, or None for no limit: got '5'",
    ),
    (
        lambda r: r.rerank("q", ["a"], score_threshold="0"),
        "score_threshold must be a number or None: got '0'",
    ),
    (
        lambda r: r.rerank_many([("q", ["a"]), "q"]),
        "requests[1] must be a (query, documents) pair: got 'q'",
    ),
    (
        lambda r: r.rerank_many([("q", ["a"]), ("q", [0])]),
        "requests[1]: documents[0] must be a str: got 0",
    ),
    (
        lambda r: r.rerank_many([("q", ["a"]), ("", ["a"])]),
        "requests[1]: query must not be blank: got ''",
    ),
    (
        lambda r: r.rerank("q", ["a"], timeout=0),
        "timeout must be above 0 seconds, or None for no limit: got 0",
    ),
    (
        lambda r: r.rerank("q", [], timeout=0),
        "timeout must be above 0 seconds, or None for no limit: got 0",
    ),
    (lambda r: asyncio.run(r.arerank("q", [None])), "documents[0] must be a str: got None"),
    (lambda r: asyncio.run(r.ascore("", ["a"])), "query must not be blank: got ''"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_bad_input_names_argument_index_rule_and_value(call, message, counting) -> None:
    """An InputError, which is a ValueError; nothing reaches the model."""
    reranker, backend = counting
    with pytest.raises(InputError) as caught:
        call(reranker)
    assert str(caught.value) == message
    assert isinstance(caught.value, ValueError)
    assert backend.forwards == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda r, items: r.score("q", items),
        lambda r, items: r.score_pairs(("q", it) for it in items),
        lambda r, items: r.rerank_many(("q", [it]) for it in items),
        lambda r, items: r.count_tokens(items),
        lambda r, items: asyncio.run(r.ascore_pairs(("q", it) for it in items)),
        lambda r, items: asyncio.run(r.arerank_many(("q", [it]) for it in items)),
    ],
)
def test_a_generator_is_refused_and_never_read_as_empty(call, counting) -> None:
    """Checking it would use it up, and an empty answer would look like an answer."""
    reranker, backend = counting
    with pytest.raises(InputError, match=r"must be a sequence of .*<generator.*: pass a list"):
        call(reranker, (text for text in ["a", "b"]))
    assert backend.forwards == 0


def test_numbers_of_numpy_are_numbers(counting) -> None:
    """A threshold or count computed with NumPy acts as the Python number it is."""
    reranker, _ = counting
    scores = reranker.score("a query", TEXTS)
    middle = np.sort(scores)[2]
    kept = reranker.rerank("a query", TEXTS, score_threshold=middle, top_n=np.int64(2))
    assert kept == reranker.rerank("a query", TEXTS, score_threshold=float(middle), top_n=2)
    assert len(kept) == 2


def test_the_threshold_is_compared_with_the_scores_handed_out() -> None:
    """float32 rounds 0.7 down: its score is below 0.7, so 0.7 drops it."""
    with reranker_over(ConstantBackend(0.7)) as reranker:
        (document,) = reranker.rerank("q", ["a"])
        assert document.score < 0.7
        assert len(reranker.rerank("q", ["a"], score_threshold=0.7)) == 0
        assert len(reranker.rerank("q", ["a"], score_threshold=document.score)) == 1
        assert len(reranker.rerank("q", ["a"], score_threshold=1e300)) == 0
        assert len(reranker.rerank("q", ["a"], score_threshold=-math.inf)) == 1


@pytest.mark.parametrize("load", [Reranker.from_config, acquire])
def test_a_configuration_that_is_none_is_refused(load) -> None:
    """The model's name in its stead is named, and nothing is kept of it."""
    with pytest.raises(ConfigError, match="config must be a RerankerConfig: got 'default'"):
        load("default")


def test_every_way_to_ask_gives_the_same_numbers(counting) -> None:
    """score, score_pairs, submit, rerank_many and their awaited twins are one path."""
    reranker, _ = counting
    expected = reranker.score("a query", TEXTS)
    pairs = [("a query", text) for text in TEXTS]

    async def awaited() -> list[np.ndarray]:
        scores = [await reranker.ascore("a query", TEXTS), await reranker.ascore_pairs(pairs)]
        (ranking,) = await reranker.arerank_many([("a query", TEXTS)])
        assert ranking == reranker.rerank("a query", TEXTS)
        assert await reranker.arerank("a query", TEXTS, top_n=2) == ranking[:2]
        return scores

    for got in [
        reranker.score_pairs(pairs),
        *asyncio.run(awaited()),
    ]:
        assert got.dtype == np.float32
        assert np.array_equal(got, expected)
    assert reranker.submit("a query", TEXTS, top_n=3).result() == reranker.rerank(
        "a query", TEXTS, top_n=3
    )


def test_many_queries_are_one_plan_of_batches(counting) -> None:
    """rerank_many runs as many forwards as plan_batches cuts for all pairs, not one per query."""
    reranker, backend = counting
    requests = [(f"query {number}", TEXTS) for number in range(6)]
    rankings = reranker.rerank_many(requests)
    lengths = np.concatenate([batch.lengths for batch in backend.batches])
    plan = plan_batches(lengths, max_batch_tokens=2048, max_padding=0.03, free_padding=24)
    assert backend.forwards == len(plan)
    assert backend.forwards < len(requests)
    assert rankings == [reranker.rerank(*request) for request in requests]


def test_a_cpu_pads_less_than_a_gpu() -> None:
    """On a CPU padding costs what text does; a GPU's forward costs more than some padding."""
    shares = {}
    for device, share, free in (("cpu", 0.03, 24), ("cuda", 0.10, 4096)):
        traits = BackendTraits(device_kind=device, max_padding=share, free_padding=free)
        backend = CountingBackend(device=device, traits=traits)
        with reranker_over(backend, max_length=512) as reranker:
            reranker.score("q", ["ferry " * count for count in range(1, 400, 3)])
        for batch in backend.batches:
            padded = len(batch) * int(batch.lengths.max())
            assert padded - batch.lengths.sum() <= max(share * padded, free)
        padded = sum(len(batch) * int(batch.lengths.max()) for batch in backend.batches)
        shares[device] = 1 - backend.tokens / padded
    assert shares["cpu"] < 0.03 < shares["cuda"]


def test_a_nan_is_an_error_and_never_a_place_in_the_ranking() -> None:
    """The request fails, typed; the next one is served."""
    backend = ConstantBackend(math.nan)
    with reranker_over(backend) as reranker:
        with pytest.raises(BackendError, match=r"nan|finite"):
            reranker.rerank("q", ["a", "b"])
        backend.value = 1.0
        assert [it.score for it in reranker.rerank("q", ["a", "b"])] == [1.0, 1.0]


def test_truncated_documents_are_told(counting) -> None:
    """The document says which texts the model did not see whole."""
    reranker, _ = counting
    ranking = reranker.rerank("q", ["short", "word " * 500])
    assert {it.index: it.truncated for it in ranking} == {0: False, 1: True}


def test_tokens_are_counted_by_the_models_own_tokenizer(counting) -> None:
    """Without special tokens and without a cut: equal to transformers' count."""
    reranker, _ = counting
    tokenizer = AutoTokenizer.from_pretrained(build("bert"))
    texts = ["", "the ferry", "word " * 500]
    expected = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    assert reranker.count_tokens(texts) == expected


def test_a_closed_reranker_says_so(counting) -> None:
    """Every method raises ClosedError; closing twice is once."""
    reranker, backend = counting
    reranker.close()
    reranker.close()
    assert backend.closed
    with pytest.raises(ClosedError, match="the reranker is closed: load it again"):
        reranker.rerank("q", ["a"])
    with pytest.raises(ClosedError, match="load it again"):
        asyncio.run(reranker.ascore("q", ["a"]))
    with pytest.raises(ClosedError, match="load it again"), reranker:
        pass
    with pytest.raises(ClosedError, match="load it again"):
        reranker.info()
    assert reranker.closed
    assert repr(reranker) == "Reranker(closed)"


def test_dropping_the_last_reference_frees_the_model() -> None:
    """Garbage collection closes what nobody closed."""
    backend = CountingBackend()
    reranker = reranker_over(backend)
    reranker.rerank("q", ["a"])
    gone = weakref.ref(reranker)
    del reranker
    gc.collect()
    assert gone() is None
    for _ in range(1000):
        if backend.closed:
            break
        threading.Event().wait(0.01)  # the worker closes the backend as it ends
    assert backend.closed


def test_one_failing_request_leaves_its_neighbours_alone() -> None:
    """Law 4 through the public door: the poison pair fails alone, by name."""
    poison = encoded([("q", "poison")]).input_ids.tolist()

    def rule(batch):
        rows = [batch.take([row]).input_ids.tolist() for row in range(len(batch))]
        return ValueError("poison") if poison in rows else None

    with reranker_over(FaultyBackend(rule)) as reranker:
        futures = [reranker.submit("q", [text]) for text in ["a", "poison", "b"]]
        assert len(futures[0].result()) == len(futures[2].result()) == 1
        with pytest.raises(Exception, match="poison"):
            futures[1].result()


def test_a_timeout_drops_the_request() -> None:
    """While the model is held, a call with a timeout ends in TimeoutError; the rest is served."""
    backend = HeldBackend()
    with reranker_over(backend) as reranker:
        first = reranker.submit("q", ["a"])
        assert backend.entered.wait(30)
        with pytest.raises(TimeoutError):
            reranker.score("q", ["b"], timeout=0.01)
        backend.release.set()
        assert len(first.result()) == 1
        assert reranker.stats()["timed_out"] == 1
    assert backend.rows == 1, "what timed out in the queue never ran"


def test_info_and_repr_tell_what_runs() -> None:
    """Plain values, with the reason for the backend."""
    with Reranker.from_pretrained(str(exported("bert"))) as reranker:
        info = reranker.info()
        assert info.backend == "onnx"
        assert info.why == "the checkpoint has a float32 ONNX file"
        assert info.details["provider"] == "CPUExecutionProvider"
        assert len(info.fingerprint) == 16
        assert json.loads(json.dumps(info.to_dict()))["provider"] == "CPUExecutionProvider"
        assert "backend='onnx'" in repr(reranker)
        query, text = PAIRS[0]
        assert reranker.score(query, [text]).shape == (1,)


def test_a_backend_that_wants_texts_gets_them_with_its_rows() -> None:
    """Through cutting, sorting and joining, each row's pair travels beside its tokens."""

    class Reading(CountingBackend):
        def logits(self, batch):
            self.forwards += 1
            return np.array([[len(text.document) / 100] for text in batch.texts], np.float32)

    backend = Reading(traits=BackendTraits(free_padding=24, max_padding=0.03, wants="texts"))
    texts = ["word " * length for length in (3, 40, 1, 22, 9)]
    with reranker_over(backend) as reranker:
        scores = reranker.score("q", texts)
    assert backend.forwards > 1
    assert scores.tolist() == [np.float32(len(text) / 100) for text in texts]


def test_a_wrapper_around_no_scorer_is_refused_when_it_is_made() -> None:
    """Not at the first call, by an attribute that a Reranker lacks."""
    with (
        Reranker.over(FunctionScorer(lambda query, document: 1.0)) as reranker,
        pytest.raises(ConfigError, match=r"inner must have submit_pairs, .* got Reranker"),
    ):
        Wrapper(reranker)  # type: ignore[arg-type]
