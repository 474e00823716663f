"""A graph cut after some of its layers, for early exits: parts that hand hidden states on."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from ..checkpoints import part_name
from ..early_exit import HIDDEN, ExitHead, pool
from ..errors import ModelError
from ..parity.comparison import drift
from .gate import Probe, open_session, run
from .network import Network
from .rewrites.editing import Editor

MATRIX = 4096
"""A constant matrix of as many numbers is a layer's."""

States = dict[int, NDArray[np.float32]]
"""Hidden states, (batch, sequence, width), after each layer."""


def hidden_states(network: Network, probe: Probe, layers: Sequence[int]) -> States:
    """What torch has after each of *layers*, ascending, fed by *probe*. Raises ModelError."""
    model = network.model
    feed = {name: torch.from_numpy(probe.feed[name]) for name in network.inputs}
    with torch.inference_mode():
        found = model(**feed, output_hidden_states=True).hidden_states
    kind = model.config.model_type
    if found is None:
        raise ModelError(f"exits must be left out: a {kind} network shows no states of its layers")
    most = len(found) - 2
    if not 1 <= layers[0] <= layers[-1] <= most:
        raise ModelError(
            f"exits must be after layers 1 to {most} of this {kind} network: got {list(layers)}"
        )
    return {layer: found[layer].numpy() for layer in layers}


def check_heads(heads: Mapping[int, ExitHead], states: States) -> None:
    """Raise ModelError where a head reads states of another width than its layer's *states*."""
    for layer, head in heads.items():
        pooled = len(pool(states[layer][0], np.zeros(states[layer].shape[1], np.int32)))
        if len(head.weight) != pooled:
            raise ModelError(
                f"exits must have heads for this network, of {pooled} weights: got "
                f"{len(head.weight)} for layer {layer}"
            )


def boundaries(file: Path, probe: Probe, states: States) -> dict[int, str]:
    """The tensor of the graph *file* that is nearest to the hidden *states* after each layer.

    A graph has lost the names of what it was traced from; numbers tell. Raises ModelError where
    nothing is near.
    """
    model = onnx.load(file, load_external_data=False)
    known = onnx.shape_inference.infer_shapes(model).graph.value_info
    names = [
        value.name
        for value in known
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
        and len(value.type.tensor_type.shape.dim) == 3
    ]
    del model.graph.output[:]
    model.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names
    )
    asking = file.with_name(f"asking-{file.name}")
    onnx.save(model, asking)
    try:
        session = open_session(asking)
        feed = {node.name: probe.feed[node.name] for node in session.get_inputs()}
        outputs = dict(zip(names, session.run(names, feed), strict=True))
    finally:
        asking.unlink()
    return {layer: _nearest(outputs, layer, each, probe) for layer, each in states.items()}


def cut(model: onnx.ModelProto, layers: Mapping[int, str]) -> list[onnx.ModelProto]:
    """The parts of *model* between the tensors that *layers* names, in order.

    Each takes `hidden` of the one before beside the masks it needs, and gives `hidden` or, the
    last one, the logits. Raises ModelError where a layer would be computed in two parts.
    """
    names = [layers[layer] for layer in sorted(layers)]
    bounds = [None, *names, None]
    parts = [_part(model, start, end) for start, end in itertools.pairwise(bounds)]
    matrices = [name for part in parts for name in _matrices(part)]
    if len(matrices) != len(set(matrices)) or set(matrices) != set(_matrices(model)):
        raise ModelError(
            "the network cannot be cut between its layers: parts would compute the same twice"
        )
    return parts


def _part(model: onnx.ModelProto, start: str | None, end: str | None) -> onnx.ModelProto:
    part = onnx.ModelProto()
    part.CopyFrom(model)
    graph = part.graph
    shape = ("batch", "sequence", None)
    if start is not None:
        for node in graph.node:
            for at, name in enumerate(node.input):
                if name == start:
                    node.input[at] = HIDDEN
        graph.input.append(helper.make_tensor_value_info(HIDDEN, TensorProto.FLOAT, shape))
    if end is not None:
        del graph.output[:]
        graph.output.append(helper.make_tensor_value_info(end, TensorProto.FLOAT, shape))
    Editor(part).finish()
    used = {name for node in graph.node for name in node.input}
    inputs = [value for value in graph.input if value.name in used]
    del graph.input[:]
    graph.input.extend(inputs)
    return part


def _matrices(model: onnx.ModelProto) -> list[str]:
    """Names of the constants, once for each product that reads one of a layer's size."""
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in model.graph.initializer}
    return [
        f"{name} {node.output[0]}"
        for node in model.graph.node
        if node.op_type in ("MatMul", "MatMulInteger", "Gemm")
        for name in node.input
        if sizes.get(name, 0) >= MATRIX
    ]


def _nearest(
    outputs: Mapping[str, NDArray[np.generic]],
    layer: int,
    states: NDArray[np.float32],
    probe: Probe,
) -> str:
    real = probe.feed["attention_mask"].astype(bool)
    drifts = {
        name: float(np.abs(values[real] - states[real]).mean())
        for name, values in outputs.items()
        if values.shape == states.shape and values.dtype == states.dtype
    }
    name = min(drifts, key=drifts.__getitem__, default="")
    if not name or drifts[name] > 0.05 * float(np.abs(states[real]).mean()):
        raise ModelError(f"no tensor of the graph holds the hidden states after layer {layer}")
    return name


def write(file: Path, layers: Mapping[int, str]) -> list[Path]:
    """Write the parts of the graph *file* beside it, over the same weights; return their paths.

    Each reads what it needs of the one file of external data that *file* names.
    """
    model = onnx.load(file, load_external_data=False)
    written = []
    for number, part in enumerate(cut(model, layers)):
        written.append(file.with_name(part_name(file.name, number)))
        onnx.save(part, written[-1])
    return written


def check(parts: Sequence[Path], whole: Path, probes: Sequence[Probe], limit: float) -> None:
    """Raise ModelError where *parts*, run one after the other, drift from the *whole*."""
    sessions, oracle = [open_session(part) for part in parts], open_session(whole)
    for case in probes:
        arrays: dict[str, NDArray[np.generic]] = dict(case.feed)
        for session in sessions:
            feed = {node.name: arrays[node.name] for node in session.get_inputs()}
            arrays[HIDDEN] = session.run(None, feed)[0]
        moved = drift(arrays[HIDDEN].astype(np.float32), run(oracle, case.feed))
        if moved > limit:
            raise ModelError(
                f"the parts of {whole.name} drift from it by {moved:.2e} (allowed: {limit:g}): no "
                "file was kept"
            )
