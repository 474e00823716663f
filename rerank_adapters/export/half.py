"""float16 weights and arithmetic for GPUs; inputs and logits keep their types."""

from __future__ import annotations

import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16


def halve(model: onnx.ModelProto) -> onnx.ModelProto:
    """A float16 copy of a float32 graph; the mask's lowest float32 becomes float16's lowest."""
    half = convert_float_to_float16(model, keep_io_types=True, disable_shape_infer=True)
    assert isinstance(half, onnx.ModelProto)
    return half
