"""A score cache: what is known costs nothing, work in flight is shared, nothing else changes."""

from __future__ import annotations

import asyncio
import copy
import pickle
import time
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rerank_adapters import Paragraphs, Reranker, RerankerConfig, ScoreCache, Windows
from rerank_adapters.errors import BackendError
from rerank_adapters.loading import find, read
from rerank_adapters.loading.numbers import CHANGE_NO_NUMBER, numbers_context
from rerank_adapters.protocols import RerankRequest
from rerank_adapters.score_cache.memory import ENTRY_BYTES
from rerank_adapters.sharing import acquire
from rerank_adapters.tokenization.reader import Reader
from tests.checkpoints import build
from tests.engine.traffic import until
from tests.fakes import CountingBackend, FaultyBackend, HeldBackend, reranker_over

DOCUMENTS = ["It is red.", "The tower is 70 m tall.", "Trees grow.", ""]


def made(backend, cache=None, **options) -> Reranker:
    return reranker_over(backend, cache=cache or ScoreCache.memory(bytes=1_000_000), **options)


@pytest.mark.parametrize("kind", ["memory", "disk"])
@pytest.mark.parametrize("windows", [None, Windows(8, 4, "topk_mean")])
def test_a_hit_is_bit_for_bit_and_costs_nothing(tmp_path, monkeypatch, kind: str, windows):
    """No tokenizer call and no forward; scores, cuts and spans as they were; awaited too."""
    given = {"bytes": 1_000_000} | ({"path": tmp_path / "x"} if kind == "disk" else {})
    cache = ScoreCache.of(given)
    documents = [*DOCUMENTS, "long words " * 60]
    backend, bare = CountingBackend(), reranker_over(CountingBackend(), windows=windows)
    with bare, made(backend, cache, windows=windows) as reranker:
        expected = bare.rerank("how tall?", documents)
        assert reranker.rerank("how tall?", documents) == expected
        until(lambda: cache.stats()["bytes"] > 0)
        before, calls = backend.forwards, []
        for name in ("fast", "full"):
            monkeypatch.setattr(Reader, name, lambda *_: calls.append(1))
        assert reranker.rerank("how tall?", documents) == expected
        assert asyncio.run(reranker.arerank("how tall?", documents[::-1])).scores == expected.scores
        assert (backend.forwards, calls) == (before, [])
        stats = reranker.stats()
        assert (stats["cache_hits"], stats["cache_misses"]) == (
            8,
            4,
        )  # blank ones are not asked for
        assert stats["cache_bytes"] > 0
        assert stats["cache_evictions"] == 0
        assert stats["unfinished"] == 0


def test_the_bundled_model_hits_bit_for_bit():
    """int8, threshold and order included; only what is new runs."""
    with Reranker(cache={"bytes": 1_000_000}) as reranker, Reranker() as bare:
        expected = bare.rerank("how tall is it?", DOCUMENTS)
        for _ in range(2):
            assert reranker.rerank("how tall is it?", DOCUMENTS) == expected
        assert reranker.score("how tall is it?", [*DOCUMENTS, "new"]).tolist() == (
            bare.score("how tall is it?", [*DOCUMENTS, "new"]).tolist()
        )


def _context(config: RerankerConfig) -> bytes:
    found = find(config)
    return numbers_context(found, read(found), ("cpu",))


def _plain() -> RerankerConfig:
    return RerankerConfig(model=str(build("bert_two_labels")), backend="torch", device="cpu")


def _said() -> RerankerConfig:
    said = {"template": "{query} {document}", "answers": ("yes", "no")}
    return RerankerConfig(model=str(build("qwen3")), backend="torch", device="cpu", **said)


CHANGES = {
    "trust_remote_code": (_plain, True),
    "prompt": (_plain, "Find: "),
    "template": (_said, "{query}: {document}"),
    "answers": (_said, ("no", "yes")),
    "label": (_plain, 0),
    "max_length": (_plain, 40),
    "truncation": (_plain, "only_second"),
    "query_max_tokens": (_plain, 5),
    "special_tokens": (_plain, "as_text"),
    "windows": (_plain, Windows(9)),
    "activation": (_plain, "identity"),
    "backend": (_plain, "auto"),
    "device": (_plain, "auto"),
    "dtype": (_plain, "bfloat16"),
}


def test_every_option_is_in_the_key_or_was_thought_about():
    """`file_name` is there by the files' content; all other options are in one of two lists."""
    names = {it.name for it in fields(RerankerConfig)}
    assert names == CHANGE_NO_NUMBER | set(CHANGES) | {"file_name"}
    assert not CHANGE_NO_NUMBER & set(CHANGES)


