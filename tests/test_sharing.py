"""Sharing: equal weights are loaded once, whatever the other options, and freed in the end."""

from __future__ import annotations

import asyncio
import copy
import gc
import itertools
import pickle
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rerank_adapters import ClosedError, ConfigError, RerankerConfig, sharing
from rerank_adapters.backends import BACKENDS
from rerank_adapters.errors import ModelError
from rerank_adapters.loading import finding, hub
from rerank_adapters.sharing import acquire, close_all
from tests import own_backend
from tests.checkpoints import build

DOCUMENTS = ["the ferry", "a long walk on the island", "bread"]


@pytest.fixture(autouse=True)
def loads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """The own backend in the registry, nothing shared yet; what it loads, in order."""
    monkeypatch.setitem(BACKENDS, "own", own_backend.ENTRY)
    close_all()
    own_backend.LOADS.clear()
    own_backend.LOADED.clear()
    yield own_backend.LOADS
    close_all()


def config(**options: object) -> RerankerConfig:
    return RerankerConfig(model=str(build("bert")), backend="own", **options)


def until(true: Callable[[], bool]) -> None:
    for _ in range(6000):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("the awaited state never came")


def test_equal_weights_are_loaded_once_whatever_the_other_options(loads) -> None:
    """Tokenizer view, family, prompt and queue limits are each lease's own; the network is one."""
    given = [
        {},
        {"max_length": 9},
        {"activation": "sigmoid"},
        {"prompt": "about boats: "},
        {"truncation": "only_second"},
        {"query_max_tokens": 1},
        {"special_tokens": "as_text"},
        {"max_queue_pairs": 5},
        {"max_batch_tokens": 64},
        {"tokenizer": "huggingface"},
    ]
    leases = [acquire(config(**options)) for options in given]
    scores = [lease.get().score("the island ferry", DOCUMENTS) for lease in leases]
    assert len(loads) == 1
    alone = [sharing.Reranker.from_config(config(**options)) for options in given]
    for shared, one in zip(scores, alone, strict=True):
        np.testing.assert_array_equal(shared, one.score("the island ferry", DOCUMENTS))
        one.close()
    assert not np.array_equal(scores[0], scores[1])
    assert not np.array_equal(scores[0], scores[2])
    for lease in leases:
        lease.close()


@pytest.mark.parametrize("options", [{"dtype": "float16"}, {"num_workers": 3}, {"device": "cpu"}])
def test_what_makes_another_network_is_loaded_apart(loads, options) -> None:
    """dtype, device, threads and workers are part of what is loaded."""
    one, two = acquire(config()), acquire(config(**options))
    one.get()
    two.get()
    assert len(loads) == 2


def test_other_weights_are_loaded_apart(loads, tmp_path) -> None:
    """A copy of the folder is the same model; a flipped byte in its weights is another."""
    for name in ("copy", "other"):
        shutil.copytree(build("bert"), tmp_path / name)
    weights = tmp_path / "other" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    leases = [
        acquire(config()),
        acquire(RerankerConfig(model=str(tmp_path / "copy"), backend="own")),
        acquire(RerankerConfig(model=str(tmp_path / "other"), backend="own")),
    ]
    for lease in leases:
        lease.get()
    assert len(loads) == 2


def test_the_last_lease_frees_the_network_at_once_when_nothing_may_idle(monkeypatch) -> None:
    """Each lease lets go by itself; what is closed says so, and the next use loads afresh."""
    monkeypatch.setattr(sharing, "IDLE_SECONDS", 0.0)
    one, two, third = acquire(config()), acquire(config()), acquire(config(max_length=9))
    assert one.get() is two.get()
    assert third.get() is not one.get()
    (backend,) = own_backend.LOADED
    one.close()
    with pytest.raises(ClosedError, match="the lease is closed"):
        one.get()
    assert two.get().score("q", ["a"]).shape == (1,)
    two.close()
    assert not backend.closed
    third.close()
    assert backend.closed
    again = acquire(config())
    assert again.get().score("q", ["a"]).shape == (1,)
    again.close()


