"""Graphs in parts: networks of every kind that has layers, and what cannot be cut, by name.

Oracles: transformers' own hidden states and a product written out here; the graph that is not cut;
sentence-transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from rerank_adapters import EarlyExit, ModelError, Reranker
from rerank_adapters.checkpoints.tensors import read_tensors, write_tensors
from rerank_adapters.export import export_onnx, gate, network, parts
from tests.checkpoints import TRAINING_TEXT, build, encoder_for, oracle
from tests.exported import exported, exported_with_exits, write_heads
from tests.replicas import copy_of

KEEP = 4
QUERY = "why is the sky blue"
DOCUMENTS = [line for line in TRAINING_TEXT.splitlines() if line.strip()][:14]
PAIRS = [(QUERY, document) for document in DOCUMENTS]

CUT = (("modernbert", (1, 2)), ("deberta_v2", (1,)), ("mpnet", (1,)), ("distilbert", (1,)))
"""Kinds besides BERT: local and global layers; relative positions; no token types."""


def _exit_scores(kind: str, folder: Path, layer: int) -> NDArray[np.float64]:
    """Scores of PAIRS by the head of *layer*, from transformers' states of one pair at a time."""
    encoder = encoder_for(build(kind))
    tensors = read_tensors(folder / "exit_heads.safetensors")
    weight = tensors[f"layer_{layer}.weight"][0].astype(np.float64)
    logits = []
    for pair in PAIRS:
        encoded = encoder.tokenizer([list(pair)], return_tensors="pt", truncation=True)
        with torch.inference_mode():
            states = encoder.model(**encoded, output_hidden_states=True).hidden_states[layer][0]
        asked = [at for at, of in enumerate(encoded.sequence_ids(0)) if of == 0]
        means = (states.mean(0), states[asked].mean(0))
        pooled = torch.cat((states[0], *means)).double().numpy()
        logits.append(pooled @ weight + tensors[f"layer_{layer}.bias"][0])
    return 1 / (1 + np.exp(-np.array(logits)))


@pytest.mark.parametrize(("kind", "layers"), CUT)
def test_each_kind_of_network_is_cut_and_scores_as_uncut(kind: str, layers: tuple[int, ...]):
    """Who goes on has the whole graph's score, who stops the head's, at every layer of the cut."""
    folder = exported_with_exits(kind, layers, ("float32",))
    options: dict[str, Any] = {"backend": "onnx", "dtype": "float32", "device": "cpu"}
    with Reranker(folder, **options, activation="sigmoid") as plain:
        whole = plain.score(QUERY, DOCUMENTS)
    expected = oracle(build(kind), PAIRS, activation="sigmoid")
    np.testing.assert_allclose(whole, expected, rtol=0, atol=1e-4)  # law 1
    for layer in layers:
        stops = _exit_scores(kind, folder, layer)
        going = set(np.argsort(-stops, kind="stable")[:KEEP].tolist())
        options["early_exit"] = EarlyExit(layer, KEEP)
        with Reranker(folder, **options, activation="sigmoid") as early:
            ranking = early.rerank(QUERY, DOCUMENTS)
        assert {it.index for it in ranking if it.exit is None} == going
        for it in ranking:
            # parts round as the whole does but for their order of sums: law 2's 1e-5; the exit's
            # oracle is torch, law 1's 1e-4
            score, bound = (whole, 1e-5) if it.exit is None else (stops, 1e-4)
            assert abs(it.score - float(score[it.index])) <= bound, (layer, it)


@pytest.mark.long
@pytest.mark.parametrize(("kind", "layers"), CUT)
def test_parts_in_int8_are_the_whole_graph_bit_for_bit(kind: str, layers: tuple[int, ...]):
    """Law 11: what goes on scores as without exits, whoever stopped."""
    folder = exported_with_exits(kind, layers, ("int8",))
    options: dict[str, Any] = {"backend": "onnx", "dtype": "int8", "device": "cpu"}
    with Reranker(folder, **options) as plain:
        whole = plain.score(QUERY, DOCUMENTS)
    for layer in layers:
        with Reranker(folder, **options, early_exit=EarlyExit(layer, KEEP)) as early:
            ranking = early.rerank(QUERY, DOCUMENTS)
        assert [it.exit for it in ranking] == [None] * KEEP + [layer] * (len(DOCUMENTS) - KEEP)
        assert all(it.score == whole[it.index] for it in ranking[:KEEP])


@pytest.mark.parametrize(
    ("layers", "width", "match"),
    [
        ((2,), 64, r"exits must be after layers 1 to 1 of this bert network: got \[2\]"),
        ((1,), 48, r"heads for this network, of 192 weights: got 144 for layer 1"),
        ((), 64, r"heads\.safetensors holds no exit heads: none .* layer_N\.weight"),
    ],
)
def test_heads_for_another_network_are_refused(
    tmp_path: Path, layers: tuple[int, ...], width: int, match: str
):
    """Of layers that are not there or the last, of another width, and of no layer at all."""
    heads = tmp_path / "heads.safetensors"
    write_tensors(heads, {"other": np.zeros(3, np.float32)})
    if layers:
        tensors: dict[str, np.ndarray] = {}
        for layer in layers:
            tensors[f"layer_{layer}.weight"] = np.ones((1, 3 * width), np.float32)
            tensors[f"layer_{layer}.bias"] = np.zeros(1, np.float32)
        write_tensors(heads, tensors)
    with pytest.raises(ModelError, match=match):
        export_onnx(build("bert"), tmp_path / "out", exits=heads)
    assert not (tmp_path / "out").exists()


