"""Outliers moved from activations into weights before int8 (Xiao et al. 2022, arXiv 2211.10438).

A few dimensions of a normalised hidden state are ten times the others in every token, and one scale
per token spends its 127 steps on them. x · W = (x / s) · (s · W), with s = √(largest |x| / largest
|W|) per dimension, evens both out. On a trained MiniLM-L6 reranker it halves the drift of scores:
1.8 % of their standard deviation instead of 3.6 %. Only what LayerNormalization or RMS norms hand
to products is smoothed: there the outliers are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import numpy_helper

from .editing import Editor

Feed = Mapping[str, NDArray[np.int64]]
Floats = NDArray[np.float32]


def smooth(model: onnx.ModelProto, feeds: Sequence[Feed]) -> dict[str, Floats]:
    """Smooths a float32 graph in place, over what *feeds* make of it; scores change by rounding.

    Returns s, float32 of shape (in, 1), by the name of the weight matrix it went into.
    """
    editor = Editor(model)
    products: defaultdict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in editor.graph.node:
        if _is_linear(editor, node) and _is_normalised(editor, node.input[0]):
            products[node.input[0]].append(node)
    factors = {}
    for name, largest in _largest(model, list(products), feeds).items():
        weights = [_matrix(editor, node) for node in products[name]]
        factor = _factor(largest, weights)
        even = editor.add("Mul", [name, editor.constant(1 / factor)])
        for node, weight in zip(products[name], weights, strict=True):
            factors[node.input[1]] = factor[:, None]
            node.input[0] = even
            node.input[1] = editor.constant(weight * factor[:, None], "smooth")
    editor.finish()
    return factors


def _factor(largest: Floats, weights: Sequence[Floats]) -> Floats:
    """The factor s of shape (in,), its geometric mean 1."""
    weight = np.max([np.abs(matrix).max(1) for matrix in weights], axis=0)
    factor = np.sqrt(np.maximum(largest, 1e-5) / np.maximum(weight, 1e-5))
    even: Floats = (factor / np.exp(np.log(factor).mean())).astype(np.float32)
    return even


def _is_linear(editor: Editor, node: onnx.NodeProto) -> bool:
    weight = editor.array(node.input[1]) if node.op_type == "MatMul" else None
    return weight is not None and weight.ndim == 2 and weight.dtype == np.float32


def _is_normalised(editor: Editor, name: str) -> bool:
    """Whether it is, or is sliced from, what LayerNormalization or an RMS norm's gain made."""
    node = editor.producers.get(name)
    if node is not None and node.op_type == "Slice":
        node = editor.producers.get(node.input[0])
    if node is None:
        return False
    gain = node.op_type == "Mul" and any(
        (shape := editor.shape(item)) is not None
        and len(shape) == 1
        and item in editor.initializers
        for item in node.input
    )
    return node.op_type == "LayerNormalization" or gain


def _matrix(editor: Editor, node: onnx.NodeProto) -> Floats:
    return numpy_helper.to_array(editor.initializers[node.input[1]]).astype(np.float32)


def _largest(
    model: onnx.ModelProto, names: Sequence[str], feeds: Sequence[Feed]
) -> dict[str, Floats]:
    """The largest |x| per last dimension of each tensor, over all *feeds* without their padding."""
    probing = onnx.ModelProto()
    probing.CopyFrom(model)
    for name in names:
        probing.graph.output.append(onnx.helper.make_tensor_value_info(name, 1, None))
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(
        probing.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    inputs = [node.name for node in session.get_inputs()]
    largest: dict[str, Floats] = {}
    for feed in feeds:
        real = feed["attention_mask"].astype(bool)
        for name, values in zip(
            names, session.run(names, {n: feed[n] for n in inputs}), strict=True
        ):
            rows = values[real] if values.shape[:2] == real.shape else values
            peak = np.abs(rows.reshape(-1, rows.shape[-1])).max(0)
            largest[name] = np.maximum(largest.get(name, peak), peak)
    return largest
