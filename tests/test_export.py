"""Checkpoint → ONNX: what is written, what it scores, and what the gate refuses."""

from __future__ import annotations

import io
import json
import logging
import shutil
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from sentence_transformers import CrossEncoder
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Qwen3Config,
    Qwen3ForSequenceClassification,
)

from rerank_adapters import Reranker, export
from rerank_adapters.errors import ConfigError, ModelError
from rerank_adapters.export import export_onnx, files, gate, graph, int8, network, smoothing
from rerank_adapters.export.editing import Editor

from .checkpoints import KINDS, PAIRS, build, encoder_for
from .exported import exported

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]

SOME = ("bert", "modernbert", "deberta_v2", "qwen3")
"""One kind per way of attending and pooling: first token, mean, relative positions, last token."""


def session(file: Path) -> ort.InferenceSession:
    return gate.open_session(file)


def random_batch(lengths: Sequence[int], *, seed: int = 0) -> dict[str, Ids]:
    """Ids of ordinary tokens, padded on the right with 0."""
    random, longest = np.random.default_rng(seed), max(lengths)
    mask = (np.arange(longest) < np.array(lengths)[:, None]).astype(np.int64)
    ids = random.integers(5, 600, mask.shape) * mask
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": mask * (np.arange(longest) > 4),
    }


def alone(feed: dict[str, Ids], row: int) -> dict[str, Ids]:
    real = feed["attention_mask"][row].astype(bool)
    return {name: array[row : row + 1, real] for name, array in feed.items()}


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---------------------------------------------------------------------------------- what is written


def test_interface(kind: str) -> None:
    """Inputs and output have the agreed names, types and open dimensions."""
    graph_of = onnx.load(exported(kind) / "model.onnx").graph
    typed = kind.startswith(("bert", "electra", "modular"))
    assert [value.name for value in graph_of.input] == [
        "input_ids",
        "attention_mask",
        *(["token_type_ids"] if typed else []),
    ]
    for value in graph_of.input:
        dims = [dim.dim_param for dim in value.type.tensor_type.shape.dim]
        assert (value.type.tensor_type.elem_type, dims) == (
            TensorProto.INT64,
            ["batch", "sequence"],
        )
    (output,) = graph_of.output
    labels = 2 if kind == "bert_two_labels" else 1
    dims = [dim.dim_param or dim.dim_value for dim in output.type.tensor_type.shape.dim]
    assert (output.name, dims) == ("logits", ["batch", labels])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("qwen3", "modular_bert")])
def test_unseen_shapes(kind: str) -> None:
    """At shapes far from the trace's the graph equals transformers' own forward.

    1e-4: float32 sums in another order, over logits of ±5.
    """
    model = AutoModelForSequenceClassification.from_pretrained(build(kind), dtype=torch.float32)
    model.eval()
    onnx_model = session(exported(kind) / "model.onnx")
    names = [node.name for node in onnx_model.get_inputs()]
    for lengths in ([3], [120], [9, 1, 64], [33] * 7):
        feed = {name: random_batch(lengths)[name] for name in names}
        with torch.inference_mode():
            expected = model(**{name: torch.from_numpy(feed[name]) for name in names}).logits
        np.testing.assert_allclose(gate.run(onnx_model, feed), expected.numpy(), atol=1e-4, rtol=0)


def test_folder_is_a_checkpoint_without_weights() -> None:
    """Tokenizer and configuration travel along, weights do not."""
    folder = exported("qwen3")
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"model.onnx", "config.json", "tokenizer.json", "tokenizer_config.json"} <= names
    assert {"rerank_adapters.json", "modules.json", "1_LogitScore/config.json"} <= names
    assert not any(name.endswith((".safetensors", ".bin")) for name in names)


def test_template_is_what_the_model_reads() -> None:
    """Prefix + query + middle + document + suffix are the tokens sentence-transformers makes."""
    described = json.loads((exported("qwen3") / "rerank_adapters.json").read_text())
    template, encoder = described["template"], encoder_for(build("qwen3"))
    query, document = PAIRS[0]
    text = f"{template['prefix']}{query}{template['middle']}{document}{template['suffix']}"
    features = encoder.preprocess([(query, document)], prompt=described["prompt"])
    assert described["causal"] is True
    assert template["strip"] is False
    assert described["prompt"] in template["prefix"]
    ids = encoder.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == features["input_ids"][0].tolist()