HEADER = "import torch\nfrom transformers import BertForSequenceClassification as Base\n"
MUTE = """
class MuteForSequenceClassification(Base):
    def forward(self, input_ids=None, attention_mask=None, token_type_ids=None, **options):
        return super().forward(input_ids, attention_mask, token_type_ids)
"""
"""A class of one's own that keeps its hidden states to itself, as many in repositories do."""

POOLED = """
class PooledForSequenceClassification(Base):
    def forward(self, input_ids=None, attention_mask=None, token_type_ids=None, **options):
        states = self.bert(
            input_ids, attention_mask, token_type_ids, output_hidden_states=True
        ).hidden_states
        mean = torch.stack([each[:, 0] for each in states[1:]]).mean(0)
        from transformers.modeling_outputs import SequenceClassifierOutput
        return SequenceClassifierOutput(logits=self.classifier(mean), hidden_states=states)
"""
"""A head over the first tokens of all layers: the last part would need the first layers again."""


def _own_code(name: str, code: str, folder: Path, layers: int) -> Path:
    """The tiny BERT, of *layers* equal to its own, under a class *name* of its repository."""
    auto_map = {"AutoModelForSequenceClassification": f"modeling.{name}"}

    def deeper(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        more = {
            key.replace("layer.1.", f"layer.{layer}."): value.clone()
            for layer in range(2, layers)
            for key, value in weights.items()
            if "layer.1." in key
        }
        return {**weights, **more}

    copy_of(
        "bert",
        folder,
        weights=deeper,
        architectures=[name],
        auto_map=auto_map,
        num_hidden_layers=layers,
    )
    (folder / "modeling.py").write_text(HEADER + code, "utf-8")
    return folder


def test_a_network_that_shows_no_states_is_refused_by_name(tmp_path: Path, monkeypatch):
    modules = "transformers.dynamic_module_utils.HF_MODULES_CACHE"
    monkeypatch.setattr(modules, str(tmp_path / "modules"))
    folder = _own_code("MuteForSequenceClassification", MUTE, tmp_path / "mute", layers=2)
    heads = write_heads(tmp_path / "heads", (1,), seed=1, bias=0.0)
    with pytest.raises(ModelError, match="exits must be left out: a bert network shows no states"):
        export_onnx(folder, tmp_path / "out", exits=heads, trust_remote_code=True)


def test_a_network_whose_head_reads_all_layers_is_not_cut(tmp_path: Path, monkeypatch):
    """Cut after the second of three layers, the first would be computed in both parts."""
    modules = "transformers.dynamic_module_utils.HF_MODULES_CACHE"
    monkeypatch.setattr(modules, str(tmp_path / "modules"))
    folder = _own_code("PooledForSequenceClassification", POOLED, tmp_path / "pooled", layers=3)
    heads = write_heads(tmp_path / "heads", (2,), seed=1, bias=0.0)
    with pytest.raises(ModelError, match=r"cannot be cut between its layers.*the same twice"):
        export_onnx(folder, tmp_path / "out", exits=heads, trust_remote_code=True)
    assert not (tmp_path / "out").exists()


def _whole(kind: str) -> tuple[network.Network, list[gate.Probe]]:
    loaded = network.load(build(kind))
    probes = gate.probe(loaded)
    return network.build(loaded), probes


def test_states_of_other_weights_are_found_in_no_tensor():
    """Numbers tell where a graph is to be cut: those of another checkpoint are nowhere in it."""
    module, probes = _whole("bert")
    file = exported("bert") / "model.onnx"
    found = parts.boundaries(file, probes[0], parts.hidden_states(module, probes[0], [1]))
    assert list(found) == [1]
    with torch.no_grad():
        module.model.base_model.encoder.layer[0].output.LayerNorm.weight.mul_(1.5)
    other = parts.hidden_states(module, probes[0], [1])
    with pytest.raises(ModelError, match="no tensor of the graph holds the hidden states after l"):
        parts.boundaries(file, probes[0], other)
    assert not list(file.parent.glob("asking-*"))


def test_parts_that_drift_from_the_whole_are_refused(tmp_path: Path):
    """One number of a part's head moved by a thousandth, and by what rounding may move."""
    _, probes = _whole("bert")
    folder = exported_with_exits()
    written = [folder / f"model_part{number}.onnx" for number in (0, 1)]
    parts.check(written, folder / "model.onnx", probes, 1e-5)
    model = onnx.load(written[1])
    bias = next(it for it in model.graph.initializer if it.name.endswith("classifier.bias"))
    moved = numpy_helper.to_array(bias) + np.float32(1e-3)
    bias.CopyFrom(numpy_helper.from_array(moved, bias.name))
    onnx.save(model, tmp_path / "part1.onnx")
    parts.check([written[0], tmp_path / "part1.onnx"], folder / "model.onnx", probes, 2e-3)
    told = r"the parts of model\.onnx drift from it by 1\.0\de-03 \(allowed: 1e-05\): no file was"
    with pytest.raises(ModelError, match=told):
        parts.check([written[0], tmp_path / "part1.onnx"], folder / "model.onnx", probes, 1e-5)