def test_an_adapter_per_request_loads_once(loads) -> None:
    """Made, used and dropped twenty times: an idle model is kept for the next."""
    for _ in range(20):
        lease = acquire(config())
        lease.get().score("q", ["a"])
        del lease
        gc.collect()
    assert len(loads) == 1


def test_a_dropped_lease_lets_go(monkeypatch) -> None:
    """Garbage collection is as good as close: the reaper frees what nobody holds."""
    monkeypatch.setattr(sharing, "IDLE_SECONDS", 0.02)
    lease = acquire(config())
    lease.get()
    (backend,) = own_backend.LOADED
    del lease
    gc.collect()
    until(lambda: backend.closed)


def test_two_idle_models_are_kept_and_no_third(loads, tmp_path) -> None:
    """The one idle longest is freed; the others answer without loading."""
    folders = []
    for number in range(3):
        folder = tmp_path / str(number)
        shutil.copytree(build("bert"), folder)
        (folder / "config.json").write_text(
            (folder / "config.json").read_text("utf-8").replace("{", "{" + " " * number, 1), "utf-8"
        )
        folders.append(RerankerConfig(model=str(folder), backend="own"))
    for one in folders:
        lease = acquire(one)
        lease.get()
        lease.close()
    assert [backend.closed for backend in own_backend.LOADED] == [True, False, False]
    for one in folders[1:]:
        acquire(one).get()
    assert len(loads) == 3


def test_close_all_frees_what_is_held_and_the_next_use_loads_again(loads) -> None:
    """A process that wants its memory back gets it; leases stay good."""
    lease = acquire(config())
    before = lease.get().score("q", DOCUMENTS)
    close_all()
    assert own_backend.LOADED[0].closed
    assert lease.loaded is None
    np.testing.assert_array_equal(lease.get().score("q", DOCUMENTS), before)
    assert len(loads) == 2


def test_sixteen_threads_load_a_shared_model_once(loads) -> None:
    """All wait for the one load, of one configuration and of several."""
    configs = [config(), config(max_length=9), config(activation="sigmoid"), config(prompt="p ")]
    barrier = threading.Barrier(16)

    def ask(number: int) -> sharing.Lease:
        lease = acquire(configs[number % 4])
        barrier.wait()
        lease.get()
        return lease

    with ThreadPoolExecutor(16) as threads:
        leases = list(threads.map(ask, range(16)))
    assert len(loads) == 1
    assert len({id(lease.get()) for lease in leases}) == 4


async def test_awaited_leases_load_off_the_loop(loads) -> None:
    """Eight tasks await one load; the loop ticks on."""
    leases = [acquire(config()) for _ in range(8)]
    ticks = itertools.count()

    async def tick() -> None:
        while True:
            next(ticks)
            await asyncio.sleep(0)

    ticking = asyncio.create_task(tick())
    rankers = await asyncio.gather(*(lease.aget() for lease in leases))
    ticking.cancel()
    assert len({id(ranker) for ranker in rankers}) == 1
    assert len(loads) == 1
    assert next(ticks) > 1


def test_a_load_that_fails_is_tried_again() -> None:
    """Sharing remembers no failure: the next call loads afresh."""
    lease = acquire(RerankerConfig(model="/no/such/place", backend="onnx"))
    for _ in range(2):
        with pytest.raises(ModelError, match="no folder at"):
            lease.get()
        with pytest.raises(ModelError, match="no folder at"):
            asyncio.run(lease.aget())


def test_copies_and_pickles_are_leases_of_their_own(loads) -> None:
    """Weights never travel; nor does the token."""
    lease = acquire(config(token="hf_secret"))
    lease.get()
    for other in (copy.copy(lease), copy.deepcopy(lease), pickle.loads(pickle.dumps(lease))):
        assert other.loaded is None
        assert other.get().score("q", ["a"]).shape == (1,)
    assert len(loads) == 1
    assert b"hf_secret" not in pickle.dumps(lease)


