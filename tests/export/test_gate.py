"""What the gate refuses: graphs that score otherwise than torch does."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from safetensors.torch import load_file, save_file

from rerank_adapters.checkpoints import Checkpoint
from rerank_adapters.config import RerankerConfig
from rerank_adapters.errors import ModelError
from rerank_adapters.export import export_onnx, gate, graph, network
from rerank_adapters.export.framing import Framing
from rerank_adapters.parity import probes
from rerank_adapters.parity.comparison import spread_of
from tests.checkpoints import build, encoder_for
from tests.exported import exported
from tests.replicas import save_decoder

from .graphs import leftovers


class Mutant(torch.nn.Module):
    """A network whose inputs are changed on their way in."""

    def __init__(self, network: network.Network, change: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.network, self.change = network, change
        self.inputs, self.model = network.inputs, network.model

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        return self.network(tensors[0], self.change(tensors[1]), *tensors[2:])


def traced_length_only(mask: torch.Tensor) -> torch.Tensor:
    """Right up to the 17 tokens of the trace, silently wrong beyond, as shapes baked in are."""
    return mask * (torch.arange(mask.shape[1]) < 17)


@pytest.mark.parametrize("change", [traced_length_only, torch.ones_like])
def test_gate_catches_wrong_traces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[..., torch.Tensor]
) -> None:
    """Right at the traced shape, or unpadded, is not enough; the error says where it is wrong."""
    honest = graph.trace
    monkeypatch.setattr(graph, "trace", lambda network: honest(Mutant(network, change)))
    with pytest.raises(ModelError, match=r"drifts from torch by .* at batch \d+, sequence \d+"):
        export_onnx(build("bert"), tmp_path / "bert")
    assert leftovers(tmp_path) == []


def legacy_trace(
    net: network.Network, *, inputs: Sequence[str], batch: int, sequence: int
) -> onnx.ModelProto:
    """torch.onnx.export's old way: one run is recorded, with sdpa attention, dimensions open."""
    net.model.set_attn_implementation("sdpa")
    net.inputs = tuple(inputs)
    ids = torch.arange(batch * sequence).reshape(batch, sequence) % 100 + 5
    graph_bytes = io.BytesIO()
    open_sizes = {name: {0: "batch", 1: "sequence"} for name in inputs} | {"logits": {0: "batch"}}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the old way is deprecated, and says what it freezes
        torch.onnx.export(
            net,
            (ids, torch.ones_like(ids))[: len(inputs)],
            graph_bytes,
            dynamo=False,
            input_names=list(inputs),
            output_names=["logits"],
            dynamic_axes=open_sizes,
            opset_version=17,
        )
    return onnx.load_from_string(graph_bytes.getvalue())


@pytest.mark.parametrize("kind", ["distilbert", "roberta", "modernbert"])
def test_gate_catches_the_legacy_tracer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Traced as tutorials do, without a mask, sdpa is right at every shape until a pair is padded.

    Such a graph exports and runs without a word, its open dimensions included; what is wrong is
    each score that shares its batch with a longer one, by as much as the logits' own spread.
    """
    made = []

    def trace(net: network.Network) -> onnx.ModelProto:
        made.append(legacy_trace(net, inputs=("input_ids",), batch=3, sequence=17))
        return made[0]

    monkeypatch.setattr(graph, "trace", trace)
    with pytest.raises(ModelError, match=r"drifts from torch by .* at batch 3, sequence \d\d"):
        export_onnx(build(kind), tmp_path / "out")
    assert leftovers(tmp_path) == []
    legacy = ort.InferenceSession(made[0].SerializeToString(), providers=["CPUExecutionProvider"])
    for case in gate.probe(encoder_for(build(kind))):
        answer, padded = gate.run(legacy, case.feed), case.feed["attention_mask"].min(axis=1) == 0
        np.testing.assert_allclose(answer[~padded], case.logits[~padded], rtol=0, atol=1e-4)
        assert not padded.any() or np.abs(answer - case.logits)[padded].max() > 0.5


def test_gate_catches_a_graph_that_runs_at_one_shape_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced at one token, the legacy graph of a causal model cannot run at others: ModelError."""
    inputs = ("input_ids", "attention_mask")
    monkeypatch.setattr(
        graph, "trace", lambda net: legacy_trace(net, inputs=inputs, batch=1, sequence=1)
    )
    with pytest.raises(
        ModelError, match=r"does not run at batch 1, sequence \d+: no file was kept"
    ):
        export_onnx(build("qwen3"), tmp_path / "out")
    assert leftovers(tmp_path) == []


def test_gate_catches_one_scale_per_batch(tmp_path: Path) -> None:
    """Onnxruntime's own dynamic int8 lets scores depend on batch mates; ours may not by one bit."""
    model = onnx.load(exported("bert") / "model.onnx")
    del model.graph.value_info[:]  # onnxruntime's quantizer infers shapes again and disagrees
    onnx.save(model, tmp_path / "plain.onnx")
    quantize_dynamic(
        tmp_path / "plain.onnx", tmp_path / "dynamic.onnx", weight_type=QuantType.QInt8
    )
    probes = gate.probe(encoder_for(build("bert")))
    with pytest.raises(ModelError, match=r"between alone and in company|standard deviation"):
        gate.check(tmp_path / "dynamic.onnx", probes, "int8")
    gate.check(exported("bert", "int8") / "model_int8.onnx", probes, "int8")


@pytest.mark.long
def test_decoders_are_held_at_decoder_lengths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 3,000 tokens and more, by the logits' own spread: rounding grows with what is summed."""
    passage = probes._LONG_PASSAGE  # 2,176 tokens of this vocabulary
    monkeypatch.setattr(probes, "_LONG_PASSAGE", passage + passage[: len(passage) // 2])
    folder = tmp_path / "model"
    save_decoder(folder, max_position_embeddings=8192)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["lm_head.weight"] * 8
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    options = {"template": "Q: {query}\nD: {document}\n?", "answers": ("yes", "no")}
    out = export_onnx(folder, tmp_path / "out", **options)
    framing = Framing.of(RerankerConfig(model=str(folder), **options), Checkpoint.read(folder))
    cases = gate.probe(network.load(folder, answers=framing.answers), framing)
    spread = spread_of([case.logits for case in cases])
    assert spread > 2
    at, long = max(enumerate(cases), key=lambda it: it[1].shape[1])
    assert long.shape[1] >= 3000
    gate.check(out / "model.onnx", cases, "float32")
    for shift, refused in ((0.5, False), (1.5, True)):  # of 1e-4 in the logits' spread
        moved = gate.Probe(long.feed, long.logits + np.float32(shift * 1e-4 * spread))
        shifted = [*cases[:at], moved, *cases[at + 1 :]]
        if not refused:
            gate.check(out / "model.onnx", shifted, "float32")
            continue
        with pytest.raises(ModelError, match=rf"drifts .* sequence {long.shape[1]}"):
            gate.check(out / "model.onnx", shifted, "float32")


def test_gate_catches_wrong_weights(tmp_path: Path) -> None:
    """Another checkpoint's graph of the same shape does not pass for this one."""
    probes = gate.probe(encoder_for(build("bert_128")))
    with pytest.raises(ModelError, match="drifts from torch"):
        gate.check(exported("bert") / "model.onnx", probes, "float32")
