"""float16 weights and arithmetic for GPUs; inputs and logits keep their types."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16

from .editing import Editor

LOWEST = -60000.0
"""Stands for float32's lowest number, which masks use and float16 would round to -inf, then NaN."""


def halve(model: onnx.ModelProto) -> onnx.ModelProto:
    """A float16 copy of a float32 graph, but for positions and masks, which stay exact in float32."""
    for number, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{number}"  # the converter knows nodes by name
    _raise_lowest(model)
    half = convert_float_to_float16(
        model, keep_io_types=True, disable_shape_infer=True, node_block_list=_weightless(model)
    )
    assert isinstance(half, onnx.ModelProto)
    return half


def _raise_lowest(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.size and values.min() < LOWEST:
            raised = np.maximum(values, np.float32(LOWEST))
            tensor.CopyFrom(numpy_helper.from_array(raised, tensor.name))


def _weightless(model: onnx.ModelProto) -> list[str]:
    """Nodes that read no weight matrix, directly or not: they count positions or write masks."""
    editor = Editor(model)
    matrices = {name for name in editor.initializers if len(editor.shapes[name]) == 2}
    heavy: set[str] = set()
    blocked = []
    for node in model.graph.node:  # in order, so inputs were seen before
        if any(name in heavy or name in matrices for name in node.input):
            heavy.update(node.output)
        else:
            blocked.append(node.name)
    return blocked