@pytest.mark.parametrize("name", CHANGES)
def test_an_option_that_changes_numbers_changes_the_key(name: str):
    """Each by itself."""
    make, value = CHANGES[name]
    config = make()
    assert getattr(config, name) != value
    assert _context(replace(config, **{name: value})) != _context(config)


def test_what_changes_no_number_changes_no_key_and_files_do():
    """Queues, batches, tokens of the hub and the rule for blank documents; content and device."""
    plain = _plain()
    start = _context(plain)
    same = {"max_batch_tokens": 99, "when_full": "error", "token": "t", "on_empty_text": "score"}
    for name, value in same.items():
        assert _context(replace(plain, **{name: value})) == start, name
    found = find(plain)
    assert numbers_context(found, read(found), ("cuda:0",)) != start
    assert numbers_context(replace(found, fingerprint="0"), read(found), ("cpu",)) != start


def test_texts_prompts_and_paragraphs_are_told_apart():
    """Neither a shifted boundary, nor another prompt, nor other paragraphs pass for a hit."""
    backend = CountingBackend()
    with made(backend) as reranker:
        reranker.score("ab", ["c"])
        reranker.score("a", ["bc"])
        reranker.rerank("ab", ["c"], prompt="x")
        reranker.rerank("ab", ["c"], prompt="")
        for closeness in ([1, 0], [0, 1]):
            reranker.rerank("ab", [Paragraphs(["red", "blue"], closeness=closeness)])
        assert reranker.stats()["cache_hits"] == 0
        assert backend.rows == 6


def test_several_rerankers_share_a_cache_and_only_what_is_equal():
    """Equal ones hit each other's; another limit is another number."""
    cache = ScoreCache.memory(bytes=1_000_000)
    first, second, other = CountingBackend(), CountingBackend(), CountingBackend()
    with (
        made(first, cache) as one,
        made(second, cache) as two,
        made(other, cache, max_length=32) as it,
    ):
        assert one.score("q", DOCUMENTS).tolist() == two.score("q", DOCUMENTS).tolist()
        it.score("q", DOCUMENTS)
    assert (first.rows, second.rows, other.rows) == (4, 0, 4)


# -- work in flight -------------------------------------------------------------------------------


def test_work_in_flight_is_shared_and_cancelled_with_its_last_waiter():
    """One forward for two callers; the first may leave; when the last does, nothing more runs."""
    backend = HeldBackend()
    with made(backend) as reranker:
        blocking = reranker.submit("hold", ["it"])
        assert backend.entered.wait(30)
        one, two = reranker.submit("q", ["a", "b"]), reranker.submit("q", ["b", "a"])
        assert reranker.stats()["queue_pairs"] == 2
        one.cancel()
        assert reranker.stats()["queue_pairs"] == 2, "the second still waits for them"
        three, four = reranker.submit("q", ["c"]), reranker.submit("q", ["c"])
        three.cancel()
        four.cancel()
        assert reranker.stats()["queue_pairs"] == 2, "nobody waits for c any more"
        backend.release.set()
        assert sorted(two.result(30).indices) == [0, 1]
        assert len(blocking.result(30)) == 1
    assert backend.rows == 3


def test_a_waiters_deadline_ends_only_its_own_wait():
    """The late one hears of it in time; the patient one gets the scores that the first began."""
    backend = HeldBackend()
    with made(backend) as reranker:
        blocking = reranker.submit("hold", ["it"])
        assert backend.entered.wait(30)
        late = reranker.submit("q", ["a"], timeout=0.05)
        until(lambda: reranker.stats()["queue_pairs"] == 1)
        patient = reranker.submit("q", ["a"])
        with pytest.raises(TimeoutError):
            late.result(30)
        with pytest.raises(TimeoutError):
            reranker.score("q", ["a"], timeout=0.05)
        with pytest.raises(TimeoutError):
            asyncio.run(reranker.ascore("q", ["a"], timeout=0.05))
        assert not patient.done()
        backend.release.set()
        assert len(patient.result(30)) == 1
        assert len(blocking.result(30)) == 1
        until(lambda: reranker.stats()["unfinished"] == 0)
    assert backend.rows == 2