def test_a_request_of_one_lease_outlives_another(loads) -> None:
    """Closing a lease fails only its own requests, and frees nothing that others use."""
    one, two = acquire(config()), acquire(config(max_length=9))
    one.get()
    ranker = two.get()
    one.close()
    close = ranker.score("the island ferry", DOCUMENTS)
    assert close.shape == (3,)
    assert len(loads) == 1


def test_a_refused_token_gets_nothing_though_the_model_is_loaded(loads, monkeypatch) -> None:
    """A private model is not handed to a caller whose own token the hub refuses."""
    folder = build("bert")

    class Private(hub.LocalFolder):
        refused = frozenset({None, "wrong"})

    def open_model(model, *, token=None, **_):
        assert model == "org/private"
        refusal = "HTTP 401" if token in Private.refused else None
        return hub.LocalFolder(folder, "abc", refusal)

    monkeypatch.setattr(finding.hub, "open_model", open_model)
    good = acquire(RerankerConfig(model="org/private", backend="own", token="right"))
    assert good.get().score("q", ["a"]).shape == (1,)
    for token in (None, "wrong"):
        bad = acquire(RerankerConfig(model="org/private", backend="own", token=token))
        with pytest.raises(ModelError, match=r"'org/private' was refused by the hub \(HTTP 401\)"):
            bad.get()
    assert len(loads) == 1


def test_a_backend_that_wants_texts_gets_each_leases_prompt_and_limit(monkeypatch, loads) -> None:
    """Where the checkpoint writes pairs itself, what differs by lease travels with them."""
    seen = []

    def logits(self, batch):
        seen.extend(batch.texts)
        return np.zeros((len(batch), 1), np.float32)

    traits = replace(own_backend.OwnBackend.traits, wants="texts")
    monkeypatch.setattr(own_backend.OwnBackend, "traits", traits)
    monkeypatch.setattr(own_backend.OwnBackend, "logits", logits)
    one, two = acquire(config(prompt="one ")), acquire(config(prompt="two ", max_length=20))
    for lease in (one, two):
        lease.get().score("q", ["a"])
    two.get().rerank("q", ["a"], prompt="three ")
    assert len(loads) == 1
    assert seen == [
        ("q", "a", "one ", 256),
        ("q", "a", "two ", 20),
        ("q", "a", "three ", 20),
    ]


def test_a_network_that_its_first_lease_cannot_use_is_freed(monkeypatch, loads) -> None:
    """The backend writes texts itself, so "as_text" is refused, and one that can use it loads."""
    traits = replace(own_backend.OwnBackend.traits, wants="texts")
    monkeypatch.setattr(own_backend.OwnBackend, "traits", traits)
    refused, good = acquire(config(special_tokens="as_text")), acquire(config())
    for held in (False, True):
        with pytest.raises(ConfigError, match="special_tokens must be 'as_tokens'"):
            refused.get()
        assert own_backend.LOADED[-1].closed is not held
        good.get()
    assert [backend.closed for backend in own_backend.LOADED] == [True, False]


def test_one_leases_small_batches_are_not_anothers(monkeypatch, loads) -> None:
    """The first to load asks for 64 tokens a forward; the next has what suits the device."""
    sizes: list[int] = []
    logits = own_backend.OwnBackend.logits

    def noted(self, batch):
        sizes.append(len(batch) * int(batch.lengths.max()))
        return logits(self, batch)

    monkeypatch.setattr(own_backend.OwnBackend, "logits", noted)
    documents = [f"word {number}" for number in range(100, 300)]
    small = acquire(config(max_batch_tokens=64))
    expected = small.get().score("q", documents)
    assert max(sizes) <= 64
    sizes.clear()
    other = acquire(config())
    np.testing.assert_array_equal(other.get().score("q", documents), expected)
    assert 64 < max(sizes) <= own_backend.OwnBackend.traits.batch_tokens
    assert len(loads) == 1
