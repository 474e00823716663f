"""Early exit: who stops is decided per query, nothing is computed twice, nothing is kept for long.

Oracles: transformers' own hidden states and a product written out here; the same model run whole.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder

from rerank_adapters import ConfigError, EarlyExit, Reranker, RerankerConfig, ScoreCache
from rerank_adapters.backends.onnx import OnnxBackend
from rerank_adapters.backends.torch.backend import TorchBackend
from rerank_adapters.checkpoints.tensors import write_tensors
from rerank_adapters.cli.options import mapping
from rerank_adapters.early_exit import ExitHead
from rerank_adapters.engine.held import HeldStates
from rerank_adapters.errors import ClosedError, ModelError
from rerank_adapters.langchain import CrossEncoderCompressor
from rerank_adapters.llama_index import CrossEncoderPostprocessor
from rerank_adapters.loading import find
from rerank_adapters.loading.exits import ChosenExit
from tests.checkpoints import TRAINING_TEXT, build
from tests.exported import exported as uncut
from tests.exported import exported_with_exits, write_heads
from tests.fakes import StagedFake, reranker_over

KEEP = 5
QUERY = "why is the sky blue"
DOCUMENTS = [line for line in TRAINING_TEXT.splitlines() if line.strip()][:24]
BACKWARDS = ChosenExit(((ExitHead(1, np.array([-1, 0], np.float32), 0.0), KEEP),))


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random heads for the layers of the tiny networks."""
    file = tmp_path_factory.mktemp("heads") / "heads.safetensors"
    return write_heads(file, (1, 2), seed=20, bias=0.25)


@pytest.fixture(scope="module")
def exported() -> Path:
    """The tiny BERT as ONNX in float32 and int8, with a head after layer 1."""
    return exported_with_exits()


def _folder(name: str, made: Path) -> Path:
    """A checkpoint; CamemBERT's is XLM-RoBERTa's network and tokenizer under its own name."""
    if name != "camembert":
        return build(name)
    shutil.copytree(build("xlm_roberta"), made / name)
    file = made / name / "config.json"
    config = json.loads(file.read_text("utf-8"))
    named = {"model_type": name, "architectures": ["CamembertForSequenceClassification"]}
    file.write_text(json.dumps(config | named), "utf-8")
    return made / name


def _by_hand(
    folder: Path, head: tuple[NDArray[np.float32], float], documents: list[str], layer: int = 1
) -> NDArray[np.float64]:
    """Exit logits after *layer*, from transformers' hidden states of one pair at a time."""
    oracle = CrossEncoder(str(folder), device="cpu")
    found = []
    for document in documents:
        encoded = oracle.tokenizer([[QUERY, document]], return_tensors="pt", truncation=True)
        with torch.inference_mode():
            states = oracle.model(**encoded, output_hidden_states=True).hidden_states[layer][0]
        asked = [at for at, of in enumerate(encoded.sequence_ids(0)) if of == 0]
        means = (states.mean(0), states[asked].mean(0))
        pooled = torch.cat((states[0], *means)).double().numpy()
        found.append(float(pooled @ head[0].astype(np.float64)) + head[1])
    return np.array(found)


def _head(file: Path, layer: int = 1) -> tuple[NDArray[np.float32], float]:
    from safetensors.numpy import load_file

    tensors = load_file(file)
    return tensors[f"layer_{layer}.weight"][0], float(tensors[f"layer_{layer}.bias"][0])


