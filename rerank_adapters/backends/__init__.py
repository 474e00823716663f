"""Runtimes: token ids → logits. Each module here is the only one that imports its runtime."""

from __future__ import annotations

import ctypes.util
import importlib.util
import sys

from ..config import DEFAULT_MODEL, RerankerConfig
from ..errors import MissingDependencyError

FLOAT32_FILES = ("onnx/model.onnx", "model.onnx")


def choose_backend(config: RerankerConfig, files: frozenset[str]) -> tuple[str, str]:
    """("onnx" or "torch", why) for *config* and the checkpoint's *files*; nothing is imported."""
    if config.backend != "auto":
        return config.backend, f'backend="{config.backend}" was asked for'
    if config.file_name is not None or config.dtype == "int8":
        return "onnx", "file_name and int8 are the onnx backend's"
    gpu_asked = any(device.startswith(("cuda", "mps")) for device in config.devices)
    torch_here = importlib.util.find_spec("torch") is not None
    if config.model == DEFAULT_MODEL and not gpu_asked:
        return "onnx", "the default model runs on onnxruntime"
    if torch_here and (gpu_asked or ("auto" in config.devices and _accelerator())):
        return "torch", "a GPU is used through torch, which is installed"
    if any(name in files for name in FLOAT32_FILES):
        return "onnx", "the checkpoint has a float32 ONNX file"
    if not torch_here:
        raise MissingDependencyError("torch", "torch")
    return "torch", "the checkpoint has no float32 ONNX file"


def _accelerator() -> bool:
    """Whether a GPU driver is here, told without importing a runtime (torch takes seconds)."""
    if sys.platform == "darwin":
        return True
    library = "nvcuda" if sys.platform == "win32" else "cuda"
    return ctypes.util.find_library(library) is not None
