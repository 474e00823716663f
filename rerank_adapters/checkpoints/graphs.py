"""Which ONNX graphs and which weights a checkpoint has, told by the names that hubs give them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import fnmatch

from ..errors import ConfigError, ModelError

GRAPHS: Mapping[str, tuple[str, ...]] = {
    "float32": ("model.onnx",),
    "float16": ("model_fp16.onnx", "model_float16.onnx"),
    "int8": (
        "model_int8.onnx",
        "model_qint8_avx512_vnni.onnx",
        "model_quantized.onnx",
        "model_qint8_avx512.onnx",
        "model_quint8_avx2.onnx",
        "model_qint8_arm64.onnx",
    ),
}
"""The names for each dtype, most wanted first; looked for in `onnx/` and beside it."""

WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "*/pytorch_model*.bin")
"""The names of weights that torch reads."""

HEADS = "exit_heads.safetensors"
"""The exit heads of a checkpoint, which are no weights of its network."""

_PART = re.compile(r".*_part[0-9]+\.onnx")


def part_name(graph: str, number: int) -> str:
    """The name of one part of *graph*, counted from 0, where it is cut for early exits."""
    return f"{graph.removesuffix('.onnx')}_part{number}.onnx"


def has_weights(files: frozenset[str]) -> bool:
    """Whether torch has something to read among a checkpoint's *files*."""
    named = (name for name in files if name.rpartition("/")[2] != HEADS)
    return any(fnmatch(name, pattern) for name in named for pattern in WEIGHTS)


def graph_of(files: frozenset[str], dtype: str) -> str | None:
    """The graph of *dtype* among a checkpoint's *files*, as a path inside it; None: there is none.

    "auto" takes float32, else float16, else int8, else the one graph there is.
    """
    for name in GRAPHS if dtype == "auto" else (dtype,):
        for wanted in GRAPHS.get(name, ()):
            for path in (f"onnx/{wanted}", wanted):
                if path in files:
                    return path
    alone = _graphs(files)
    return alone[0] if dtype == "auto" and len(alone) == 1 else None


def choose_graph(files: frozenset[str], *, dtype: str, file_name: str | None) -> str:
    """The graph called *file_name*, or that of *dtype* where it is None.

    Raises ModelError naming the graphs there are, and ConfigError for a dtype that ONNX lacks.
    """
    if file_name is not None:
        path = next((it for it in (f"onnx/{file_name}", file_name) if it in files), None)
    elif dtype == "bfloat16":
        raise ConfigError('dtype "bfloat16" needs backend "torch": got backend="onnx"')
    else:
        path = graph_of(files, dtype)
    if path is None or not path.endswith(".onnx"):
        raise ModelError(_missing(files, dtype, file_name))
    return path


def _graphs(files: frozenset[str]) -> list[str]:
    return sorted(name for name in files if name.endswith(".onnx") and not _PART.fullmatch(name))


def _missing(files: frozenset[str], dtype: str, file_name: str | None) -> str:
    there = _graphs(files)
    if file_name is not None:
        asked, cure = file_name, "name one of those with file_name="
    else:
        asked = f'{" or ".join(GRAPHS.get(dtype, ("model.onnx",)))} for dtype="{dtype}"'
        named = [f'dtype="{name}"' for name in GRAPHS if graph_of(files, name) is not None]
        cure = f"pass {' or '.join([*named, 'file_name='])}" if there else 'pass backend="torch"'
        cure += "; rerank-adapters export makes a file of any dtype"
    found = ", ".join(there) or "none"
    return f"no ONNX file {asked} in the checkpoint (found: {found}): {cure}"
