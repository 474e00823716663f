"""ONNX Runtime: no torch, no transformers, no optimum."""

from __future__ import annotations

import logging
import mmap
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..checkpoints import GRAPHS, HEADS, check_bounded, choose_graph, part_name
from ..clean import one_line
from ..early_exit import HIDDEN, pool
from ..errors import BackendError, ClosedError, ModelError
from ..protocols import BackendTraits
from ..tokens import TokenBatch
from . import LoadOptions, Selection, available_cpus

# From 1.29 on, onnxruntime reports to its makers unless it is told not to before it is imported;
# the reporting thread also hangs forked children when they exit. A user's own setting stands.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

logger = logging.getLogger(__name__)

MOST_WORKERS = 8
"""Forwards at once are one for every two CPUs, at least two; more than these cost memory."""

BATCH_TOKENS = {"cpu": 512, "cuda": 65_536}
"""Padded tokens per forward: small on CPUs, where workers share a list and none should idle."""

BATCH_SCALE_MARKS = (b"DynamicQuantizeLinear", b"DynamicQuantizeMatMul", b"MatMulIntegerToFloat")
"""Operators with one activation scale per batch: a score would depend on its batch mates."""


def select(files: frozenset[str], *, dtype: str, file_name: str | None) -> Selection:
    """The ONNX file for *dtype*, and the weights beside it. Raises as `choose_graph` does."""
    file = choose_graph(files, dtype=dtype, file_name=file_name)
    folder = file.rpartition("/")[0]
    parts = f"{file.removesuffix('.onnx')}_part*.onnx"
    return Selection(file, (file, f"{file}*data*", parts, f"{folder}/{HEADS}".lstrip("/")))


def load(folder: Path, selection: Selection, options: LoadOptions) -> OnnxBackend:
    """A session over the selected file of *folder*. Raises ModelError, BackendError."""
    return OnnxBackend(
        folder / str(selection.file),
        device=options.device,
        num_workers=options.num_workers,
        num_threads=options.num_threads,
        pad_id=options.pad_id,
        pad_side=options.pad_side,
        answers=options.answers,
        labels=options.labels,
        max_length=options.max_length,
        exit_layers=options.exit_layers,
    )