def test_pair_models_have_no_template() -> None:
    """Where the tokenizer puts the pair together, the template is null."""
    described = json.loads((exported("bert") / "rerank_adapters.json").read_text())
    assert described == {
        "format": 1,
        "labels": 1,
        "causal": False,
        "prompt": None,
        "template": None,
    }


def test_into_the_checkpoint_itself(tmp_path: Path) -> None:
    """Into its own folder, a checkpoint gains a graph and the tokenizer.json it lacked."""
    folder = tmp_path / "bert"
    shutil.copytree(build("bert"), folder)
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    (folder / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.get)) + "\n")
    (folder / "tokenizer.json").unlink()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert export_onnx(folder, folder) == folder
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(after) == {*before, "model.onnx", "rerank_adapters.json", "tokenizer.json"}
    assert after["model.safetensors"] == before["model.safetensors"]
    assert json.loads(after["tokenizer.json"])["model"]["vocab"] == vocabulary


def test_too_large_for_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights beyond protobuf's limit go to `model.onnx_data`, and the graph finds them there."""
    monkeypatch.setattr(files, "ONE_FILE_LIMIT", 1000)
    model = onnx.load(exported("bert") / "model.onnx")
    files.write_graph(model, tmp_path / "model.onnx")
    assert leftovers(tmp_path) == ["model.onnx", "model.onnx_data"]
    assert (tmp_path / "model.onnx").stat().st_size < 100_000
    feed = random_batch([20, 7])
    expected = gate.run(session(exported("bert") / "model.onnx"), feed)
    np.testing.assert_array_equal(gate.run(session(tmp_path / "model.onnx"), feed), expected)


# ------------------------------------------------------------------------------ what is not written


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


def test_a_tokenizer_without_a_limit_has_the_networks(tmp_path: Path) -> None:
    """RoBERTa's table has two positions more than it uses: long probes stay within what it uses."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(build("roberta"), folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings.pop("model_max_length") == 192
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    export_onnx(folder, tmp_path / "out")
    with Reranker.from_pretrained(str(tmp_path / "out")) as reranker:
        assert reranker.info()["max_length"] == 192
        assert np.isfinite(reranker.score("whales", ["breathe " * 500])).all()


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision is installed")
def test_the_exporter_does_not_ask_for_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its four warnings of operators no reranker has are not shown; they come back without us."""
    seen: list[str] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: seen.append(record.getMessage()))
    graph._REGISTRY.addHandler(handler)
    try:
        graph.trace(network.build(network.load(build("bert"))))
        assert seen == []
        monkeypatch.setattr(graph, "_not_of_torchvision", lambda record: True)
        graph.trace(network.build(network.load(build("bert"))))
        assert len(seen) == 4
    finally:
        graph._REGISTRY.removeHandler(handler)


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


def test_failed_export_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Into a folder with an earlier export, a failed one changes no byte."""

    def refuse(*_: object) -> None:
        raise ModelError("no")

    folder = tmp_path / "out"
    shutil.copytree(exported("bert"), folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(gate, "check", refuse)
    with pytest.raises(ModelError, match="no"):
        export_onnx(build("bert_128"), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert leftovers(tmp_path) == ["out"]


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


def test_gate_catches_wrong_weights(tmp_path: Path) -> None:
    """Another checkpoint's graph of the same shape does not pass for this one."""
    probes = gate.probe(encoder_for(build("bert_128")))
    with pytest.raises(ModelError, match="drifts from torch"):
        gate.check(exported("bert") / "model.onnx", probes, "float32")


def test_unknown_dtype(tmp_path: Path) -> None:
    """The message names the field, the choices and the value."""
    with pytest.raises(ConfigError, match=r"dtype must be one of float32, .*: got 'int4'"):
        export_onnx(build("bert"), tmp_path / "out", "int4")  # type: ignore[arg-type]  # the point