def test_where_shared_work_fails_each_waiter_asks_once_more_alone():
    """One whose pairs are sound gets its scores, one at fault its own error; a single no retry."""
    poison = set[int]()

    def rule(batch):
        return ValueError("poison") if poison & set(batch.input_ids.tolist()) else None

    held, faulty = HeldBackend(), FaultyBackend(rule)
    held.logits = faulty_after(held, faulty)
    with made(held) as reranker:
        poison |= set(words("zebra"))
        blocking = reranker.submit("hold", ["it"])
        assert held.entered.wait(30)
        both = reranker.submit("q", ["a", "zebra"])
        sound = reranker.submit("q", ["a"])
        held.release.set()
        assert len(blocking.result(30)) == 1
        assert len(sound.result(30)) == 1
        with pytest.raises(BackendError):
            both.result(30)
        faults = faulty.faults
        with pytest.raises(BackendError):
            reranker.score("q", ["zebra"])
        assert faulty.faults - faults == retries_of_one(rule), "a single caller is not retried"


def words(text: str) -> list[int]:
    from tests.fakes import tiny_tokenizer

    return tiny_tokenizer().read([text]).ids.tolist()[-1:]


def retries_of_one(rule) -> int:
    """How often a bare reranker tries one bad pair."""
    backend = FaultyBackend(rule)
    with reranker_over(backend) as bare, pytest.raises(BackendError):
        bare.score("q", ["zebra"])
    return backend.faults


def faulty_after(held: HeldBackend, faulty: FaultyBackend):
    """Hold the first batch, then fail by the rule."""
    first = held.logits

    def logits(batch):
        return first(batch) if not held.release.is_set() else faulty.logits(batch)

    return logits


def test_a_full_queue_and_a_deadline_hold_with_a_cache():
    """A caller that may not wait for room longer than it says is told in time."""
    backend = HeldBackend()
    with made(backend, max_queue_pairs=1) as reranker:
        blocking = reranker.submit("hold", ["it"])
        assert backend.entered.wait(30)
        waiting = reranker.submit("q", ["a"])
        started = time.monotonic()
        with pytest.raises(TimeoutError):
            reranker.score("q", ["b"], timeout=0.1)
        assert time.monotonic() - started < 30, "it did not wait for the held backend"
        backend.release.set()
        assert [len(it.result(30)) for it in (blocking, waiting)] == [1, 1]
    assert reranker.closed


# -- what it stays out of --------------------------------------------------------------------------


def test_a_live_cache_stays_out_of_equality_pickles_and_dumps():
    """A configuration is what it is without it; a copy uses the same one."""
    cache = ScoreCache.memory(bytes=1000)
    one, two = RerankerConfig(cache=cache), RerankerConfig()
    assert one == two
    assert hash(one) == hash(two)
    assert "ScoreCache" not in repr(one)
    assert pickle.loads(pickle.dumps(one)).cache is None
    assert copy.deepcopy(cache) is cache
    with pytest.raises(TypeError, match="alive"):
        pickle.dumps(cache)


def test_leases_with_and_without_a_cache_share_the_network():
    """One network, one view for each cache."""
    cache = ScoreCache.memory(bytes=100_000)
    leases = [acquire(RerankerConfig(cache=it)) for it in (cache, None, cache)]
    first, bare, again = [lease.get() for lease in leases]
    assert first is again
    assert first is not bare
    assert first.score("q", ["a"]).tolist() == bare.score("q", ["a"]).tolist()
    assert "cache_hits" in first.stats()
    assert "cache_hits" not in bare.stats()
    engines = {id(it._caller.queue._admission._engine) for it in (first, bare)}
    assert len(engines) == 1
    for lease in leases:
        lease.close()


texts = st.lists(st.sampled_from(["", "a", "red", "tower 70", "x " * 90]), max_size=6)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(requests=st.lists(st.tuples(st.sampled_from(["p", "q"]), texts), max_size=3))
def test_properties(shared, requests):
    """However much of it is known: the numbers, the order and the cuts of a run without."""
    cached, bare = shared
    assert cached.rerank_many(requests) == bare.rerank_many(requests)
    assert [cached.rerank(*it) for it in requests] == bare.rerank_many(requests)
    for query, documents in requests:
        assert np.array_equal(cached.score(query, documents), bare.score(query, documents))


@pytest.fixture(scope="module")
def shared():
    small = ScoreCache.memory(bytes=6 * ENTRY_BYTES)  # so that things are forgotten in between
    with made(CountingBackend(), small) as cached, reranker_over(CountingBackend()) as bare:
        yield cached, bare


def test_progress_counts_every_pair_once():
    """Known, repeated and new ones."""
    counts: list[int] = []
    with made(CountingBackend()) as reranker:
        reranker.score("q", ["a"])
        until(lambda: reranker.stats()["cache_bytes"] > 0)
        reranker.rerank_many([RerankRequest("q", ["a", "b", "b", "c"])], on_progress=counts.append)
    assert sum(counts) == 4
