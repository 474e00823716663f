"""Runtimes: token ids → logits. Each module here is the only one that imports its runtime.

`BACKENDS` names them. A new one is a module with `select` and `load` (see `BackendModule`) and one
entry; every table that lists backends is read from here.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, cast

from ..errors import MissingDependencyError

if TYPE_CHECKING:
    from ..protocols import Backend
    from ..tokens import TokenBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendEntry:
    """What is known of a backend before it is imported.

    module    where it lives, as an import path
    needs     the library that has to be installed
    extra     the extra of rerank-adapters that brings it, None: it comes with the base install
    reads     which of a checkpoint's files: its ONNX graphs, or its weights
    devices   kinds of device it runs on
    dtypes    what it computes in
    """

    module: str
    needs: str
    extra: str | None = None
    reads: Literal["onnx", "weights"] = "onnx"
    devices: tuple[str, ...] = ("cpu",)
    dtypes: tuple[str, ...] = ("float32",)

    @property
    def installed(self) -> bool:
        """Whether its library is here, found without importing it."""
        return importlib.util.find_spec(self.needs) is not None


BACKENDS: dict[str, BackendEntry] = {
    "onnx": BackendEntry(
        module="rerank_adapters.backends.onnx",
        needs="onnxruntime",
        devices=("cpu", "cuda"),
        dtypes=("float32", "float16", "int8"),
    ),
    "openvino": BackendEntry(
        module="rerank_adapters.backends.openvino",
        needs="openvino",
        extra="openvino",
        dtypes=("float32", "bfloat16"),
    ),
    "torch": BackendEntry(
        module="rerank_adapters.backends.torch",
        needs="torch",
        extra="torch",
        reads="weights",
        devices=("cpu", "cuda", "mps"),
        dtypes=("float32", "float16", "bfloat16"),
    ),
}


@dataclass(frozen=True, slots=True)
class Selection:
    """Which files of a checkpoint a backend wants beside its configuration.

    file is the one that it opens, None where it takes the folder; patterns name all of them.
    """

    file: str | None
    patterns: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """What a backend is loaded with: the options that concern it, and what the files say.

    encode writes pairs as this library does, uncut: a backend that brings a tokenizer of its own
    compares with it, unless pairs are framed as somebody said beside the files. answers are the
    token ids of a language model's yes and no, labels the columns that logits should have.
    tokenizer_json gives that tokenizer as tokenizer.json is read here. cache_folder holds code that
    a checkpoint takes from another repository, fetched already. exit_layers are those at which the
    files say that graphs are cut into parts.
    """

    device: str = "auto"
    dtype: str = "auto"
    num_workers: int | None = None
    num_threads: int | None = None
    trust_remote_code: bool = False
    prompt: str | None = None
    pad_id: int = 0
    pad_side: Literal["left", "right"] = "right"
    max_length: int
    answers: tuple[int, int | None] | None = None
    labels: int | None = None
    framed: bool = False
    encode: Callable[[Sequence[tuple[str, str]]], TokenBatch]
    tokenizer_json: Callable[[], str] | None = None
    cache_folder: str | None = None
    exit_layers: tuple[int, ...] = ()


class BackendModule(Protocol):
    """What a backend's module offers."""

    def select(self, files: frozenset[str], *, dtype: str, file_name: str | None) -> Selection:
        """The files to fetch of a checkpoint's *files*. Raises ModelError, ConfigError."""
        ...

    def load(self, folder: Path, selection: Selection, options: LoadOptions) -> Backend:
        """The network on one device. Raises ModelError, BackendError, ConfigError."""
        ...


def backend_module(name: str) -> BackendModule:
    """The module of the backend *name*, imported now. MissingDependencyError names its extra."""
    entry = BACKENDS[name]
    try:
        return cast("BackendModule", importlib.import_module(entry.module))
    except ImportError as error:
        missing = (error.name or entry.needs).partition(".")[0]
        raise MissingDependencyError(missing, entry.extra or "") from error


def available_cpus() -> int:
    """CPUs this process may use: its affinity, cut by a cgroup quota."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cpus, _cgroup_quota() or cpus))


def _cgroup_quota(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Whole CPUs the cgroup grants, rounded up; None where it sets no quota."""
    try:
        if (root / "cpu.max").exists():
            quota, period = (root / "cpu.max").read_text().split()
        else:
            quota = (root / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (root / "cpu/cpu.cfs_period_us").read_text().strip()
        return math.ceil(int(quota) / int(period)) if int(quota) > 0 else None
    except (OSError, ValueError):  # no cgroup, or the word "max"
        return None
