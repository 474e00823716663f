"""torch → ONNX through torch.export, with batch and sequence left open."""

from __future__ import annotations

import logging
import warnings

import onnx
import torch
from torch import Tensor
from torch.export import Dim

from ..errors import ModelError
from .network import Network

_REGISTRY = logging.getLogger("torch.onnx._internal.exporter._registration")
OPSET = 20  # the first with Gelu as one operator


def trace(network: Network) -> onnx.ModelProto:
    """The network as a float32 graph: inputs (batch, sequence), output `logits` (batch, labels)."""
    network.model.set_attn_implementation("eager")  # the smallest graph
    input_ids = torch.arange(3 * 17).reshape(3, 17) % 100 + 5
    example = (input_ids, torch.ones_like(input_ids), torch.zeros_like(input_ids))
    arguments = example[: len(network.inputs)]
    try:
        program = _program(network, arguments)
    except torch.onnx.OnnxExporterError as error:
        raise ModelError(f"torch could not export the network: {error}") from error
    if program is None:  # the exporter's signature allows it for its old way
        raise ModelError("torch.onnx.export returned no program")
    model: onnx.ModelProto = program.model_proto
    _name_dimensions(model)
    _forget_source(model)
    return model


def _forget_source(model: onnx.ModelProto) -> None:
    """Drops the exporter's notes of the code each node came from: paths, and many bytes."""
    for item in (model.graph, *model.graph.node, *model.graph.value_info, *model.graph.input):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    for item in (*model.graph.initializer, *model.graph.output):
        item.ClearField("doc_string")
    model.ClearField("functions")


def _program(network: Network, arguments: tuple[Tensor, ...]) -> torch.onnx.ONNXProgram | None:
    shape = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    _REGISTRY.addFilter(_not_of_torchvision)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # the exporter's own deprecations, none about results
            return torch.onnx.export(
                network,
                arguments,
                dynamo=True,
                input_names=list(network.inputs),
                output_names=["logits"],
                dynamic_shapes=((shape,) * len(arguments),),
                opset_version=OPSET,
                verbose=False,
            )
    finally:
        _REGISTRY.removeFilter(_not_of_torchvision)


def _not_of_torchvision(record: logging.LogRecord) -> bool:
    """The exporter warns four times that torchvision is not there; no reranker needs it."""
    return "torchvision is not installed" not in record.getMessage()


def _name_dimensions(model: onnx.ModelProto) -> None:
    """Calls the open dimensions "batch" and "sequence" wherever the graph speaks of them."""
    graph = model.graph
    names: dict[str, str] = {}
    for value in graph.input:
        batch, sequence = value.type.tensor_type.shape.dim
        names |= {batch.dim_param: "batch", sequence.dim_param: "sequence"}
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param in names:
                dimension.dim_param = names[dimension.dim_param]
