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

from ...clean import one_line
from ...errors import BackendError, ClosedError, ConfigError, ModelError
from ...tokens import PairText, TokenBatch
from .loading import LoadedCrossEncoder, resolve_device, resolve_dtype
from .parity import Encode, NotFiniteError, prove, ragged
from .parts import parts_of
from .passes import PackedPass, PaddedPass
from .traits import traits_of

logger = logging.getLogger(__name__)


class TorchBackend:
    """A checkpoint on one device; `logits` may be called from several threads at once.

    The packed pass (ours, no padding) runs where it agrees at load with that of
    sentence-transformers, else padded ids run through its `forward`. Where the caller's ids differ
    from those of the checkpoint's own tokenizer, the backend wants texts (see `traits`).
    """

    def __init__(
        self,
        loaded: LoadedCrossEncoder,
        *,
        pad_id: int,
        pad_side: Literal["left", "right"],
        prompt: str | None = None,
        encode: Encode | None = None,
        tokenizer_json: Callable[[], str] | None = None,
    ) -> None:
        self.device = loaded.network.device
        self.dtype = loaded.network.dtype
        self._network = type(loaded.network).__name__
        self._prompt = loaded.default_prompt if prompt is None else prompt
        self._loaded: LoadedCrossEncoder | None = loaded
        loaded.pad_with(pad_id, pad_side)
        padded = PaddedPass(loaded, pad_id=pad_id, pad_side=pad_side)
        with torch.inference_mode():
            proven = prove(
                loaded,
                padded=padded,
                prompt=self._prompt,
                encode=encode,
                tokenizer_json=tokenizer_json,
            )
        self._run: Callable[[TokenBatch], Tensor] | None = proven.run
        self._labels, self._details = proven.labels, proven.details
        self._streams = threading.local()
        self._parts, why_whole = parts_of(proven, loaded.network)
        self.traits = traits_of(
            self.device.type,
            packed=isinstance(proven.run, PackedPass),
            wants="texts" if proven.why_texts else "tokens",
            parts=self._parts,
            why_whole=why_whole,
        )
        self.fallback = "; ".join(filter(None, (proven.why_padded, proven.why_texts)))
        if self.fallback:
            reason = one_line(self.fallback)
            logger.warning("%s runs slower than it could: %s", self._network, reason)

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
        answers: tuple[int, int | None] | None = None,
        framed: bool = False,
        tokenizer_json: Callable[[], str] | None = None,
        cache_folder: str | None = None,
    ) -> TorchBackend:
        """Load a checkpoint, and try its passes: the fastest that agrees runs.

        max_length, prompt: matter where the checkpoint's own tokenizer runs.
        encode: how the caller writes pairs, without options that cut them; where it differs from
            the checkpoint's own tokenizer, the backend wants texts.
        answers: token ids of a language model's yes and no, in place of the files'.
        framed: pairs stand in a frame that the files do not say, so *encode* writes them.
        tokenizer_json: the checkpoint's tokenizer.json as the caller reads it, which transformers
            may build anew: it runs in place of that where the two write other ids.
        cache_folder: where code of other repositories lies, None for huggingface_hub's own.
        dtype: "auto" is float16 on CUDA, bfloat16 where float16 overflows, and float32 elsewhere,
            whatever the checkpoint is stored in.

        Raises ConfigError (an argument), BackendError (device, dtype), ModelError (the checkpoint).
        """
        _check_threads(num_threads)
        where = resolve_device(device)
        load = partial(
            LoadedCrossEncoder.load,
            Path(folder),
            device=where,
            max_length=max_length,
            trust_remote_code=trust_remote_code,
            answers=answers,
            cache_folder=cache_folder,
            encode=partial(_padded, encode, pad_id, pad_side, max_length) if framed else None,
        )
        make = partial(
            cls,
            pad_id=pad_id,
            pad_side=pad_side,
            prompt=prompt,
            encode=encode,
            tokenizer_json=tokenizer_json,
        )
        return _first_finite(lambda kind: make(load(dtype=kind)), _dtypes(dtype, where))

    def logits(self, batch: TokenBatch) -> NDArray[np.float32]:
        """Return raw outputs, float32 of shape (pairs, labels), in the batch's order.

        Where the backend wants texts, `batch.texts` is read and the ids are not. Raises
        ClosedError, BackendError where the pass fails, torch.OutOfMemoryError as it comes.
        """
        loaded, run = _live(self._loaded), self._run
        if len(batch) == 0:
            return np.zeros((0, self._labels), np.float32)
        if run is None or self.traits.wants == "texts":
            return self._fetch(self._over_texts(loaded, batch))
        if batch.lengths.min() < 1:
            raise BackendError("every pair must have at least 1 token: got 0")
        return self._fetch(lambda: run(batch))

    def start(
        self, batch: TokenBatch, layer: int, states: list[Tensor] | None = None, *, after: int = 0
    ) -> tuple[NDArray[np.float32], list[Tensor]]:
        """Run the layers up to *layer*, behind *after* on *states*: pooled states, and each pair's.

        Pooled are (pairs, 3 · width).
        """
        _live(self._loaded)
        parts, made = self._parts, list[Tensor]()

        def run() -> Tensor:
            if parts is None:
                raise BackendError(self.traits.why_whole)
            pooled, each = parts.start(batch, layer, states, after)
            made.extend(each)
            return pooled

        return self._fetch(run), made

    def resume(self, batch: TokenBatch, states: list[Tensor], layer: int) -> NDArray[np.float32]:
        """Run the layers after *layer* on *states* of `start`: logits, as `logits` gives them."""
        _live(self._loaded)
        parts = self._parts
        if parts is None:
            raise BackendError(self.traits.why_whole)
        return self._fetch(lambda: parts.resume(batch, states, layer))

    def info(self) -> dict[str, str | int]:
        """Return the device, the dtype, and which layout runs and why."""
        facts: dict[str, str | int] = {
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
        """Free the network once running passes end; sentence-transformers holds it in a cycle."""
        self._loaded = self._run = self._parts = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _over_texts(self, loaded: LoadedCrossEncoder, batch: TokenBatch) -> Callable[[], Tensor]:
        """Return what scores the batch's texts: one pass for each prompt and length among them."""
        if len(batch.texts) != len(batch):
            raise BackendError(
                f"{self._network} is scored from texts ({self.fallback}): the batch has "
                f"{len(batch.texts)} for {len(batch)} pairs"
            )
        run, groups = self._run, _alike(batch.texts)
        features = [
            loaded.preprocess(
                [batch.texts[row][:2] for row in rows],
                self._prompt if prompt is None else prompt,
                max_length,
            )
            for (prompt, max_length), rows in groups.items()
        ]
        order = torch.from_numpy(np.argsort(np.concatenate(list(groups.values()))))

        def run_all() -> Tensor:
            parts = [run(ragged(each)) if run else loaded.forward(each) for each in features]
            return torch.cat(parts)[order.to(self.device)]

        return run_all

    def _fetch(self, run: Callable[[], Tensor]) -> NDArray[np.float32]:
        """Run, and wait for the device once: when the logits are copied back."""
        try:
            with torch.inference_mode(), self._stream():
                logits: NDArray[np.float32] = run().float().cpu().numpy()
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, IndexError) as error:
            raise BackendError(f"the forward pass failed on {self.device}: {error}") from error
        return logits

    def _stream(self) -> AbstractContextManager[object]:
        """Return this thread's own stream: on one for all, copies wait for the others' kernels."""
        if self.device.type != "cuda":
            return nullcontext()
        if not hasattr(self._streams, "own"):
            self._streams.own = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        return torch.cuda.stream(self._streams.own)


