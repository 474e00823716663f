"""The tiny checkpoints as ONNX, each exported once per version of the exporter and kept on disk."""

from __future__ import annotations

import functools
import hashlib
from importlib.metadata import version
from pathlib import Path

import numpy as np

from rerank_adapters import export
from rerank_adapters.checkpoints import HEADS
from rerank_adapters.checkpoints.tensors import write_tensors
from rerank_adapters.export import GraphDType, export_onnx

from .checkpoints import build, made_once


@functools.cache
def exported(kind: str, dtype: GraphDType = "float32") -> Path:
    """The folder that `export_onnx` makes of the tiny checkpoint *kind*. Treat it as read-only."""
    return made_once(
        f"{kind}-{dtype}-{_recipe()}", lambda folder: _export(build(kind), folder, dtype)
    )


def _export(checkpoint: Path, folder: Path, dtype: GraphDType) -> None:
    export_onnx(checkpoint, folder, dtype)


@functools.cache
def exported_with_exits(
    kind: str = "bert",
    layers: tuple[int, ...] = (1,),
    dtypes: tuple[GraphDType, ...] = ("float32", "int8"),
) -> Path:
    """The tiny *kind* in *dtypes*, whole and cut after *layers*, with a random head for each.

    Read-only. Each export traces, rewrites and checks a graph, which takes many times as long as
    all that is asked of it.
    """
    name = "-".join((kind, "exits", *map(str, layers), *dtypes, _recipe()))
    return made_once(name, lambda folder: _export_with_exits(kind, folder, layers, dtypes))


def _export_with_exits(
    kind: str, folder: Path, layers: tuple[int, ...], dtypes: tuple[GraphDType, ...]
) -> None:
    file = write_heads(folder / HEADS, layers, seed=21, bias=0.0)
    for dtype in dtypes:
        export_onnx(build(kind), folder, dtype, exits=file)


def write_heads(file: Path, layers: tuple[int, ...], *, seed: int, bias: float) -> Path:
    """Heads of random weights for *layers* of a network that is 64 wide; return *file*."""
    generator = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    for layer in layers:
        tensors[f"layer_{layer}.weight"] = generator.normal(size=(1, 192)).astype(np.float32)
        tensors[f"layer_{layer}.bias"] = np.array([bias], np.float32)
    write_tensors(file, tensors)
    return file


@functools.cache
def _recipe() -> str:
    package = Path(export.__file__).parents[1]
    rooms = ("checkpoints", "export", "families", "parity")
    sources = sorted(file for room in rooms for file in (package / room).rglob("*.py"))
    sources.append(Path(__file__))
    parts = [source.read_bytes() for source in sources]
    parts += [version(name).encode() for name in ("onnx", "onnxruntime", "onnxscript")]
    return hashlib.sha256(b"|".join(parts)).hexdigest()[:12]
