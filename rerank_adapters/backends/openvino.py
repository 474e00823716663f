"""OpenVINO: the same ONNX files as onnxruntime's, on CPUs."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..checkpoints import check_bounded, choose_graph
from ..errors import BackendError, ClosedError, ConfigError, ModelError
from ..protocols import BackendTraits
from ..tokens import TokenBatch
from . import LoadOptions, Selection, available_cpus


@contextmanager
def _silent() -> Iterator[None]:
    """Let no telemetry package be found meanwhile, which openvino does without.

    Imported with it, openvino writes a user's id to the home folder. What a program has imported
    before is its own.
    """
    name = "openvino_telemetry"
    if name in sys.modules or find_spec(name) is None:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # which is how Python says "not here"
    try:
        yield
    finally:
        del sys.modules[name]


with _silent():
    import openvino as ov

MOST_WORKERS = 8
"""Forwards at once; more cost memory."""

BATCH_TOKENS = 512
"""Padded tokens per forward: small on CPUs, where workers share a list and none should idle."""

PRECISIONS = {"float32": ov.Type.f32, "bfloat16": ov.Type.bf16}
"""What it computes in, by dtype: left to itself it takes bfloat16 wherever the CPU has it."""

INTEGERS = (b"MatMulInteger", b"QLinearMatMul", b"QGemm", b"DynamicQuantize", b"MatMulNBits")
"""Operators of few bits, whose scores would be openvino's own: law 2 was not seen to hold."""

_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


def select(files: frozenset[str], *, dtype: str, file_name: str | None) -> Selection:
    """The float32 ONNX file, and the weights beside it. Raises as `choose_graph` does.

    It is the file for bfloat16 too.
    """
    del dtype
    file = choose_graph(files, dtype="float32", file_name=file_name)
    return Selection(file, (file, f"{file}*data*"))


def load(folder: Path, selection: Selection, options: LoadOptions) -> OpenVinoBackend:
    """The selected file of *folder*, compiled. Raises ModelError, BackendError, ConfigError."""
    return OpenVinoBackend(
        folder / str(selection.file),
        device=options.device,
        dtype=options.dtype,
        num_workers=options.num_workers,
        num_threads=options.num_threads,
        pad_id=options.pad_id,
        pad_side=options.pad_side,
        labels=options.labels,
    )


class OpenVinoBackend:
    """One compiled model; `logits` may be called from several threads at once."""

    def __init__(
        self,
        file: Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        num_workers: int | None = None,
        num_threads: int | None = None,
        pad_id: int = 0,
        pad_side: Literal["left", "right"] = "right",
        labels: int | None = None,
    ) -> None:
        if device not in ("auto", "cpu"):
            raise BackendError(f'device {device!r} needs another backend: got backend="openvino"')
        self._file = file
        self._pad_id = pad_id
        self._pad_side = pad_side
        self.dtype = "float32" if dtype == "auto" else dtype
        threads = num_threads or available_cpus()
        workers = num_workers or min(threads, MOST_WORKERS)
        self.traits = BackendTraits(
            workers=workers,
            batch_tokens=BATCH_TOKENS,
            max_padding=0.03,
            free_padding=24,
            survives_fork=False,  # its pool of threads stays with the parent
        )
        _refuse_int8(file)
        self._idle: list[Any] = []
        self._model: Any = _compiled(file, self.dtype, workers, threads)
        self._threads = threads
        self._inputs = _inputs(file, self._model)
        self._output = _output(file, self._model)
        self._try(labels)

    def logits(self, batch: TokenBatch) -> NDArray[np.float32]:
        """Raw outputs, float32 of shape (pairs, labels); rows keep the batch's order."""
        input_ids, mask, type_ids = batch.padded(self._pad_id, self._pad_side)
        positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
        arrays = dict(zip(_INPUTS, (input_ids, mask, type_ids, positions), strict=True))
        feed = {name: arrays[name].astype(kind, copy=False) for name, kind in self._inputs.items()}
        model = self._live()
        # A request serves one thread at a time: there are as many as forwards ran at once.
        request = self._idle.pop() if self._idle else model.create_infer_request()
        results = request.infer(feed)
        logits = np.array(results[self._output], dtype=np.float32)  # its memory is the request's
        self._idle.append(request)
        return logits[:, None] if logits.ndim == 1 else logits

    def info(self) -> dict[str, str | int]:
        """The device, the file, the numbers and the threads."""
        self._live()
        return {
            "backend": "openvino",
            "device": "cpu",
            "dtype": self.dtype,
            "file": self._file.name,
            "num_threads": self._threads,
            "runtime": f"openvino {ov.__version__.partition('-')[0]}",
        }

    def close(self) -> None:
        """Let go of the model; memory is free once running forwards end."""
        self._model = None
        self._idle = []

    def _live(self) -> Any:
        model = self._model
        if model is None:
            raise ClosedError("the openvino backend is closed")
        return model

    def _try(self, labels: int | None) -> None:
        """Run two tokens: what the graph gives is judged now, not at the first score."""
        two = np.full(2, self._pad_id, dtype=np.int32)
        batch = TokenBatch(two, np.zeros_like(two), np.array([2], dtype=np.int64))
        try:
            shape = self.logits(batch).shape
        except RuntimeError as error:
            raise ModelError(f"{self._file.name} does not run: {error}") from error
        if len(shape) == 3:
            raise ModelError(
                f"{self._file.name} gives {self._output.get_any_name()!r} of shape {shape}, one "
                "row for every token, as a language model does: export the reranker with "
                'rerank-adapters export, or pass backend="onnx"'
            )
        if len(shape) != 2 or shape[0] != 1 or (labels is not None and shape[1] != labels):
            wanted = "(batch, labels)" if labels is None else f"(batch, {labels})"
            raise ModelError(
                f"{self._file.name} gives {self._output.get_any_name()!r} of shape {shape} for one "
                f"pair, and a reranker's graph with this config.json gives {wanted}: export it "
                'with rerank-adapters export, or pass backend="onnx"'
            )


