"""float16 weights and arithmetic for GPUs; inputs and logits keep their types."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from .editing import Editor, attribute

LOWEST = -60000.0
"""Stands for float32's lowest number in masks: float16 would make it -inf, and a whole row NaN."""


def halve(model: onnx.ModelProto) -> None:
    """Turns what weights flow through into float16, in place.

    Positions and masks are computed as before and cast where they meet it, so that neither large
    positions nor their logarithms are rounded to float16.
    """
    types = _types(model)
    editor = Editor(model)
    heavy: set[str] = {name for name in editor.initializers if len(editor.shapes[name]) == 2}
    heavy -= {name for name in heavy if types.get(name) != TensorProto.FLOAT}
    for node in list(model.graph.node):  # in order, so what it reads was seen before
        if any(name in heavy for name in node.input):
            heavy.update(name for name in node.output if types.get(name) == TensorProto.FLOAT)
            for index, name in enumerate(node.input):
                if types.get(name) == TensorProto.FLOAT and not _computed(editor, heavy, name):
                    node.input[index] = _half(editor, name)
            if node.op_type == "Cast" and attribute(node, "to") == TensorProto.FLOAT:
                node.attribute[0].i = TensorProto.FLOAT16
    for output in model.graph.output:
        _widen(editor, output.name)
    del model.graph.value_info[:]
    editor.finish()


def _computed(editor: Editor, heavy: set[str], name: str) -> bool:
    return name in heavy and name not in editor.initializers


def _half(editor: Editor, name: str) -> str:
    """The tensor as float16: a constant rounded here, a computed one cast in the graph."""
    if name not in editor.initializers:
        floor = editor.constant(np.array(LOWEST, np.float32))
        return editor.add("Cast", [editor.add("Max", [name, floor])], to=TensorProto.FLOAT16)
    values = numpy_helper.to_array(editor.initializers[name])
    return editor.constant(np.clip(values, LOWEST, -LOWEST).astype(np.float16), "half")


def _widen(editor: Editor, name: str) -> None:
    """Renames the tensor that is the output, and casts it to float32 under the old name."""
    node = editor.producers[name]
    half = f"{name}_half"
    node.output[list(node.output).index(name)] = half
    editor.producers[half] = node
    editor.add("Cast", [half], name, to=TensorProto.FLOAT)


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """The element type of every tensor."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]  # the exporter's shapes contradict some of the inferred ones
    graph = onnx.shape_inference.infer_shapes(bare).graph
    values = (*graph.value_info, *graph.input, *graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}
