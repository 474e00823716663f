"""Trained checkpoint → the files the package ships: one weights file, two graphs, checksums.

    python notebooks/training/pack.py CHECKPOINT [FOLDER]

CHECKPOINT is an ordinary folder of one sequence classifier; FOLDER defaults to
rerank_adapters/loading/bundled. Both graphs are scored against torch, on the checkpoint as
`bundled.unpack` will give it back, before anything is put in place; `loading.bundled` says how the
files are laid out.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, external_data_helper, helper, numpy_helper
from safetensors.numpy import load_file

from rerank_adapters.checkpoints.json import write_json
from rerank_adapters.checkpoints.tensors import write_tensors
from rerank_adapters.export import FILE_NAMES, accelerate, gate, graph, network
from rerank_adapters.export.files import draft
from rerank_adapters.export.rewrites.int8 import SMALLEST, TABLE, quantize, seven_bits
from rerank_adapters.export.rewrites.smoothing import smooth
from rerank_adapters.loading import bundled

Array = NDArray[np.generic]
INLINE = 4096
"""Most bytes of a constant that may stay in the graph."""
LIMIT = 30_000_000
"""Most bytes of all files together."""


def pack(checkpoint: Path, folder: Path) -> None:
    """Write the bundled files for *checkpoint*, or raise and write nothing."""
    encoder = network.load(checkpoint)
    probes = gate.probe(encoder)
    model = graph.trace(network.build(encoder))
    accelerate(model)
    state = load_file(checkpoint / "model.safetensors")
    roles = _roles(model, state)
    factors = smooth(model, [probe.feed for probe in probes])
    tensors = _stored(state, roles, {roles[name][0]: factor for name, factor in factors.items()})
    with draft(folder) as target:
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(checkpoint / name, target / name)
        starts = write_tensors(target / bundled.WEIGHTS, tensors)
        for dtype in ("float32", "int8"):
            copy = onnx.ModelProto()
            copy.CopyFrom(model)
            quantize(copy, weights_only=dtype == "float32")
            helper.set_model_props(copy, {"rerank_adapters.dtype": dtype})
            _refer(copy, tensors, starts)
            onnx.save(copy, target / FILE_NAMES[dtype])
        _check(target, tensors, probes)
        write_json(target / bundled.CHECKSUMS, _checksums(target))
        size = sum(file.stat().st_size for file in target.iterdir())
        if size > LIMIT:
            raise RuntimeError(f"the files take {size} bytes of at most {LIMIT}")


def _roles(model: onnx.ModelProto, state: Mapping[str, Array]) -> dict[str, tuple[str, str]]:
    """(usual name, "linear" or "table") of each constant of the graph that becomes int8."""
    names = {_key(values): name for name, values in state.items()}
    names |= {_key(values.T): name for name, values in state.items() if values.ndim == 2}
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    operand = {"MatMul": 1, "Gemm": 1, "Gather": 0}
    roles = {}
    for node in model.graph.node:
        name = node.input[operand[node.op_type]] if node.op_type in operand else ""
        values = constants.get(name)
        if values is None or values.ndim != 2 or values.dtype != np.float32:
            continue
        if node.op_type == "Gather" and values.size >= TABLE:
            roles[name] = (names[_key(values)], "table")
        elif node.op_type != "Gather" and min(values.shape) >= SMALLEST:
            roles[name] = (names[_key(values)], "linear")
    return roles


def _stored(
    state: Mapping[str, Array],
    roles: Mapping[str, tuple[str, str]],
    factors: Mapping[str, NDArray[np.float32]],
) -> dict[str, Array]:
    """The tensors of model.safetensors by name."""
    kinds = dict(roles.values())
    tensors: dict[str, Array] = {}
    for name, values in state.items():
        weights = values.astype(np.float32)
        if kinds.get(name) == "table":
            rows, scales = seven_bits(weights, axis=1)
            tensors |= {name: rows, f"{name}.scale": scales[:, None]}
        elif kinds.get(name) == "linear":
            matrix = np.ascontiguousarray(weights.T)
            if name in factors:
                matrix = matrix * factors[name]
                tensors[f"{name}.factor"] = factors[name]
            columns, scales = seven_bits(matrix, axis=0)
            tensors |= {name: np.ascontiguousarray(columns), f"{name}.scale": scales}
        else:
            tensors[name] = weights
    return tensors


def _refer(model: onnx.ModelProto, tensors: Mapping[str, Array], starts: Mapping[str, int]) -> None:
    """Points the graph's constants at the bytes they have in model.safetensors."""
    offsets = {_key(values): starts[name] for name, values in tensors.items()}
    for constant in model.graph.initializer:
        values = numpy_helper.to_array(constant)
        start = offsets.get(_key(values))
        if start is None:
            if values.nbytes > INLINE:
                raise RuntimeError(f"{constant.name} {values.shape} is not in {bundled.WEIGHTS}")
            continue
        external_data_helper.set_external_data(
            constant, bundled.WEIGHTS, offset=start, length=values.nbytes
        )
        constant.ClearField("raw_data")
        constant.data_location = TensorProto.EXTERNAL


def _key(values: Array) -> tuple[str, tuple[int, ...], bytes]:
    """What makes two constants the same: type, shape but for dimensions of one, and values."""
    shape = tuple(size for size in values.shape if size != 1)
    return str(values.dtype), shape, np.ascontiguousarray(values).tobytes()


def _check(folder: Path, tensors: Mapping[str, Array], probes: list[gate.Probe]) -> None:
    """Both graphs against torch: on the packed weights, and int8 on the trained ones as well."""
    with tempfile.TemporaryDirectory() as temporary:
        plain = Path(temporary)
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(folder / name, plain / name)
        write_tensors(plain / bundled.WEIGHTS, bundled.dequantize(tensors))
        packed = gate.probe(network.load(plain))
    gate.check(folder / FILE_NAMES["float32"], packed, "float32")
    gate.check(folder / FILE_NAMES["int8"], packed, "int8")
    gate.check(folder / FILE_NAMES["int8"], probes, "int8")


def _checksums(folder: Path) -> dict[str, str]:
    return {file.name: bundled.checksum_of(file) for file in sorted(folder.iterdir())}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path, nargs="?", default=bundled.folder())
    arguments = parser.parse_args()
    pack(arguments.checkpoint, arguments.folder)
