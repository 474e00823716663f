"""Weights and activations as integers: products by hand, drift, size."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from rerank_adapters.export import gate
from rerank_adapters.export.rewrites import int8, smoothing
from rerank_adapters.parity.comparison import BOUNDS
from tests.checkpoints import PAIRS, build, encoder_for
from tests.exported import exported

from .graphs import Floats, session


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
    assert np.sqrt(np.mean(drift**2)) <= BOUNDS["int8"].spread * case.logits.std()


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