def test_no_checkpoint(tmp_path: Path) -> None:
    """A folder without weights is named, and no output folder appears."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"empty.config\.json is missing"):
        export_onnx(tmp_path / "empty", tmp_path / "out")
    assert leftovers(tmp_path) == ["empty"]


def test_an_encoder_without_a_head_is_no_reranker(tmp_path: Path) -> None:
    """sentence-transformers would make one up, and the gate would find it equal to itself."""
    AutoModel.from_pretrained(build("bert")).save_pretrained(tmp_path / "encoder")
    AutoTokenizer.from_pretrained(build("bert")).save_pretrained(tmp_path / "encoder")
    with pytest.raises(
        ModelError, match=r"expected a reranker .* has architectures \['BertModel'\]"
    ):
        export_onnx(tmp_path / "encoder", tmp_path / "out")
    assert leftovers(tmp_path) == ["encoder"]


# ----------------------------------------------------------------------------------------- rewrites


@pytest.mark.parametrize("kind", ["bert", "distilbert", "deberta_v2", "modernbert"])
def test_rewrites_keep_scores(kind: str) -> None:
    """First token only, separate sums and ordered pooling give the traced graph's logits.

    1e-5: the same products, in routines for fewer rows.
    """
    traced = graph.trace(network.build(network.load(build(kind))))
    plain = ort.InferenceSession(traced.SerializeToString(), providers=["CPUExecutionProvider"])
    export.accelerate(traced)
    fast = ort.InferenceSession(traced.SerializeToString(), providers=["CPUExecutionProvider"])
    for lengths in ([2], [3, 50, 17], [120, 64]):
        feed = random_batch(lengths)
        expected = gate.run(plain, feed)
        np.testing.assert_allclose(gate.run(fast, feed), expected, atol=1e-5, rtol=0)


def test_last_layer_for_the_first_token_only() -> None:
    """The last feed-forward product of BERT sees two rows per pair, whatever the length."""
    model = onnx.load(exported("bert") / "model.onnx")
    editor = Editor(model)
    wide = [
        node.output[0]
        for node in model.graph.node
        if node.op_type == "MatMul" and editor.shape(node.input[1]) == (64, 128)
    ]
    assert len(wide) == 2  # one per layer
    model.graph.output.extend(helper.make_tensor_value_info(name, 1, None) for name in wide)
    probe = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    first, last = probe.run(wide, random_batch([40, 31, 5]))
    assert (first.shape, last.shape) == ((3, 40, 128), (3, 2, 128))


@pytest.mark.parametrize("kind", SOME)
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_alone_and_in_company(kind: str, dtype: str) -> None:
    """A logit keeps every bit whatever pads its batch: integer products, sums in a fixed order."""
    file = export.FILE_NAMES[dtype]
    model = session(exported(kind, dtype) / file)  # type: ignore[arg-type]  # one of the two
    feed = random_batch([4, 19, 37, 64, 65, 100, 151, 190], seed=5)
    together = gate.run(model, feed)
    for row in range(len(together)):
        np.testing.assert_array_equal(gate.run(model, alone(feed, row))[0], together[row])


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_yes_no_models_take_padding_on_either_side(dtype: str) -> None:
    """Left padding gives the bits that right padding gives."""
    model = session(exported("qwen3", dtype) / export.FILE_NAMES[dtype])  # type: ignore[arg-type]
    right = random_batch([30, 7, 90])
    order = np.argsort(right["attention_mask"], axis=1, kind="stable")
    left = {name: np.take_along_axis(array, order, axis=1) for name, array in right.items()}
    assert left["attention_mask"][1, 0] == 0
    np.testing.assert_array_equal(gate.run(model, left), gate.run(model, right))


def test_a_decoder_with_a_label_is_padded_on_the_right(tmp_path: Path) -> None:
    """Its tokenizer pads on the left, where positions would shift; scores are the oracle's."""
    tokenizer = AutoTokenizer.from_pretrained(build("qwen3"))
    tokenizer.chat_template = None
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, num_labels=1,
        hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, intermediate_size=128, max_position_embeddings=512, initializer_range=0.3,
    )  # fmt: skip
    Qwen3ForSequenceClassification(config).save_pretrained(tmp_path / "torch")
    tokenizer.save_pretrained(tmp_path / "torch")
    oracle = CrossEncoder(str(tmp_path / "torch"), device="cpu")
    assert oracle.preprocess(PAIRS[:9])["attention_mask"][:, 0].min() == 0  # on the left
    expected = oracle.predict(PAIRS, activation_fn=torch.nn.Identity())
    assert expected.std() > 0.5
    masks = [probe.feed["attention_mask"] for probe in gate.probe(oracle)]
    assert any((mask == 0).any() for mask in masks)
    assert all((np.diff(mask) <= 0).all() for mask in masks)  # no token behind padding
    export_onnx(tmp_path / "torch", tmp_path / "onnx")
    with Reranker.from_pretrained(
        tmp_path / "onnx", backend="onnx", activation="identity"
    ) as reranker:
        scores = reranker.score_pairs(PAIRS)
        np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-4)
        alone = [reranker.score_pairs([pair])[0] for pair in PAIRS]
    np.testing.assert_array_equal(scores, alone)


