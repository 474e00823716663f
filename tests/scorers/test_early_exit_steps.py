"""Several exits one behind the other: each decides by query among those whom the last let pass.

Oracles: transformers' own hidden states of one pair at a time and products written out here, for
torch; the int8 graph's own parts run on one pair at a time, and sorts, for ONNX.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rerank_adapters import ConfigError, EarlyExit, Ranking, Reranker, RerankerConfig
from rerank_adapters.checkpoints import HEADS
from rerank_adapters.checkpoints.tensors import read_tensors
from rerank_adapters.cli.options import mapping
from rerank_adapters.early_exit import ExitHead
from rerank_adapters.engine.held import Contest, HeldStates
from rerank_adapters.langchain import CrossEncoderCompressor
from rerank_adapters.llama_index import CrossEncoderPostprocessor
from rerank_adapters.loading import bundled, find
from rerank_adapters.loading.assembly import start
from rerank_adapters.loading.exits import ChosenExit
from rerank_adapters.loading.meaning import read
from rerank_adapters.protocols import Call, StagedBackend
from tests.checkpoints import TRAINING_TEXT
from tests.fakes import StagedFake, reranker_over

LAYERS = (2, 3, 4)
QUERIES = ("why is the sky blue", "how long is a river")
POOL = [line for line in TRAINING_TEXT.splitlines() if line.strip()][:20]
STEPS = (EarlyExit(LAYERS, (12, 8, 3)), EarlyExit((3, 4), (9, 2)), EarlyExit((2, 4), (15, 6)))


@dataclass(frozen=True)
class Model:
    """One backend's rerankers, and its logits of each query and document after every exit."""

    early: dict[EarlyExit, Reranker]
    exits: dict[int, NDArray[np.float64]]
    whole: NDArray[np.float64]
    bound: float

    def check(self, found: Ranking, query: int, documents: Sequence[int], asked: EarlyExit) -> None:
        """*found* is what one sort after each layer says."""
        expected = self._expected(query, documents, asked)
        assert [(it.index, it.exit) for it in found] == [row[:2] for row in expected]
        scores = [row[2] for row in expected]
        np.testing.assert_allclose(found.scores, scores, rtol=0, atol=self.bound)

    def _expected(
        self, query: int, documents: Sequence[int], asked: EarlyExit
    ) -> list[tuple[int, int | None, float]]:
        alive, behind = list(range(len(documents))), list[tuple[int, int | None, float]]()
        for layer, keep in asked.steps:
            if len(alive) > keep:
                logits = {at: float(self.exits[layer][query][documents[at]]) for at in alive}
                order = sorted(alive, key=lambda at: (-logits[at], at))
                behind = [(at, layer, logits[at]) for at in order[keep:]] + behind
                alive = order[:keep]
        last = {at: float(self.whole[query][documents[at]]) for at in alive}
        first = [(at, None, last[at]) for at in sorted(alive, key=lambda at: (-last[at], at))]
        return first + behind


def _heads() -> dict[int, tuple[NDArray[np.float64], float]]:
    tensors = read_tensors(bundled.folder() / HEADS)
    return {
        layer: (
            tensors[f"layer_{layer}.weight"][0].astype(np.float64),
            float(tensors[f"layer_{layer}.bias"][0]),
        )
        for layer in LAYERS
    }


def _by_transformers() -> dict[int, NDArray[np.float64]]:
    """Logits after each of LAYERS, and after the last under 0, from one pair at a time."""
    folder = bundled.unpack()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    found: dict[int, list[float]] = {layer: [] for layer in (*LAYERS, 0)}
    for query in QUERIES:
        for document in POOL:
            pair = tokenizer(query, document, return_tensors="pt")
            asked = [at for at, of in enumerate(pair.sequence_ids(0)) if of == 0]
            with torch.inference_mode():
                out = network(**pair, output_hidden_states=True)
            found[0].append(float(out.logits[0, 0]))
            for layer, (weight, bias) in _heads().items():
                states = out.hidden_states[layer][0].double().numpy()
                pooled = np.concatenate((states[0], states.mean(0), states[asked].mean(0)))
                found[layer].append(float(pooled @ weight + bias))
    return {layer: np.array(it).reshape(len(QUERIES), -1) for layer, it in found.items()}