class OnnxBackend:
    """One session of onnxruntime; `logits` may be called from several threads at once."""

    def __init__(
        self,
        file: Path,
        *,
        device: str = "auto",
        num_workers: int | None = None,
        num_threads: int | None = None,
        pad_id: int = 0,
        pad_side: Literal["left", "right"] = "right",
        answers: tuple[int, int | None] | None = None,
        labels: int | None = None,
        max_length: int | None = None,
        exit_layers: tuple[int, ...] = (),
    ) -> None:
        self.device = _device(device)
        self._file = file
        self._pad_id = pad_id
        self._pad_side = pad_side
        workers, self._threads = _shares(self.device, num_workers, num_threads)
        self._session: ort.InferenceSession | None = _session(file, self.device, self._threads)
        self._inputs = [node.name for node in self._session.get_inputs()]
        self._dtypes = {node.name: _numpy_type(node.type) for node in self._session.get_inputs()}
        self._answers = answers
        self._output = _logits_output(file, self._session)
        self._rows, self._columns = _fixed_shape(file, self._session, max_length)
        self.one_by_one = _mentions(file, BATCH_SCALE_MARKS)
        self.dtype = _dtype(file)
        self._memory = _Memory(BATCH_TOKENS["cpu"] if self.device == "cpu" else None)
        self._parts = _Parts(file, exit_layers, self.device, self._threads)
        self.traits = _traits(self.device, workers, self._parts)
        self._check_graph()
        self._try_graph(labels)

    def logits(self, batch: TokenBatch) -> NDArray[np.float32]:
        """Raw outputs, float32 of shape (pairs, labels); rows keep the batch's order."""
        rows = 1 if self.one_by_one else self._rows or len(batch)
        if rows < len(batch):
            starts = range(0, len(batch), rows)
            parts = [np.arange(at, min(at + rows, len(batch))) for at in starts]
            return np.concatenate([self._run(batch.take(part)) for part in parts])
        return self._run(batch)

    def start(
        self,
        batch: TokenBatch,
        layer: int,
        states: list[NDArray[Any]] | None = None,
        *,
        after: int = 0,
    ) -> tuple[NDArray[np.float32], list[NDArray[Any]]]:
        """Run the parts up to *layer*, behind *after* on *states*: pooled states, and each pair's.

        Pooled are (pairs, 3 · width).
        """
        self._live_session()
        given = None if states is None else _side_by_side(batch, states)
        hidden = self._run_parts(batch, self._parts.between(after, layer), given)
        lengths = batch.lengths.tolist()
        states = [rows[:length].copy() for rows, length in zip(hidden, lengths, strict=True)]
        ids = np.split(batch.input_ids, batch.offsets[1:-1])
        pooled = [
            pool(each.astype(np.float32, copy=False), own)
            for each, own in zip(states, ids, strict=True)
        ]
        return np.stack(pooled), states

    def resume(
        self, batch: TokenBatch, states: list[NDArray[Any]], layer: int
    ) -> NDArray[np.float32]:
        """Run the parts after *layer* on *states* of `start`: logits, as `logits` gives them."""
        self._live_session()
        hidden = _side_by_side(batch, states)
        logits = self._run_parts(batch, self._parts.between(layer, None), hidden)
        return np.asarray(logits, dtype=np.float32)

    def info(self) -> dict[str, str | int]:
        """The provider in use, the device, the file and the threads."""
        session = self._live_session()
        facts: dict[str, str | int] = {
            "backend": "onnx",
            "device": self.device,
            "dtype": self.dtype,
            "provider": session.get_providers()[0],
            "file": self._file.name,
            "num_threads": self._threads,
            "runtime": f"onnxruntime {ort.__version__}",
        }
        if self.one_by_one:
            facts["fallback"] = "one pair per forward: the file scales int8 activations per batch"
        return facts

    def close(self) -> None:
        """Let go of the session; memory is free once running forwards end."""
        self._session = None
        self._parts.close()

    def _live_session(self) -> ort.InferenceSession:
        session = self._session
        if session is None:
            raise ClosedError("the onnx backend is closed")
        return session

    def _run(self, batch: TokenBatch) -> NDArray[np.float32]:
        session, pairs = self._live_session(), len(batch)
        if self._rows and pairs < self._rows:  # the graph has so many rows: the last is repeated
            batch = batch.take(np.minimum(np.arange(self._rows), pairs - 1))
        arrays = self._arrays(batch)
        mask = arrays["attention_mask"]
        feed: dict[str, NDArray[Any]] = {
            name: arrays[name].astype(self._dtypes[name], copy=False) for name in self._inputs
        }
        if self.device.startswith("cuda"):
            outputs = self._run_bound(session, feed)
        else:
            with self._memory.around(mask.size) as options:
                outputs = session.run([self._output], feed, options)[0]
        logits = np.asarray(outputs)[:pairs]
        if logits.ndim == 3 and self._answers is not None:
            logits = self._read_answers(logits, mask[:pairs])
        logits = np.asarray(logits, dtype=np.float32)
        return logits[:, None] if logits.ndim == 1 else logits

    def _arrays(self, batch: TokenBatch) -> dict[str, NDArray[np.int64]]:
        """What a graph may ask for of *batch*."""
        input_ids, mask, type_ids = batch.padded(self._pad_id, self._pad_side)
        if self._columns:
            input_ids = self._widened(input_ids, self._pad_id)
            mask, type_ids = self._widened(mask, 0), self._widened(type_ids, 0)
        return {
            "input_ids": input_ids,
            "attention_mask": mask,
            "token_type_ids": type_ids,
            "position_ids": np.maximum(np.cumsum(mask, axis=1) - 1, 0),
        }

    def _run_parts(
        self, batch: TokenBatch, parts: Sequence[ort.InferenceSession], hidden: NDArray[Any] | None
    ) -> NDArray[Any]:
        """Run *parts* one after the other, the first on *hidden*: what the last one gives."""
        arrays: dict[str, NDArray[Any]] = {**self._arrays(batch)}
        for part in parts:
            if hidden is not None:
                arrays[HIDDEN] = hidden
            feed = {node.name: arrays[node.name] for node in part.get_inputs()}
            with self._memory.around(arrays["attention_mask"].size) as options:
                hidden = part.run(None, feed, options)[0]
        return np.asarray(hidden)

    def _widened(self, array: NDArray[np.int64], value: int) -> NDArray[np.int64]:
        """Pad to the columns that the graph has, on the side that pads."""
        more = self._columns - array.shape[1]
        sides = (more, 0) if self._pad_side == "left" else (0, more)
        return np.pad(array, ((0, 0), sides), constant_values=value)

    def _read_answers(self, logits: NDArray[Any], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the lead of yes over no at each row's last token, of a whole vocabulary's."""
        yes, no = self._answers or (0, None)
        last = logits.shape[1] - 1 - np.argmax(mask[:, ::-1], axis=1)
        read = logits[np.arange(len(logits)), last].astype(np.float32)
        lead: NDArray[np.float32] = read[:, yes] - (0 if no is None else read[:, no])
        return lead[:, None]

    def _try_graph(self, labels: int | None) -> None:
        """Run two tokens through the graph: what it gives is judged now, not at the first score."""
        two = np.full(2, self._pad_id, dtype=np.int32)
        batch = TokenBatch(two, np.zeros_like(two), np.array([2], dtype=np.int64))
        try:
            shape = self._run(batch).shape
        except (ModelError, BackendError):
            raise
        except Exception as error:  # onnxruntime raises a class per failure, with no common base
            raise ModelError(f"{self._file.name} does not run: {error}") from error
        if len(shape) == 3:
            raise ModelError(
                f"{self._file.name} gives {self._output!r} of shape (batch, sequence, {shape[2]}), "
                "and a reranker's graph gives logits (batch, labels): it was exported without its "
                "head (task text-classification has one; rerank-adapters export makes it), or it "
                "is a language model's, which needs answers="
            )
        if labels is not None and shape != (1, labels):
            raise ModelError(
                f"{self._file.name} gives {self._output!r} of shape {shape} for one pair, and its "
                f"config.json states {labels} label(s): get the file and config.json of one model"
            )

    def _run_bound(
        self, session: ort.InferenceSession, feed: dict[str, NDArray[Any]]
    ) -> NDArray[np.float32]:
        """IO binding: inputs are copied once and the output stays on the device until read.

        Untested where no GPU is at hand.
        """
        binding = session.io_binding()
        for name, array in feed.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        binding.bind_output(self._output, "cpu")
        session.run_with_iobinding(binding)
        result: NDArray[np.float32] = binding.copy_outputs_to_cpu()[0]
        return result

    def _check_graph(self) -> None:
        known = {"input_ids", "attention_mask", "token_type_ids", "position_ids"}
        strange = [name for name in self._inputs if name not in known]
        if strange or "input_ids" not in self._inputs:
            raise ModelError(
                f"{self._file.name} is no text cross-encoder: its inputs are {self._inputs}, "
                f"expected some of {sorted(known)}"
            )
        if self.one_by_one:
            logger.warning(
                "%s scales int8 activations per batch, which would let a score depend on its batch "
                "mates: pairs run one by one; `rerank-adapters export --dtype int8` makes a file "
                "that need not",
                one_line(self._file.name),
            )


def _side_by_side(batch: TokenBatch, states: list[NDArray[Any]]) -> NDArray[Any]:
    """Each pair's hidden states as a row of (pairs, longest, width), the rest of it zeros."""
    longest = int(batch.lengths.max())
    hidden = np.zeros((len(states), longest, states[0].shape[1]), states[0].dtype)
    for row, each in zip(hidden, states, strict=True):
        row[: len(each)] = each
    return hidden


class _Parts:
    """The parts of a graph that is cut at *layers*, each opened when it is first run.

    Their weights are the whole graph's, in the one file beside it.
    """

    def __init__(self, file: Path, layers: tuple[int, ...], device: str, threads: int) -> None:
        self._whole = file
        self._files = [file.parent / part_name(file.name, at) for at in range(len(layers) + 1)]
        self._device = device
        self._threads = threads
        self._lock = threading.Lock()
        self._open: dict[Path, ort.InferenceSession] = {}
        missing = [path.name for path in self._files if layers and not path.is_file()]
        self.layers = () if missing else layers
        self.why_whole = ""
        if not self.layers:
            lacks = f"lacks {', '.join(missing)}" if missing else "is not cut for it"
            self.why_whole = f"the graph {file.name} {lacks}"

    def between(self, after: int, layer: int | None) -> list[ort.InferenceSession]:
        """The parts that run the layers behind *after*, 0 for all, up to *layer*, None for all."""
        begin = self.layers.index(after) + 1 if after else 0
        end = None if layer is None else self.layers.index(layer) + 1
        return [self._session_of(file) for file in self._files[begin:end]]

    def close(self) -> None:
        """Let go of them."""
        with self._lock:
            self._open.clear()

    def _session_of(self, file: Path) -> ort.InferenceSession:
        with self._lock:
            if file not in self._open:
                self._open[file] = _session(file, self._device, self._threads, whole=self._whole)
            return self._open[file]


class _Memory:
    """Gives back what a long document took: onnxruntime's arena keeps it until it is told.

    A forward of more padded tokens than *usual* grows the arena (None: it is left alone). It is
    told to shrink after that one, and after others until one ran alone, since what is in use
    stays. Forwards of the usual size cost nothing.
    """

    def __init__(self, usual: int | None) -> None:
        self._usual = usual
        self._lock = threading.Lock()
        self._running = 0
        self._grown = False
        self._shrink = ort.RunOptions()
        self._shrink.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    @contextmanager
    def around(self, tokens: int) -> Iterator[ort.RunOptions | None]:
        """The options of one forward over so many *tokens*, None for the usual ones."""
        with self._lock:
            self._grown |= self._usual is not None and tokens > self._usual
            shrinks = self._grown
            self._running += 1
        try:
            yield self._shrink if shrinks else None
        finally:
            with self._lock:
                self._running -= 1
                self._grown &= not (shrinks and self._running == 0)


def _shares(device: str, workers: int | None, threads: int | None) -> tuple[int, int]:
    """(forwards at once, threads of the pool they share, the caller's own counted in).

    Forwards side by side leave fewer CPUs idle than one forward on all of them: small operators are
    not worth sharing. A caller computes too, so the pool is smaller by the other callers.
    """
    cpus = available_cpus()
    if device.startswith("cuda"):
        return workers or 2, threads or cpus
    workers = workers or (1 if threads else min(cpus, max(2, cpus // 2), MOST_WORKERS))
    return workers, threads or max(1, cpus - workers + 1)


def _traits(device: str, workers: int, parts: _Parts) -> BackendTraits:
    """A CPU computes padding as slowly as text; on a GPU a forward costs something by itself."""
    traits = BackendTraits(
        workers=workers,
        batch_tokens=BATCH_TOKENS["cpu"],
        max_padding=0.03,
        free_padding=24,
        exit_layers=parts.layers,
        why_whole=parts.why_whole,
    )
    if device == "cpu":
        return traits
    return replace(
        traits,
        device_kind="cuda",
        batch_tokens=BATCH_TOKENS["cuda"],
        max_padding=0.10,
        free_padding=4096,
    )


def _device(device: str) -> str:
    providers = ort.get_available_providers()
    if device == "auto":
        return "cuda" if "CUDAExecutionProvider" in providers else "cpu"
    if device == "mps":
        raise BackendError('device "mps" needs backend "torch": got backend="onnx"')
    if device.startswith("cuda") and "CUDAExecutionProvider" not in providers:
        raise BackendError(
            f"device {device!r} was asked for and onnxruntime has no CUDAExecutionProvider "
            f"(it has {', '.join(providers)}): pip uninstall onnxruntime, then "
            "pip install onnxruntime-gpu"
        )
    return device


def _session(
    file: Path, device: str, threads: int, *, whole: Path | None = None
) -> ort.InferenceSession:
    """A session over *file*, whose weights may lie in the data of the *whole* graph it is of."""
    check_bounded(file)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Spinning threads burn the CPU that tokenisers and other workers need between batches.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Fusing DequantizeLinear into MatMul rounds the activations: scores off by 2e-2, unasked.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.log_severity_level = 3
    provider: str | tuple[str, dict[str, str]] = "CPUExecutionProvider"
    if device.startswith("cuda"):
        provider = ("CUDAExecutionProvider", {"device_id": device.partition(":")[2] or "0"})
    weights = _linked_weights(file, whole or file)  # alive until the session has copied them
    options.add_external_initializers_from_files_in_memory(
        list(weights), list(weights.values()), [len(data) for data in weights.values()]
    )
    try:
        session = ort.InferenceSession(str(file), options, providers=[provider])
    except Exception as error:  # onnxruntime raises a class per failure, with no common base
        raise ModelError(f"onnxruntime could not load {file}: {error}") from error
    if device.startswith("cuda") and session.get_providers()[0] != "CUDAExecutionProvider":
        raise BackendError(
            f"device {device!r} was asked for and onnxruntime fell back to "
            f"{session.get_providers()[0]}: install the CUDA and cuDNN onnxruntime-gpu asks for"
        )
    return session


def _linked_weights(file: Path, whole: Path) -> dict[str, NDArray[np.uint8]]:
    """External weights that onnxruntime would refuse, by the name the graph gives them.

    huggingface_hub's cache links each file to a blob elsewhere, and onnxruntime ≥ 1.24 reads
    external data only inside the folder of the real model file.
    """
    beside = [path for path in file.parent.iterdir() if path.is_file() and path != file]
    data = [
        path for path in beside if path.name.startswith(whole.name) or path.suffix == ".safetensors"
    ]
    if not file.is_symlink() and not any(path.is_symlink() for path in data):
        return {}
    return {path.name: np.memmap(path, dtype=np.uint8, mode="r") for path in data}


def _numpy_type(name: str) -> type[np.generic]:
    """Return the NumPy type of an input by onnxruntime's name, such as "tensor(int64)"."""
    types = {"int32": np.int32, "float16": np.float16, "float": np.float32, "bool": np.bool_}
    return types.get(name.removeprefix("tensor(").removesuffix(")"), np.int64)


def _logits_output(file: Path, session: ort.InferenceSession) -> str:
    """Return the name of the output that scores pairs; ModelError where it cannot be told."""
    shapes: dict[str, list[object]] = {
        node.name: node.shape or [] for node in session.get_outputs()
    }
    if "logits" in shapes or len(shapes) == 1:
        return "logits" if "logits" in shapes else next(iter(shapes))
    flat = [name for name, shape in shapes.items() if len(shape) in (1, 2)]
    if len(flat) == 1:
        return flat[0]
    raise ModelError(
        f"{file.name} has several outputs and none is called 'logits': {', '.join(shapes)}; name "
        "another file with file_name=, or export the model with rerank-adapters export"
    )


def _fixed_shape(
    file: Path, session: ort.InferenceSession, max_length: int | None
) -> tuple[int, int]:
    """Return (rows, columns) that the graph's input_ids is fixed to, 0 for each that is open.

    ModelError where pairs may be longer than it takes.
    """
    inputs = session.get_inputs()
    shape: list[object] = next((it.shape for it in inputs if it.name == "input_ids"), [])
    rows, columns = (it if isinstance(it, int) else 0 for it in [*shape, 0, 0][:2])
    if columns and max_length is not None and max_length > columns:
        raise ModelError(
            f"{file.name} takes exactly {columns} tokens, and pairs may have {max_length}: pass "
            f"max_length={columns}"
        )
    return rows, columns


def _dtype(file: Path) -> str:
    """What the graph computes in, told by its operators; halves by the hub's file names.

    "q4" is the hub's word for weights of few bits, multiplied in float.
    """
    if _mentions(file, (b"MatMulInteger", b"QLinearMatMul", b"QGemm")):
        return "int8"
    if _mentions(file, (b"MatMulNBits", b"MatMulBnb4")):
        return "q4"
    return "float16" if file.name in GRAPHS["float16"] else "float32"


def _mentions(file: Path, words: Sequence[bytes]) -> bool:
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as graph:
        return any(graph.find(word) >= 0 for word in words)
