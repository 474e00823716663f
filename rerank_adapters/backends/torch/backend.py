"""TorchBackend: token ids → logits, by the fastest pass that is proven equal."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import sentence_transformers
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor

from ...errors import BackendError, ClosedError, ConfigError
from ...values import TokenBatch
from .loading import Checkpoint, resolve_device, resolve_dtype
from .passes import PaddedPass
from .proof import Encode, NotFiniteError, prove, ragged

logger = logging.getLogger(__name__)


class TorchBackend:
    """A checkpoint on one device; `logits` may be called from several threads at once.

    The packed pass (ours, no padding) runs where the load-time proof finds it equal to that of
    sentence-transformers, else padded ids run through its `forward`. Where the caller's ids would
    not do, `needs_texts` is true and only `logits_from_pairs` scores.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        pad_id: int,
        pad_side: Literal["left", "right"],
        prompt: str | None = None,
        encode: Encode | None = None,
    ) -> None:
        self.device = checkpoint.network.device
        self.dtype = checkpoint.network.dtype
        self._network = type(checkpoint.network).__name__
        self._prompt = checkpoint.default_prompt if prompt is None else prompt
        self._checkpoint: Checkpoint | None = checkpoint
        padded = PaddedPass(checkpoint, pad_id=pad_id, pad_side=pad_side)
        with torch.inference_mode():
            proven = prove(checkpoint, padded=padded, prompt=self._prompt, encode=encode)
        self._run: Callable[[TokenBatch], Tensor] | None = proven.run
        self._labels, self._details = proven.labels, proven.details
        # One prepares and copies while the other computes; CPU threads share one pool anyway.
        self.workers = 2 if self.device.type == "cuda" else 1
        self._streams = threading.local()
        self.needs_texts = bool(proven.own_texts)
        self.fallback = "; ".join(filter(None, (proven.unpacked, proven.own_texts)))
        if self.fallback:
            logger.warning("%s takes a slower way: %s", self._network, self.fallback)

    @classmethod
    def from_folder(
        cls,
        folder: Path | str,
        *,
        device: str = "auto",
        dtype: str = "auto",
        pad_id: int,
        pad_side: Literal["left", "right"] = "right",
        max_length: int,
        trust_remote_code: bool = False,
        num_threads: int | None = None,
        prompt: str | None = None,
        encode: Encode | None = None,
    ) -> TorchBackend:
        """Loads a checkpoint and proves its fastest pass.

        max_length, prompt: matter where the checkpoint's own tokenizer runs.
        encode: how the caller writes pairs, without options that cut them; where it differs from
            the checkpoint's own tokenizer, texts are asked for (`needs_texts`).
        dtype: "auto" is float16 on CUDA, bfloat16 where float16 overflows, and float32 elsewhere,
            whatever the checkpoint is stored in.

        Raises ConfigError (an argument), BackendError (device, dtype), ModelError (the checkpoint).
        """
        if num_threads is not None:
            raise ConfigError(
                "num_threads must be None with the torch backend, whose pool belongs to the whole "
                f"process: got {num_threads}; call torch.set_num_threads yourself"
            )
        place = resolve_device(device)
        load = partial(
            Checkpoint.load,
            Path(folder),
            device=place,
            max_length=max_length,
            trust_remote_code=trust_remote_code,
        )
        make = partial(cls, pad_id=pad_id, pad_side=pad_side, prompt=prompt, encode=encode)
        for kind in _dtypes(dtype, place):
            try:
                return make(load(dtype=kind))
            except NotFiniteError as error:
                failure = error.with_traceback(None)  # which would hold the network just dropped
        raise failure

    def logits(self, batch: TokenBatch) -> NDArray[np.float32]:
        """Raw outputs, float32 of shape (pairs, labels), in the batch's order.

        Raises ClosedError, BackendError where the pass fails, torch.OutOfMemoryError as it comes.
        """
        _live(self._checkpoint)
        run = self._run
        if run is None or self.needs_texts:
            raise BackendError(f"{self._network} is scored by logits_from_pairs: {self.fallback}")
        if len(batch) == 0:
            return np.zeros((0, self._labels), np.float32)
        if batch.lengths.min() < 1:
            raise BackendError("every pair must have at least 1 token: got 0")
        return self._fetch(lambda: run(batch))

    def logits_from_pairs(self, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float32]:
        """As `logits`, from texts by the checkpoint's own tokenizer, cut longest first."""
        checkpoint, run = _live(self._checkpoint), self._run
        if len(pairs) == 0:
            return np.zeros((0, self._labels), np.float32)
        features = checkpoint.preprocess(pairs, self._prompt)
        return self._fetch(lambda: run(ragged(features)) if run else checkpoint.forward(features))

    def info(self) -> dict[str, str]:
        """The device, the dtype, and which pass runs and why."""
        facts = {
            "backend": "torch",
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "network": self._network,
            **self._details,
            "runtime": f"torch {torch.__version__}, transformers {transformers.__version__}, "
            f"sentence-transformers {sentence_transformers.__version__}",
        }
        if self.fallback:
            facts["fallback"] = self.fallback
        return facts

    def close(self) -> None:
        """Frees the network once running passes end; sentence-transformers holds it in a cycle."""
        self._checkpoint = self._run = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _fetch(self, run: Callable[[], Tensor]) -> NDArray[np.float32]:
        """Runs, then waits for the device, this once."""
        try:
            with torch.inference_mode(), self._stream():
                logits: NDArray[np.float32] = run().float().cpu().numpy()
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, IndexError) as error:
            raise BackendError(f"the forward pass failed on {self.device}: {error}") from error
        return logits

    def _stream(self) -> AbstractContextManager[object]:
        """A stream for each thread: on one for all, a copy would wait for the others' kernels."""
        if self.device.type != "cuda":
            return nullcontext()
        if not hasattr(self._streams, "own"):
            self._streams.own = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        return torch.cuda.stream(self._streams.own)


def _live(checkpoint: Checkpoint | None) -> Checkpoint:
    if checkpoint is None:
        raise ClosedError("the torch backend is closed")
    return checkpoint


def _dtypes(name: str, device: torch.device) -> tuple[torch.dtype, ...]:
    """The dtypes to try in turn: "auto" goes on where one overflows."""
    first = resolve_dtype(name, device)
    if name != "auto" or first is torch.float32:
        return (first,)
    wide = torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float32
    return (first, wide)