def _by_parts() -> dict[int, NDArray[np.float64]]:
    """The same from the int8 graph."""
    config = RerankerConfig(backend="onnx", device="cpu")
    located = find(config)
    meaning = read(located)
    loaded = start(located, meaning)
    found: dict[int, list[float]] = {layer: [] for layer in (*LAYERS, 0)}
    try:
        network = cast("StagedBackend", loaded.backends[0])
        for query in QUERIES:
            for document in POOL:
                pair = meaning.tokenizer.encode([(query, document)], Call().prompts, None).batch
                found[0].append(float(network.logits(pair)[0, 0]))
                for layer, (weight, bias) in _heads().items():
                    pooled, _ = network.start(pair, layer)
                    products = pooled[0].astype(np.float64) * weight
                    found[layer].append(float(np.float32(products.sum() + bias)))
    finally:
        loaded.engine.close()
    return {layer: np.array(it).reshape(len(QUERIES), -1) for layer, it in found.items()}


@pytest.fixture(scope="module", params=["torch", "onnx"])
def model(request: pytest.FixtureRequest) -> Iterator[Model]:
    """The bundled model with three settings of several exits, beside its logits."""
    logits = _by_transformers() if request.param == "torch" else _by_parts()
    name = "default" if request.param == "onnx" else str(bundled.unpack())
    options: dict[str, Any] = {"backend": request.param, "device": "cpu", "activation": "identity"}
    heads = str(bundled.folder() / HEADS)
    early = {
        one: Reranker(name, **options, early_exit=EarlyExit(one.layer, one.keep, heads))
        for one in STEPS
    }
    # law 2 of float32: company changes torch's products by rounding; int8 is bit for bit
    yield Model(
        early,
        {layer: logits[layer] for layer in LAYERS},
        logits[0],
        1e-4 if request.param == "torch" else 0.0,
    )
    for reranker in early.values():
        reranker.close()


@settings(max_examples=25, deadline=None)  # a bound on time is no property
@given(
    asked=st.sampled_from(STEPS),
    calls=st.lists(
        st.tuples(
            st.integers(0, len(QUERIES) - 1),
            st.lists(st.integers(0, len(POOL) - 1), max_size=20, unique=True),
        ),
        min_size=1,
        max_size=3,
    ),
)
def test_each_exit_decides_among_those_who_came_so_far(model, asked, calls):
    """Few candidates or many, alone or in company; no exit for as many as may pass it."""
    requests = [(QUERIES[query], [POOL[at] for at in rows]) for query, rows in calls]
    for (query, rows), found in zip(calls, model.early[asked].rerank_many(requests), strict=True):
        model.check(found, query, rows, asked)


def _backwards(*steps: tuple[int, int]) -> ChosenExit:
    heads = [ExitHead(layer, np.array([-1, 0], np.float32), 0.0) for layer, _ in steps]
    return ChosenExit(tuple(zip(heads, (keep for _, keep in steps), strict=True)))


def test_no_layer_is_run_twice_and_none_for_who_stopped():
    """Counted by layer, of queries that begin with different exits."""
    backend = StagedFake(layers=(1, 2, 3))
    with reranker_over(backend, exits=_backwards((1, 12), (2, 6), (3, 2))) as early:
        tried = Counter(backend.layers)  # at load
        requests = [("many", POOL), ("some", POOL[:10]), ("few", POOL[:5]), ("two", POOL[:2])]
        rankings = early.rerank_many(requests)
        stats = early.stats()
    ran = backend.layers - tried
    # 20, 12, 6, 2 of many; 10, 10, 6, 2 of some; 5, 5, 5, 2 of few; two run whole
    assert ran == {1: 20 + 10 + 5, 2: 12 + 10 + 5, 3: 6 + 6 + 5, 4: 2 + 2 + 2}
    ends = [Counter(it.exit for it in ranking) for ranking in rankings]
    assert ends == [{None: 2, 3: 4, 2: 6, 1: 8}, {None: 2, 3: 4, 2: 4}, {None: 2, 3: 3}, {None: 2}]
    assert (stats["held_bytes"], stats["unfinished"]) == (0, 0)