def _padded(
    encode: Encode | None,
    pad_id: int,
    pad_side: Literal["left", "right"],
    max_length: int,
    pairs: Sequence[tuple[str, str]],
) -> dict[str, Tensor]:
    """Return what sentence-transformers' forward takes, of pairs that *encode* writes."""
    batch = encode(pairs) if encode is not None else TokenBatch.join([])
    keep = np.concatenate([np.arange(length) < max_length for length in batch.lengths])
    batch = TokenBatch(
        batch.input_ids[keep], batch.type_ids[keep], np.minimum(batch.lengths, max_length)
    )
    names = ("input_ids", "attention_mask", "token_type_ids")
    arrays = batch.padded(pad_id, pad_side)
    return {name: torch.from_numpy(array) for name, array in zip(names[:2], arrays, strict=False)}


def _live(loaded: LoadedCrossEncoder | None) -> LoadedCrossEncoder:
    if loaded is None:
        raise ClosedError("the torch backend is closed")
    return loaded


def _alike(texts: Sequence[PairText]) -> dict[tuple[str | None, int], list[int]]:
    """Return the rows of each (prompt, max_length) among *texts*."""
    groups: dict[tuple[str | None, int], list[int]] = {}
    for row, text in enumerate(texts):
        groups.setdefault((text.prompt, text.max_length), []).append(row)
    return groups


def _check_threads(num_threads: int | None) -> None:
    if num_threads is not None:
        raise ConfigError(
            "num_threads must be None with the torch backend, whose pool belongs to the whole "
            f"process: got {num_threads}; call torch.set_num_threads yourself"
        )


def _first_finite(
    make: Callable[[torch.dtype], TorchBackend], dtypes: Sequence[torch.dtype]
) -> TorchBackend:
    for kind in dtypes:
        try:
            return make(kind)
        except NotFiniteError as error:
            failure = error.with_traceback(None)  # which would hold the network just dropped
    if kind is torch.float16:
        raise failure
    raise ModelError(  # no dtype reaches further
        f"the checkpoint's weights must give finite logits: they do not in {kind}; get them again"
    ) from failure


def _dtypes(name: str, device: torch.device) -> tuple[torch.dtype, ...]:
    """Return the dtypes to try in turn: "auto" goes on where one overflows."""
    first = resolve_dtype(name, device)
    if name != "auto" or first is torch.float32:
        return (first,)
    wide = torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float32
    return (first, wide)
