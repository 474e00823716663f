"""The last layer for the first token alone, where the head reads nothing else.

A cross-encoder's head reads `hidden[:, 0]`, yet the last layer computes every token. The slice is
pushed back through the graph until it meets what keys and values need whole: the same numbers, with
queries, attention rows and both feed-forward products for one token instead of all. Saves one
layer's linear work but for keys and values: measured 13 % of MiniLM-L6.
"""

from __future__ import annotations

import numpy as np
import onnx

from .editing import Editor, attribute

ROWS = 2
"""Rows kept. One would do, but onnxruntime multiplies a single row by another routine, whose sums
over keys depend on how many padded ones follow; with two, scores stay the same to the bit."""

# fmt: off
ELEMENTWISE = frozenset(
    {
        "Abs", "Add", "And", "Cast", "Clip", "Cos", "Div", "Equal", "Erf", "Exp", "Gelu",
        "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min", "Mul", "Neg", "Not",
        "Or", "Pow", "Reciprocal", "Relu", "Sigmoid", "Sin", "Sqrt", "Sub", "Sum", "Tanh",
        "Where",
    }
)
# fmt: on
BY_ROW = frozenset({"LayerNormalization", "RMSNormalization", "Softmax", "ReduceMean"})


def keep_first_token(model: onnx.ModelProto) -> None:
    """Rewrites every `hidden[:, 0]` whose hidden states nothing else reads; changes no score."""
    editor = Editor(model)
    for node in list(editor.graph.node):
        if _takes_first(editor, node):
            hidden = node.input[0]
            full = _needed_whole(editor, hidden)
            if hidden not in full:
                node.input[0] = _Slicer(editor, full).first(hidden, 1)
    editor.finish()


def _takes_first(editor: Editor, node: onnx.NodeProto) -> bool:
    if node.op_type != "Gather" or attribute(node, "axis", 0) != 1:
        return False
    index, shape = editor.array(node.input[1]), editor.shape(node.input[0])
    alone = len(editor.consumers[node.input[0]]) == 1
    return (
        alone
        and index is not None
        and index.shape == ()
        and int(index) == 0
        and shape is not None
        and len(shape) == 3
        and shape[1] == "sequence"
    )


def _needed_whole(editor: Editor, hidden: str) -> set[str]:
    """What keys and values are computed from: everything below the last attention."""
    full: set[str] = set()
    seen: set[str] = set()
    waiting = [hidden]
    while waiting:
        name = waiting.pop()
        node = editor.producers.get(name)
        if node is None or name in seen or name in full:
            continue
        seen.add(name)
        if node.op_type == "MatMul":
            full |= editor.ancestors(node.input[1])
            waiting.append(node.input[0])
        else:
            waiting += node.input
    return full


class _Slicer:
    """Finds, or builds, the first rows of a tensor along its sequence axis; rank is kept."""

    def __init__(self, editor: Editor, full: set[str]) -> None:
        self.editor = editor
        self.full = full
        self._made: dict[tuple[str, int], str] = {}

    def first(self, name: str, axis: int) -> str:
        """The tensor `name[…, :ROWS, …]`, sliced at *axis*."""
        if (name, axis) not in self._made:
            made = None if name in self.full else self._push(name, axis)
            self._made[name, axis] = made or self._slice(name, axis)
        return self._made[name, axis]

    def _slice(self, name: str, axis: int) -> str:
        numbers = [self.editor.constant(np.array([number])) for number in (0, ROWS, axis)]
        return self.editor.add("Slice", [name, *numbers])

    def _push(self, name: str, axis: int) -> str | None:
        """The node that makes *name* again, over sliced inputs; None where no rule covers it."""
        node, shape = self.editor.producers.get(name), self.editor.shape(name)
        if node is None or shape is None or len(node.output) != 1:
            return None
        inputs: list[str] | None = None
        if node.op_type in ELEMENTWISE:
            inputs = self._broadcast(node, axis, len(shape))
        elif node.op_type in BY_ROW and self._is_by_row(node, axis, len(shape)):
            inputs = [self.first(node.input[0], axis), *node.input[1:]]
        elif node.op_type == "MatMul" and axis == len(shape) - 2:
            inputs = self._left(node)
        elif node.op_type == "Transpose":
            order = np.array(attribute(node, "perm"))
            inputs = [self.first(node.input[0], int(order[axis]))]
        elif node.op_type == "Reshape":
            inputs = self._reshape(node, axis)
        if inputs is None:
            return None
        attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        if node.op_type == "Reshape":
            attributes["allowzero"] = 0
        return self.editor.add(node.op_type, inputs, **attributes)

    def _broadcast(self, node: onnx.NodeProto, axis: int, rank: int) -> list[str] | None:
        inputs = []
        for name in node.input:
            shape = self.editor.shape(name)
            if shape is None:
                return None
            own = axis - (rank - len(shape))
            sliced = own >= 0 and shape[own] != 1
            inputs.append(self.first(name, own) if sliced else name)
        return inputs

    def _is_by_row(self, node: onnx.NodeProto, axis: int, rank: int) -> bool:
        """Whether the node works along the last axis and leaves *axis* alone."""
        if node.op_type != "ReduceMean":
            return attribute(node, "axis", -1) in (-1, rank - 1) and axis < rank - 1
        axes = self.editor.array(node.input[1]) if len(node.input) > 1 else None
        keeps = attribute(node, "keepdims", 1) == 1
        return keeps and axis < rank - 1 and axes is not None and list(axes) in ([-1], [rank - 1])

    def _left(self, node: onnx.NodeProto) -> list[str] | None:
        shape = self.editor.shape(node.input[0])
        if shape is None or len(shape) < 2:
            return None
        return [self.first(node.input[0], len(shape) - 2), node.input[1]]

    def _reshape(self, node: onnx.NodeProto, axis: int) -> list[str] | None:
        """A reshape of what comes after *axis* alone: heads split from, or merged to, the width."""
        before, after = self.editor.shape(node.input[0]), self.editor.shape(node.output[0])
        if before is None or after is None or before[: axis + 1] != after[: axis + 1]:
            return None
        tail = after[axis + 1 :]
        if not all(isinstance(size, int) and size > 0 for size in tail):
            return None
        target = np.array([0] * (axis + 1) + list(tail), np.int64)  # 0: as in the input
        return [self.first(node.input[0], axis), self.editor.constant(target)]