def _refuse_int8(file: Path) -> None:
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as graph:
        found = next((word for word in INTEGERS if graph.find(word) >= 0), None)
    if found is not None:
        raise ModelError(
            f"{file.name} computes in int8 ({found.decode()}), which openvino rounds in its own "
            'way, so that scores would be others: pass backend="onnx", which runs this file as it '
            "was measured, or name a float32 file with file_name="
        )


def _compiled(file: Path, dtype: str, workers: int, threads: int) -> Any:
    core = ov.Core()
    able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if dtype == "bfloat16" and "BF16" not in able:
        raise ConfigError(
            'dtype must be "float32" on a CPU without bfloat16 instructions: got "bfloat16" '
            f"(it has {', '.join(able)})"
        )
    options = {
        "INFERENCE_PRECISION_HINT": PRECISIONS[dtype],
        "PERFORMANCE_HINT": "THROUGHPUT" if workers > 1 else "LATENCY",
        "NUM_STREAMS": workers,
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,  # other models and tokenisers want CPUs too
    }
    check_bounded(file)
    try:
        return core.compile_model(core.read_model(file), "CPU", options)
    except RuntimeError as error:
        raise ModelError(f"openvino could not load {file}: {error}") from error


def _inputs(file: Path, model: Any) -> dict[str, np.dtype[Any]]:
    """The graph's inputs and their types; ModelError where pairs of any length do not fit them."""
    found = {node.get_any_name(): node.get_element_type().to_dtype() for node in model.inputs}
    if "input_ids" not in found or set(found) - set(_INPUTS):
        raise ModelError(
            f"{file.name} is no text cross-encoder: its inputs are {list(found)}, expected some of "
            f"{sorted(_INPUTS)}; a language model's cache (past_key_values) is not kept here: "
            "export the model with rerank-adapters export"
        )
    for node in model.inputs:
        if all(side.is_dynamic for side in node.get_partial_shape()):
            continue
        raise ModelError(
            f"{file.name} takes {node.get_any_name()!r} of the fixed shape "
            f"{node.get_partial_shape()}, and openvino is given batches of any: pass "
            'backend="onnx", which pads to it'
        )
    return found


def _output(file: Path, model: Any) -> Any:
    named = {node.get_any_name(): node for node in model.outputs}
    if "logits" in named or len(named) == 1:
        return named.get("logits") or next(iter(named.values()))
    raise ModelError(
        f"{file.name} has several outputs and none is called 'logits': {', '.join(named)}; name "
        "another file with file_name=, or export the model with rerank-adapters export"
    )