# --------------------------------------------------------------------------------------------- int8


def test_seven_bits_by_hand() -> None:
    """Each column's largest weight becomes ±63, a column of zeros stays zeros."""
    weights = np.array([[63.0, 0.1, 0], [-31.4, 0.2, 0], [0.4, -0.63, 0]], np.float32)
    values, scales = int8.seven_bits(weights, axis=0)
    np.testing.assert_array_equal(values, [[63, 10, 0], [-31, 20, 0], [0, -63, 0]])
    np.testing.assert_allclose(scales, [1, 0.01, 1], rtol=1e-6)


def one_product(weights: Floats) -> onnx.ModelProto:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "sequence", len(weights)])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    one = helper.make_graph([node], "one", [x], [y], [numpy_helper.from_array(weights, "w")])
    return helper.make_model(one, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run_one(model: onnx.ModelProto, x: Floats) -> Floats:
    own = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: Floats = own.run(None, {"x": x})[0]
    return result


def test_product_by_hand() -> None:
    """The graph's product is s · c · (x₈ · w₈) with integers that numpy adds up, row by row.

    rtol 1e-6: three float32 roundings after an exact integer sum.
    """
    random = np.random.default_rng(0)
    weights = random.normal(size=(48, 32)).astype(np.float32)
    x = random.normal(size=(2, 3, 48)).astype(np.float32) * np.float32(10) ** np.arange(3)[:, None]
    x[0, 0] = 0
    model = one_product(weights)
    int8.quantize(model)
    values, columns = int8.seven_bits(weights, axis=0)
    steps = np.maximum(np.abs(x).max(-1, keepdims=True), 1e-20) / 127
    whole = np.round(x / steps).astype(np.int64)
    expected = (whole @ values.astype(np.int64)) * steps * columns
    np.testing.assert_allclose(run_one(model, x.astype(np.float32)), expected, rtol=1e-6, atol=1e-7)


def test_extremes_do_not_saturate() -> None:
    """All weights and activations at their limits, both signs: the products still add up exactly.

    Processors without VNNI add pairs of products in 16 bits, which 8-bit weights would overflow.
    """
    signs = np.where(np.arange(32) % 3 == 0, -1, 1).astype(np.float32)
    weights = np.outer(np.ones(64), signs).astype(np.float32)
    x = np.stack([np.ones(64), -np.ones(64)])[None].astype(np.float32)
    model = one_product(weights)
    int8.quantize(model)
    expected = np.stack([64 * signs, -64 * signs])[None]
    np.testing.assert_allclose(run_one(model, x), expected, rtol=1e-6)


def test_smoothing_keeps_scores_and_halves_outliers() -> None:
    """Evened out, an outlier dimension costs the others less; in float32 nothing changes."""
    random = np.random.default_rng(1)
    node = helper.make_node("LayerNormalization", ["r", "g", "b"], ["x"], axis=-1)
    gain, bias = np.ones(64, np.float32), np.zeros(64, np.float32)
    gain[7] = 40.0
    weights = random.normal(size=(64, 64)).astype(np.float32)
    weights[7] /= 40
    model = one_product(weights)
    del model.graph.input[:]
    model.graph.input.extend(
        helper.make_tensor_value_info(name, kind, ["batch", "sequence", *tail])
        for name, kind, tail in [
            ("r", TensorProto.FLOAT, [64]),
            ("attention_mask", TensorProto.INT64, []),
        ]
    )
    model.graph.node.insert(0, node)
    model.graph.initializer.extend(
        [numpy_helper.from_array(gain, "g"), numpy_helper.from_array(bias, "b")]
    )
    hidden = random.normal(size=(4, 20, 64)).astype(np.float32)
    feed = {"r": hidden, "attention_mask": np.ones((4, 20), np.int64)}

    def outputs(changed: onnx.ModelProto) -> Floats:
        own = ort.InferenceSession(changed.SerializeToString(), providers=["CPUExecutionProvider"])
        result: Floats = own.run(None, {node.name: feed[node.name] for node in own.get_inputs()})[0]
        return result

    def clone(source: onnx.ModelProto) -> onnx.ModelProto:
        copy = onnx.ModelProto()
        copy.CopyFrom(source)
        return copy

    exact, smoothed = outputs(model), clone(model)
    factors = smoothing.smooth(smoothed, [feed])  # type: ignore[list-item]  # floats stand for ids
    assert factors["w"].shape == (64, 1)
    np.testing.assert_allclose(outputs(smoothed), exact, atol=1e-4)
    drifts = []
    for variant in (clone(model), smoothed):
        int8.quantize(variant)
        drifts.append(float(np.sqrt(np.mean((outputs(variant) - exact) ** 2))))
    assert drifts[1] < drifts[0] / 2


def test_int8_drift(kind: str) -> None:
    """Over PAIRS int8 drifts by no more than the gate allows: a quarter of the logits' spread.

    Tiny random networks: measured 6 to 24 %, as 64 dimensions average little noise away; the
    default model's own bound is in test_bundled.
    """
    case = gate._ask(encoder_for(build(kind)), PAIRS[:24])
    model = session(exported(kind, "int8") / "model_int8.onnx")
    drift = gate.run(model, case.feed) - case.logits
    assert np.sqrt(np.mean(drift**2)) <= gate.BOUNDS["int8"].spread * case.logits.std()


def test_int8_is_small_and_plain() -> None:
    """Weights are stored as int8, and only operators of the ONNX standard are used."""
    model = onnx.load(exported("bert", "int8") / "model_int8.onnx")
    assert {node.domain for node in model.graph.node} == {""}
    bytes_by_type: dict[int, int] = {}
    for tensor in model.graph.initializer:
        size = numpy_helper.to_array(tensor).nbytes
        bytes_by_type[tensor.data_type] = bytes_by_type.get(tensor.data_type, 0) + size
    weights = sum(
        numpy_helper.to_array(tensor).size
        for tensor in onnx.load(exported("bert") / "model.onnx").graph.initializer
        if tensor.data_type == TensorProto.FLOAT
    )
    assert bytes_by_type[TensorProto.INT8] > 0.9 * weights
    assert bytes_by_type[TensorProto.FLOAT] < 0.4 * weights
    facts = {item.key: item.value for item in model.metadata_props}
    assert facts["rerank_adapters.dtype"] == "int8"


# ------------------------------------------------------------------------------------------ float16


@pytest.mark.parametrize("kind", SOME)
def test_float16(kind: str) -> None:
    """Half precision keeps inputs' and outputs' types and drifts by under 2 % of the spread.

    Positions and masks stay exact: rounded to float16, DeBERTa's were off by a whole standard
    deviation.
    """
    folder = exported(kind, "float16")
    model = session(folder / "model_fp16.onnx")
    assert {node.type for node in model.get_inputs()} == {"tensor(int64)"}
    assert model.get_outputs()[0].type == "tensor(float)"
    case = gate._ask(encoder_for(build(kind)), PAIRS[:24])
    drift = gate.run(model, case.feed) - case.logits
    assert np.sqrt(np.mean(drift**2)) <= 0.02 * case.logits.std()
    assert (folder / "model_fp16.onnx").stat().st_size < (
        0.7 * (exported(kind) / "model.onnx").stat().st_size
    )
