"""Sums over the sequence that do not depend on how much padding follows."""

from __future__ import annotations

import numpy as np
import onnx

from .editing import Editor, attribute

TOKENS_AT_ONCE = 128
"""onnxruntime adds this many terms of a product one after the other, on any number of threads."""


def sum_in_order(model: onnx.ModelProto) -> None:
    """Turns sums over tokens, as mean pooling takes them, into products with matrices of ones.

    onnxruntime's ReduceSum groups its terms by the length of the axis, so zeros appended to it move
    the last bit; a matrix product adds them one after the other, but a long one in groups that
    depend on how threads share it. So TOKENS_AT_ONCE are added at a time, then these sums. Two rows
    of ones are multiplied and one is read: a single row would take a vector routine that groups by
    length again.
    """
    editor = Editor(model)
    for node in list(editor.graph.node):
        shape = editor.shape(node.input[0]) if node.op_type == "ReduceSum" else None
        axes = editor.array(node.input[1]) if shape and len(node.input) > 1 else None
        if axes is None or list(axes) != [1] or shape is None or not _hidden(shape):
            continue
        sums = _added(editor, _sums_of_groups(editor, node.input[0]))
        first = editor.constant(np.array([0] if attribute(node, "keepdims", 1) else 0))
        editor.remove(node)
        editor.add("Gather", [sums, first], node.output[0], axis=1)
    editor.finish()


def _sums_of_groups(editor: Editor, states: str) -> str:
    """Sums of TOKENS_AT_ONCE rows each: (batch, sequence, width) → (batch, groups, width)."""
    group = editor.constant(np.array([TOKENS_AT_ONCE]))
    length = editor.add("Shape", [states], start=1, end=2)
    missing = editor.add("Mod", [editor.add("Neg", [length]), group])
    none, nothing = editor.constant(np.array([0])), editor.constant(np.array([0, 0, 0]))
    pads = editor.add("Concat", [nothing, none, missing, none], axis=0)
    padded = editor.add("Pad", [states, pads])
    width = editor.add("Shape", [states], start=2, end=3)
    open_sizes = editor.constant(np.array([0, -1]))
    sizes = editor.add("Concat", [open_sizes, group, width], axis=0)
    groups = editor.add("Reshape", [padded, sizes])
    ones = editor.constant(np.ones((2, TOKENS_AT_ONCE), np.float32))
    first = editor.constant(np.array(0))
    return editor.add("Gather", [editor.add("MatMul", [ones, groups]), first], axis=2)


def _added(editor: Editor, rows: str) -> str:
    """Twice the sum of all rows: (batch, rows, width) → (batch, 2, width)."""
    length = editor.add("Shape", [rows], start=1, end=2)
    size = editor.add("Concat", [editor.constant(np.array([2])), length], axis=0)
    one = onnx.numpy_helper.from_array(np.ones(1, np.float32))
    ones = editor.add("ConstantOfShape", [size], value=one)
    return editor.add("MatMul", [ones, rows])


def _hidden(shape: tuple[int | str, ...]) -> bool:
    return len(shape) == 3 and shape[1] == "sequence" and isinstance(shape[2], int) and shape[2] > 1
