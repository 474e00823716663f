"""Sums over the sequence that do not depend on how much padding follows."""

from __future__ import annotations

import numpy as np
import onnx

from .editing import Editor, attribute


def sum_in_order(model: onnx.ModelProto) -> None:
    """Turns sums over tokens, as mean pooling takes them, into a product with a matrix of ones.

    onnxruntime's ReduceSum groups its terms by the length of the axis, so zeros appended to it move
    the last bit; a matrix product adds them one after the other. Two rows of ones are multiplied
    and one is read: a single row would take a vector routine that groups by length again.
    """
    editor = Editor(model)
    for node in list(editor.graph.node):
        shape = editor.shape(node.input[0]) if node.op_type == "ReduceSum" else None
        axes = editor.array(node.input[1]) if shape and len(node.input) > 1 else None
        if axes is None or list(axes) != [1] or shape is None or not _hidden(shape):
            continue
        length = editor.add("Shape", [node.input[0]], start=1, end=2)
        two = editor.constant(np.array([2]))
        size = editor.add("Concat", [two, length], axis=0)
        one = onnx.numpy_helper.from_array(np.ones(1, np.float32))
        ones = editor.add("ConstantOfShape", [size], value=one)
        sums = editor.add("MatMul", [ones, node.input[0]])
        first = editor.constant(np.array([0] if attribute(node, "keepdims", 1) else 0))
        editor.remove(node)
        editor.add("Gather", [sums, first], node.output[0], axis=1)
    editor.finish()


def _hidden(shape: tuple[int | str, ...]) -> bool:
    return len(shape) == 3 and shape[1] == "sequence" and isinstance(shape[2], int) and shape[2] > 1
