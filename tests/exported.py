"""The tiny checkpoints as ONNX, each exported once per version of the exporter and kept on disk."""

from __future__ import annotations

import functools
import hashlib
from importlib.metadata import version
from pathlib import Path

from rerank_adapters import export
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
def _recipe() -> str:
    package = Path(export.__file__).parents[1]
    rooms = ("checkpoints", "export", "families", "parity")
    sources = sorted(file for room in rooms for file in (package / room).rglob("*.py"))
    parts = [source.read_bytes() for source in sources]
    parts += [version(name).encode() for name in ("onnx", "onnxruntime", "onnxscript")]
    return hashlib.sha256(b"|".join(parts)).hexdigest()[:12]
