"""Rewrites keep scores, and a score keeps its bits whatever shares its batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import helper
from sentence_transformers import CrossEncoder
from transformers import (
    AutoTokenizer,
    Qwen3Config,
    Qwen3ForSequenceClassification,
)

from rerank_adapters import Reranker, export
from rerank_adapters.export import export_onnx, gate, graph, network
from rerank_adapters.export.rewrites.editing import Editor
from rerank_adapters.export.rewrites.pooling import sum_in_order
from tests.checkpoints import PAIRS, build, encoder_for
from tests.exported import exported

from .graphs import SOME, alone, random_batch, session


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


def test_a_mean_of_many_rows_is_the_same_beside_longer_ones() -> None:
    """Bit for bit, on any number of threads: 1,030 rows alone and with 3,000 rows of zeros."""
    nodes = [onnx.helper.make_node("ReduceSum", ["x", "axis"], ["y"], keepdims=0)]
    axis = onnx.numpy_helper.from_array(np.array([1]), "axis")
    kind, width = onnx.TensorProto.FLOAT, 64
    made = onnx.helper.make_graph(
        nodes,
        "sum",
        [onnx.helper.make_tensor_value_info("x", kind, ["batch", "sequence", width])],
        [onnx.helper.make_tensor_value_info("y", kind, ["batch", width])],
        [axis],
    )
    opset = [onnx.helper.make_opsetid("", 18)]
    model = onnx.helper.make_model(made, opset_imports=opset, ir_version=9)
    sum_in_order(model)
    assert all(node.op_type != "ReduceSum" for node in model.graph.node)
    rows = np.random.default_rng(3).normal(size=(1, 1030, width)).astype(np.float32)
    padded = np.concatenate([rows, np.zeros((1, 3000, width), np.float32)], axis=1)
    for threads in (1, 2, 4):
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        for length in (1, 127, 128, 129, 585, 1024, 1030):
            (alone,) = session.run(None, {"x": rows[:, :length]})
            beside = padded * (np.arange(padded.shape[1]) < length)[:, None]
            two = np.concatenate([beside, beside * 3]).astype(np.float32)
            np.testing.assert_array_equal(session.run(None, {"x": two})[0][:1], alone)
            # float32 sums of a thousand numbers near 1, beside the sum in float64
            exact = rows[:, :length].astype(np.float64).sum(axis=1)
            np.testing.assert_allclose(alone, exact, rtol=0, atol=1e-4)
