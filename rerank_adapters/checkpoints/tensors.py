"""safetensors files of float32 and int8, read and written without a library."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .damage import as_model_error

DTYPES: Mapping[str, type[np.generic]] = {"F32": np.float32, "I8": np.int8}

Array = NDArray[np.generic]


def read_tensors(file: Path) -> dict[str, Array]:
    """The tensors of a safetensors file of float32 and int8, as views of one buffer.

    Raises ModelError where it is damaged.
    """
    with as_model_error(str(file)):
        return _read(file)


def _read(file: Path) -> dict[str, Array]:
    data = file.read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:start])
    tensors: dict[str, Array] = {}
    for name, entry in header.items():
        if name != "__metadata__":
            first, end = entry["data_offsets"]
            values = np.frombuffer(data[start + first : start + end], DTYPES[entry["dtype"]])
            tensors[name] = values.reshape(entry["shape"])
    return tensors


def write_tensors(file: Path, tensors: Mapping[str, Array]) -> dict[str, int]:
    """Write the tensors, float32 before int8, and return where in the file each one starts."""
    with file.open("wb") as stream:
        return emit(stream.write, tensors)


def emit(write: Callable[[bytes], object], tensors: Mapping[str, Array]) -> dict[str, int]:
    """What `write_tensors` does, to whatever takes bytes."""
    names = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
    ordered = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, values in ordered:
        span = [position, position + values.nbytes]
        entries[name] = {
            "dtype": names[values.dtype],
            "shape": list(values.shape),
            "data_offsets": span,
        }
        position = span[1]
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-(8 + len(header)) % 64)  # so that the first tensor is aligned
    write(struct.pack("<Q", len(header)) + header)
    base, starts = 8 + len(header), {}
    for name, values in ordered:
        write(np.ascontiguousarray(values).tobytes())
        starts[name], base = base, base + values.nbytes
    return starts