def _check(
    ranking,
    exits: NDArray[np.float64],
    whole: NDArray[np.float32],
    bound: float,
    layer: int = 1,
) -> None:
    """The best KEEP by exit logit carry the whole score, all others the exit head's."""
    going = np.argsort(-exits, kind="stable")[:KEEP].tolist()
    stopped = np.argsort(-exits, kind="stable")[KEEP:].tolist()
    assert ranking.indices == [*sorted(going, key=lambda it: -whole[it]), *stopped]
    for document in ranking:
        if document.index in going:
            assert document.exit is None
            assert document.score == pytest.approx(whole[document.index], abs=bound)
        else:
            assert document.exit == layer
            expected = 1 / (1 + np.exp(-exits[document.index]))
            assert document.score == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        *(("bert", 1), ("roberta", 1), ("xlm_roberta", 1), ("camembert", 1), ("modular_bert", 1)),
        *(("modernbert", 1), ("modernbert", 2)),  # within its local layers, and before them
    ],
)
def test_torch_ranks_by_its_own_layers_and_a_product_by_hand(name, layer, heads, tmp_path):
    # A chain of modules has its head behind the network: only that it goes on is asked of it.
    folder, exits = _folder(name, tmp_path), None
    if name != "modular_bert":
        exits = _by_hand(folder, _head(heads, layer), DOCUMENTS, layer)
    options = {"backend": "torch", "device": "cpu", "activation": "sigmoid"}
    with (
        Reranker(folder, **options) as plain,
        Reranker(folder, **options, early_exit=EarlyExit(layer, KEEP, str(heads))) as early,
    ):
        whole, ranking = plain.score(QUERY, DOCUMENTS), early.rerank(QUERY, DOCUMENTS)
        np.testing.assert_allclose(early.score(QUERY, DOCUMENTS), whole, atol=1e-6)
    if exits is not None:
        # law 2 of torch float32 is 1e-4; here it is rounding
        _check(ranking, exits, whole, 1e-5, layer)
    assert Counter(it.exit for it in ranking) == {None: KEEP, layer: len(DOCUMENTS) - KEEP}
    for it in ranking[:KEEP]:
        assert it.score == pytest.approx(whole[it.index], abs=1e-5)


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("int8", 0.0)])
def test_onnx_ranks_as_torch_does_and_goes_on_to_the_whole_graphs_scores(exported, dtype, bound):
    options = {"backend": "onnx", "dtype": dtype, "device": "cpu", "activation": "sigmoid"}
    with (
        Reranker(exported, **options) as plain,
        Reranker(exported, **options, early_exit=EarlyExit(1, KEEP)) as early,
    ):
        whole, ranking = plain.score(QUERY, DOCUMENTS), early.rerank(QUERY, DOCUMENTS)
        told = early.info().details["early_exit"]
        assert told.startswith("after layer 1 the best 5")
        assert f"{early.stats()['max_held_bytes']} bytes" in told
    if dtype == "float32":
        head = _head(exported / "exit_heads.safetensors")
        _check(ranking, _by_hand(build("bert"), head, DOCUMENTS), whole, bound)
    for it in ranking[:KEEP]:
        assert abs(it.score - float(whole[it.index])) <= bound
    assert [it.exit for it in ranking] == [None] * KEEP + [1] * (len(DOCUMENTS) - KEEP)


def test_the_parts_of_a_graph_read_the_one_file_of_weights(exported):
    for part in exported.glob("*_part*.onnx"):
        assert part.stat().st_size < 60_000
        data = b"model_int8.onnx_data" if "int8" in part.name else b"model.onnx_data"
        assert data in part.read_bytes()