def test_who_went_further_ranks_above():
    """By layer first, though the heads order candidates backwards; a threshold meets the last."""
    with reranker_over(
        StagedFake(layers=(1, 2, 3)), exits=_backwards((1, 12), (2, 6), (3, 2))
    ) as early:
        ranking = early.rerank("many", POOL)
        kept = early.rerank("many", POOL, score_threshold=-1e9)
    assert [it.exit for it in ranking] == [None] * 2 + [3] * 4 + [2] * 6 + [1] * 8
    assert kept == ranking[:2]


class _States:
    nbytes = 10


@pytest.mark.parametrize("keeps", [(4,), (10, 4, 1)])
def test_a_contest_keeps_no_more_states_than_go_on_whatever_the_order(keeps: tuple[int, ...]):
    """In any round, of logits with ties: never more bytes than of those who pass the first."""
    generator = np.random.default_rng(0)
    for _ in range(20):
        room, complete = HeldStates(), []
        size = 10 * keeps[0]
        contest = Contest(range(30), keeps, room=room, size=size, on_complete=complete.append)
        assert room.enter(size, lambda: None)
        assert contest.open()
        entries, most, sizes = list(contest.entries), 0, []
        for number, keep in enumerate(keeps):
            logits = generator.integers(0, 6, len(entries)).astype(float)  # ties
            rows = np.array([it.row for it in entries])
            for at in generator.permutation(len(entries)).tolist():
                entries[at].offer(logits[at], _States())
                entries[at].offer(1e9, _States())  # a batch that is run again changes nothing
                most = max(most, room.bytes)
            assert complete == [contest] * (number + 1)
            expected = sorted(rows[np.argsort(-logits, kind="stable")[:keep]].tolist())
            entries = contest.next_round()
            assert [it.row for it in entries] == expected
            sizes.append(room.bytes)
        assert (most, sizes) == (size, [10 * keep for keep in keeps])
        for entry in entries:
            entry.leave()
        assert room.bytes == 0
        assert room.enter(room.most, lambda: None)  # all of it is free again


@pytest.mark.parametrize(
    ("layer", "keep", "rule"),
    [
        ((2, 3), 5, "as many numbers as each other: got 2 and 1"),
        ((3, 2), (9, 4), "layer must be numbers each larger than the one before: got"),
        ((2, 3), (4, 4), "keep must be numbers each smaller than the one before: got"),
        ((), (), "layer must be an int of at least 1, or several: got"),
        ((2, True), (4, 3), "layer must be an int of at least 1, or several: got"),
        ("2+x", 4, "layer must be an int of at least 1, or several: got '2[+]x'"),
    ],
)
def test_steps_that_cannot_be_are_refused(layer, keep, rule):
    for make in (RerankerConfig, CrossEncoderCompressor, CrossEncoderPostprocessor):
        with pytest.raises(ConfigError, match=f"early_exit.*{rule}"):
            make(early_exit={"layer": layer, "keep": keep})


def test_a_layer_without_a_head_is_named():
    with pytest.raises(ConfigError, match=r"early_exit.layer must be one of 2, 3, 4: got 5"):
        Reranker(early_exit=EarlyExit((3, 5), (12, 4)))


def test_steps_are_written_and_read_alike_everywhere():
    asked = EarlyExit((3, 4), (12, 4))
    assert EarlyExit((3,), [12]) == EarlyExit(3, 12)
    assert EarlyExit([3, 4], [12, 4]) == asked
    assert hash(EarlyExit([3, 4], [12, 4])) == hash(asked)
    assert EarlyExit.of(mapping("--early-exit", str(asked))) == asked
    assert EarlyExit.of(asked.to_dict()) == asked
    saved = CrossEncoderPostprocessor(early_exit=asked).to_json()
    assert CrossEncoderPostprocessor.from_json(saved).early_exit == asked
    with Reranker(early_exit=asked) as reranker:
        told = reranker.info().details["early_exit"]
    assert told.startswith("after layer 3 the best 12, after layer 4 the best 4 of a query's")
