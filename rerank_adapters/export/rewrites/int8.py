"""int8 whose scores do not depend on the batch: one activation scale per token, plain operators.

    s = max|x| / 127 for each token          x₈ = round(x / s), stored as uint8 with zero point 128
    w₈ = round(w / c), one c per output column, |w₈| ≤ 63
    x·w ≈ s · c · (x₈ · w₈)                  the integer product is exact in any order

Weights have 7 bits because processors without VNNI add pairs of uint8·int8 products in 16 bits: 2 ·
255 · 63 fits, 2 · 255 · 127 does not. Embedding tables hold one scale per row. Attention, softmax,
normalisation and heads of fewer than 16 columns stay float32.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray

from .editing import Editor, attribute

LEVELS = 63
SMALLEST = 16
"""Products with fewer rows or columns stay float32: they cost nothing and round most visibly."""
TABLE = 4096
"""Embedding tables with fewer numbers stay float32."""

Floats = NDArray[np.float32]


def quantize(model: onnx.ModelProto, *, weights_only: bool = False) -> None:
    """Rewrites constant products and embedding tables of a float32 graph to int8, in place.

    With *weights_only* weights are stored as int8 and made float32 inside the graph, which
    onnxruntime does once when it loads the file; products are float32.
    """
    editor = Editor(model)
    quantizer = _Stored(editor) if weights_only else _Quantizer(editor)
    for node in list(editor.graph.node):
        if node.op_type == "MatMul":
            quantizer.product(node)
        elif node.op_type == "Gemm":
            quantizer.affine(node)
        elif node.op_type == "Gather":
            quantizer.table(node)
    editor.finish()


def seven_bits(weights: Floats, axis: int) -> tuple[NDArray[np.int8], Floats]:
    """(int8 values within ±63, float32 scales) with weights ≈ values · scales.

    *axis* is the one that the scales' maximum runs over; scales lose it. Ties round to even.
    """
    scales = (np.abs(weights).max(axis) / LEVELS).astype(np.float32)
    scales = np.where(scales > 0, scales, np.float32(1))
    values = np.round(weights / np.expand_dims(scales, axis))
    return np.clip(values, -LEVELS, LEVELS).astype(np.int8), scales


class _Quantizer:
    def __init__(self, editor: Editor) -> None:
        self.editor = editor
        self._rows: dict[str, tuple[str, str]] = {}

    def product(self, node: onnx.NodeProto) -> None:
        """MatMul of a computed left side and a constant matrix (in, out)."""
        weights = self._matrix(node.input[1])
        if weights is not None:
            self.editor.remove(node)
            self._scaled(node.input[0], weights, node.output[0])

    def affine(self, node: onnx.NodeProto) -> None:
        """Gemm as linear layers use it: x · Wᵀ + bias."""
        plain = attribute(node, "alpha", 1.0) == 1.0 and attribute(node, "beta", 1.0) == 1.0
        weights = self._matrix(node.input[1], transposed=attribute(node, "transB", 0) == 1)
        if weights is None or not plain or attribute(node, "transA", 0) == 1:
            return
        self.editor.remove(node)
        if len(node.input) < 3:
            self._scaled(node.input[0], weights, node.output[0])
        else:
            self.editor.add(
                "Add", [self._scaled(node.input[0], weights), node.input[2]], node.output[0]
            )

    def table(self, node: onnx.NodeProto) -> None:
        """Gather of rows from a constant matrix."""
        weights = self.editor.array(node.input[0])
        if (
            weights is None
            or weights.dtype != np.float32
            or weights.ndim != 2
            or weights.size < TABLE
            or attribute(node, "axis", 0) != 0
        ):
            return
        values, scales = seven_bits(weights.astype(np.float32), axis=1)
        self.editor.remove(node)
        rows = self.editor.add("Gather", [self.editor.constant(values, "table"), node.input[1]])
        scale = self.editor.add(
            "Gather", [self.editor.constant(scales[:, None], "scales"), node.input[1]]
        )
        floats = self.editor.add("Cast", [rows], to=onnx.TensorProto.FLOAT)
        self.editor.add("Mul", [floats, scale], node.output[0])

    def _matrix(self, name: str, *, transposed: bool = False) -> Floats | None:
        """The constant as a float32 matrix (in, out) worth quantizing, else None."""
        weights = self.editor.array(name)
        if weights is None or weights.dtype != np.float32 or weights.ndim != 2:
            return None
        if min(weights.shape) < SMALLEST:
            return None
        return (weights.T if transposed else weights).astype(np.float32)

    def _scaled(self, inputs: str, weights: Floats, output: str | None = None) -> str:
        """The product s · c · (x₈ · w₈) for x of shape (…, in)."""
        add, constant = self.editor.add, self.editor.constant
        rows, row_scales = self._quantized_rows(inputs)
        matrix, scales = self._whole(weights)
        zero = constant(np.array(128, np.uint8))
        sums = add("Cast", [add("MatMulInteger", [rows, matrix, zero])], to=onnx.TensorProto.FLOAT)
        # Columns first: the other order onnxruntime fuses into an operator meant for one scale.
        by_column = add("Mul", [sums, scales])
        return add("Mul", [by_column, row_scales], output)

    def _whole(self, weights: Floats) -> tuple[str, str]:
        """The constants w₈ (in, out) and c (out,)."""
        values, scales = seven_bits(weights, axis=0)
        matrix = self.editor.constant(np.ascontiguousarray(values), "matrix")
        return matrix, self.editor.constant(scales, "scales")

    def _quantized_rows(self, name: str) -> tuple[str, str]:
        """(x₈ uint8 of x's shape, s float32 of shape (…, 1)), made once per tensor."""
        if name not in self._rows:
            add, constant = self.editor.add, self.editor.constant
            last = constant(np.array([-1]))
            largest = add("ReduceMax", [add("Abs", [name]), last], keepdims=1)
            # A row of zeros must not divide by zero.
            positive = add("Max", [largest, constant(np.array(1e-20, np.float32))])
            steps = add("Div", [constant(np.array(127, np.float32)), positive])
            whole = add("Mul", [name, steps])
            one, zero = constant(np.array(1, np.float32)), constant(np.array(128, np.uint8))
            rows = add("QuantizeLinear", [whole, one, zero])
            scales = add("Mul", [positive, constant(np.array(1 / 127, np.float32))])
            self._rows[name] = rows, scales
        return self._rows[name]


class _Stored(_Quantizer):
    """int8 weights, float32 arithmetic."""

    def _scaled(self, inputs: str, weights: Floats, output: str | None = None) -> str:
        """The product x · (c · w₈) for x of shape (…, in)."""
        matrix, scales = self._whole(weights)
        floats = self.editor.add("Cast", [matrix], to=onnx.TensorProto.FLOAT)
        return self.editor.add("MatMul", [inputs, self.editor.add("Mul", [floats, scales])], output)