def test_a_part_with_another_byte_is_another_model(exported, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(exported, folder)
    config = RerankerConfig(model=str(folder), backend="onnx", dtype="int8")
    before = find(config).fingerprint
    with (folder / "model_int8_part1.onnx").open("ab") as part:
        part.write(b"\0")
    assert find(config).fingerprint != before


def test_company_changes_nobody_who_goes_on_int8_bit_for_bit(exported):
    queries = [QUERY, "how long is a river", "what do bees make", "who sings at night"]
    requests = [(query, DOCUMENTS[at:] + DOCUMENTS[:at]) for at, query in enumerate(queries)]
    options = {"backend": "onnx", "dtype": "int8", "early_exit": EarlyExit(1, KEEP)}
    with Reranker(exported, **options) as early:
        alone = [early.rerank(*request) for request in requests]
        together = early.rerank_many(requests)
        with ThreadPoolExecutor(4) as threads:
            at_once = list(threads.map(lambda it: early.rerank(*it), requests * 3))
        awaited = asyncio.run(early.arerank_many(requests))
    assert together == alone == awaited
    assert at_once == alone * 3


def test_keeping_all_is_the_run_without_bit_for_bit(exported):
    options = {"backend": "onnx", "dtype": "int8"}
    with (
        Reranker(exported, **options) as plain,
        Reranker(exported, **options, early_exit=EarlyExit(1, len(DOCUMENTS))) as early,
    ):
        assert early.rerank(QUERY, DOCUMENTS) == plain.rerank(QUERY, DOCUMENTS)


def test_no_layer_is_computed_twice(heads, monkeypatch):
    from transformers.models.bert.modeling_bert import BertLayer

    seen: list[tuple[int, int]] = []
    forward = BertLayer.forward

    def counting(self, hidden, *args, **options):
        seen.append((id(self), hidden.shape[1]))
        return forward(self, hidden, *args, **options)

    options = {"backend": "torch", "device": "cpu", "early_exit": EarlyExit(1, KEEP, str(heads))}
    with Reranker(build("bert"), **options) as early:
        monkeypatch.setattr(BertLayer, "forward", counting)
        ranking = early.rerank(QUERY, DOCUMENTS)
        monkeypatch.undo()
        counts = early.count_tokens([QUERY, *DOCUMENTS])
    tokens = np.array(counts[1:]) + counts[0] + 3
    by_layer: Counter[int] = Counter()
    for layer, rows in seen:
        by_layer[layer] += rows
    first, last = by_layer.values()
    assert first == tokens.sum()
    assert last == tokens[ranking.indices[:KEEP]].sum()


def test_who_stopped_meets_no_threshold_and_ranks_below():
    with reranker_over(StagedFake(), exits=BACKWARDS) as early:
        every = early.rerank(QUERY, DOCUMENTS)
        kept = early.rerank(QUERY, DOCUMENTS, score_threshold=-1e9)
        top = early.rerank(QUERY, DOCUMENTS, top_n=KEEP + 2)
        whole = early.score(QUERY, DOCUMENTS)
    assert len(every) == len(DOCUMENTS)
    assert kept == every[:KEEP] == every.top(score_threshold=-1e9)
    assert top == every[: KEEP + 2]
    weakest = np.argsort(whole, kind="stable")[:KEEP]  # the head orders them backwards
    assert sorted(every.indices[:KEEP]) == sorted(weakest.tolist())
    assert every.to_dicts()[KEEP]["exit"] == 1


def test_each_query_has_its_own_contest_and_equal_pairs_are_shared_within_it_alone():
    backend = StagedFake()
    with reranker_over(backend, exits=BACKWARDS) as early:
        alone = [early.rerank(QUERY, DOCUMENTS[:12]), early.rerank(QUERY, DOCUMENTS[6:18])]
        before = backend.started
        together = early.rerank_many([(QUERY, DOCUMENTS[:12]), (QUERY, DOCUMENTS[6:18])])
        assert backend.started - before == 24
        twice = early.rerank(QUERY, DOCUMENTS[:12] * 2)
    assert together == alone
    assert sorted({index % 12 for index in twice.indices[: 2 * KEEP]}) == sorted(
        alone[0].indices[:KEEP]
    )


def test_batches_are_of_one_stage_and_shared_by_callers():
    backend = StagedFake()
    with reranker_over(backend, exits=BACKWARDS) as early:
        early.rerank_many([(f"query {at}", DOCUMENTS) for at in range(8)])
        stats = early.stats()
    stages = [batch.stage for batch in backend.batches if batch.stage is not None]
    assert {(stage.after, stage.head is None) for stage in stages} == {(0, False), (1, True)}
    queries = [{entry.contest for entry in batch.held} for batch in backend.batches if batch.held]
    assert any(len(contests) > 1 for contests in queries)
    assert backend.started - 1 == 8 * len(DOCUMENTS)  # one pair was tried at load
    assert backend.resumed - 1 == 8 * KEEP
    assert (stats["held_bytes"], stats["unfinished"]) == (0, 0)


@dataclass
class Held:
    """A reranker whose second parts wait, and what a kept token's states take."""

    early: Reranker
    token_bytes: int
    entered: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)


def _held(kind: str, heads: Path, exported: Path, monkeypatch: pytest.MonkeyPatch) -> Held:
    if kind == "fake":
        backend = StagedFake(hold=True)
        early = reranker_over(backend, exits=BACKWARDS)
        return Held(early, 4, backend.entered, backend.release)
    options = {
        "torch": {"model": build("bert"), "early_exit": EarlyExit(1, KEEP, str(heads))},
        "onnx": {"model": exported, "dtype": "int8", "early_exit": EarlyExit(1, KEEP)},
    }
    held = Held(Reranker(**options[kind], backend=kind, device="cpu"), 64 * 4)
    backend_class: type = {"torch": TorchBackend, "onnx": OnnxBackend}[kind]
    resume = backend_class.resume

    def waiting(self, batch, states, layer):
        held.entered.set()
        assert held.release.wait(60), "nobody released the held forward within 60 s"
        return resume(self, batch, states, layer)

    monkeypatch.setattr(backend_class, "resume", waiting)
    return held


@pytest.mark.parametrize("kind", ["fake", "torch", "onnx"])
@pytest.mark.parametrize("end", ["cancel", "deadline", "close", "answer"])
def test_states_of_who_goes_on_are_kept_until_the_call_ends(
    kind, end, heads, exported, monkeypatch
):
    held = _held(kind, heads, exported, monkeypatch)
    early = held.early
    try:
        future = early.submit(QUERY, DOCUMENTS, timeout=2 if end == "deadline" else None)
        assert held.entered.wait(30)
        counts = early.count_tokens([QUERY, *DOCUMENTS])
        kept = early.stats()["held_bytes"]
        assert kept <= early.stats()["max_held_bytes"]
        closing = threading.Thread(target=early.close)
        if end == "cancel":
            future.cancel()
        elif end == "close":
            closing.start()
            with pytest.raises(ClosedError):
                future.result(30)
        elif end == "deadline":
            with pytest.raises(TimeoutError):
                future.result(30)
        else:
            held.release.set()
            going = future.result(60).indices[:KEEP]
            tokens = sum(counts[0] + 3 + counts[1 + at] for at in going)
            assert kept == tokens * held.token_bytes
        assert kept > 0
        assert early.stats()["held_bytes"] == 0
    finally:
        held.release.set()
        early.close()


def test_progress_counts_each_pair_once():
    found: list[int] = []
    with reranker_over(StagedFake(), exits=BACKWARDS) as early:
        early.rerank_many([(QUERY, DOCUMENTS), ("short", DOCUMENTS[:3])], on_progress=found.append)
    assert sum(found) == len(DOCUMENTS) + 3


def test_queries_wait_for_room_first_come_first_served():
    room, begun = HeldStates(100), []
    assert room.enter(60, lambda: begun.append("a"))
    assert not room.enter(50, lambda: begun.append("b"))
    assert not room.enter(10, lambda: begun.append("c"))  # it would fit, and b was first
    room.leave(60)
    assert begun == ["b", "c"]
    room.leave(50)
    assert not room.enter(1000, lambda: begun.append("d"))
    room.leave(10)
    assert begun == ["b", "c", "d"]  # larger than all the room: alone


def test_many_queries_share_little_room():
    backend = StagedFake()
    early = reranker_over(backend, exits=BACKWARDS)
    held = early._caller.queue._admission.held
    held.most = 1  # one query at a time
    with early:
        found = early.rerank_many([(f"query {at}", DOCUMENTS) for at in range(6)])
        assert held.bytes == 0
    with reranker_over(StagedFake(), exits=BACKWARDS) as roomy:
        assert found == roomy.rerank_many([(f"query {at}", DOCUMENTS) for at in range(6)])


def test_a_cache_knows_a_query_whole_or_not_at_all(exported):
    cache = ScoreCache.memory(bytes=1_000_000)
    options = {"backend": "onnx", "dtype": "int8", "cache": cache}
    with (
        Reranker(exported, **options, early_exit=EarlyExit(1, KEEP)) as early,
        Reranker(exported, **options, early_exit=EarlyExit(1, KEEP + 1)) as other,
    ):
        first = early.rerank(QUERY, DOCUMENTS)
        pairs = early.stats()["pairs"]
        assert early.rerank(QUERY, DOCUMENTS) == first  # exits among it
        assert early.stats()["pairs"] == pairs
        fewer = early.rerank(QUERY, DOCUMENTS[:12])  # known pairs, in other company
        assert Counter(it.exit for it in fewer) == {None: KEEP, 1: 12 - KEEP}
        assert Counter(it.exit for it in other.rerank(QUERY, DOCUMENTS))[None] == KEEP + 1


def test_a_cache_in_a_file_keeps_where_scoring_ended(tmp_path):
    with reranker_over(
        StagedFake(), exits=BACKWARDS, cache=ScoreCache.at(tmp_path / "c", bytes=1_000_000)
    ) as early:
        first = early.rerank(QUERY, DOCUMENTS)
        early.rerank(QUERY, ["another"])  # what was kept before is in the file by now
        pairs = early.stats()["pairs"]
        again = early.rerank(QUERY, DOCUMENTS)
    assert again == first
    assert pairs == len(DOCUMENTS) + KEEP + 1


def test_what_cannot_stop_is_refused_with_the_cure(heads, exported):
    exit_ = {"early_exit": {"layer": 1, "keep": 5, "heads": str(heads)}}
    named = r"torch cuts networks of bert, .*modernbert, .*and this is deberta-v2: .*export --exits"
    with pytest.raises(ConfigError, match=named):
        Reranker(build("deberta_v2"), backend="torch", device="cpu", **exit_)
    with pytest.raises(ConfigError, match=r"graph model.onnx is not cut for it: .*export --exits"):
        Reranker(uncut("bert"), backend="onnx", **exit_)
    with pytest.raises(ConfigError, match=r"early_exit.layer must be one of 1: got 7"):
        Reranker(build("bert"), backend="torch", device="cpu", early_exit=EarlyExit(7, 5))
    with pytest.raises(ConfigError, match="rerank-adapters exits train"):
        Reranker(build("bert"), backend="torch", device="cpu", early_exit=EarlyExit(1, 5))
    with pytest.raises(ConfigError, match="must be a file of exit heads"):
        Reranker(exported, backend="onnx", early_exit=EarlyExit(1, 5, "nowhere"))


def test_heads_of_another_width_are_refused(exported, tmp_path):
    file = tmp_path / "narrow.safetensors"
    write_tensors(
        file,
        {"layer_1.weight": np.ones((1, 6), np.float32), "layer_1.bias": np.zeros(1, np.float32)},
    )
    with pytest.raises(ConfigError, match="got 6 weights for 192"):
        Reranker(exported, backend="onnx", early_exit=EarlyExit(1, 5, str(file)))
    file.write_bytes(b"nothing")
    with pytest.raises(ModelError, match="narrow"):
        Reranker(exported, backend="onnx", early_exit=EarlyExit(1, 5, str(file)))


@pytest.mark.parametrize(
    "value",
    [{"layer": 0, "keep": 1}, {"layer": 1}, {"layer": 1, "keep": True}, {"keep": 1, "depth": 2}, 3],
)
def test_early_exit_says_what_is_wrong_everywhere(value):
    for make in (RerankerConfig, CrossEncoderCompressor, CrossEncoderPostprocessor):
        with pytest.raises(ConfigError, match="early_exit"):
            make(early_exit=value)


def test_what_cannot_go_together_is_refused():
    exit_ = EarlyExit(1, 5)
    for other in ({"windows": {"tokens": 64}}, {"fuse": "rrf"}, {"rest": "rescale"}):
        with pytest.raises(ConfigError, match=f"cannot go with {next(iter(other))}"):
            RerankerConfig(early_exit=exit_, **other)


def test_adapters_and_the_command_line_take_a_mapping():
    value = {"layer": 3, "keep": 15}
    assert mapping("--early-exit", "layer=3,keep=15") == value
    for make in (RerankerConfig, CrossEncoderCompressor, CrossEncoderPostprocessor):
        assert make(early_exit=value).early_exit == EarlyExit(3, 15)
    saved = CrossEncoderPostprocessor(early_exit=value).to_json()
    assert CrossEncoderPostprocessor.from_json(saved).early_exit == EarlyExit(3, 15)
