"""The two passes from token ids to logits: packed (ours) and padded (sentence-transformers').

Packed: tokens end to end through the encoder, then one gathered row a pair through the head.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from ...values import TokenBatch
from .attention import Kernel, Packing
from .head import Head, encoder_of
from .loading import Checkpoint


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """One packed batch on the device; each token's sequence and each sequence's ends are known."""

    inputs: Mapping[str, Tensor]
    packing: Packing
    sequence: Tensor

    @property
    def first(self) -> Tensor:
        """Where each sequence starts, shape (pairs,)."""
        return self.packing.offsets[:-1]

    @property
    def last(self) -> Tensor:
        """Where each sequence ends, its last token, shape (pairs,)."""
        return self.packing.offsets[1:] - 1


Pool = Callable[[Tensor, Packed], Tensor]
"""Hidden states of shape (tokens, width) → one row a pair, shape (pairs, width)."""


def first_row(hidden: Tensor, packed: Packed) -> Tensor:
    """The [CLS] row."""
    return hidden.index_select(0, packed.first)


def last_row(hidden: Tensor, packed: Packed) -> Tensor:
    """The row a causal model predicts from."""
    return hidden.index_select(0, packed.last)


def mean_row(hidden: Tensor, packed: Packed) -> Tensor:
    """The mean over a pair's tokens, summed in float32."""
    sums = hidden.new_zeros(len(packed.first), hidden.shape[1], dtype=torch.float32)
    sums.index_add_(0, packed.sequence, hidden.float())
    return (sums / packed.packing.offsets.diff()[:, None]).to(hidden.dtype)


POOLS: tuple[Pool, ...] = (first_row, last_row, mean_row)


def _as_given(hidden: Tensor, packed: Packed) -> Tensor:  # noqa: ARG001 a Pool
    return hidden


def _first_rows_only(
    module: nn.Module,  # noqa: ARG001 a forward hook
    inputs: tuple[Any, ...],  # noqa: ARG001
    options: dict[str, Any],
    output: tuple[Tensor, ...],
) -> tuple[Tensor, ...]:
    packing = options.get("packing")
    if packing is None:  # not the packed pass
        return output
    return (output[0].index_select(1, packing.offsets[:-1]), *output[1:])


class PaddedPass:
    """TokenBatch → logits of shape (pairs, labels), by padding and sentence-transformers' forward.

    `constants` are the features beside ids and masks that the checkpoint's own preprocessing makes.
    """

    def __init__(
        self, checkpoint: Checkpoint, *, pad_id: int, pad_side: Literal["left", "right"]
    ) -> None:
        self._checkpoint = checkpoint
        self._pad_id = pad_id
        self._pad_side = pad_side
        self._type_ids = takes_type_ids(checkpoint)
        self.constants: Mapping[str, Any] = {}

    @property
    def details(self) -> dict[str, str]:
        """What `info` tells of this pass."""
        return {"pass": "padded"}

    def __call__(self, batch: TokenBatch) -> Tensor:
        """Logits on the device; one forward of sentence-transformers."""
        device = self._checkpoint.network.device
        names = ("input_ids", "attention_mask", "token_type_ids")
        arrays = batch.padded(self._pad_id, self._pad_side)
        features = {name: _ship(array, device) for name, array in zip(names, arrays, strict=True)}
        if not self._type_ids:
            del features["token_type_ids"]
        return self._checkpoint.forward({**self.constants, **features})


class PackedPass:
    """TokenBatch → logits of shape (pairs, labels) on the device, without padding.

    `pool` says which row stands for a pair; the load-time proof finds it.
    """

    def __init__(self, checkpoint: Checkpoint, *, kernel: Kernel) -> None:
        self.kernel = kernel
        self._encoder = encoder_of(checkpoint)
        self._head = Head(checkpoint)
        self._accepts = inspect.signature(self._encoder.forward).parameters.keys()
        self._type_ids = takes_type_ids(checkpoint)
        self._padding_idx = _offset_positions(self._encoder)
        self._hook: RemovableHandle | None = None
        self.pool: Pool = first_row

    def __call__(self, batch: TokenBatch) -> Tensor:
        """Logits on the device; nothing waits for it."""
        packed = self.pack(batch)
        return self.head(self.encode(packed), packed, self.pool)

    def settle(self, batch: TokenBatch, expected: Tensor) -> Tensor:
        """Finds which row stands for a pair: logits nearest *expected*, which are returned."""
        packed = self.pack(batch)
        hidden = self.encode(packed)
        tried = {pool: self.head(hidden, packed, pool) for pool in POOLS}
        self.pool = min(POOLS, key=lambda pool: float((tried[pool].float() - expected).abs().max()))
        return tried[self.pool]

    def trim(self) -> bool:
        """Lets the last layer's feed-forward see [CLS] rows only, where the layer is BERT's kind.

        Such a layer is attention, then a row-by-row function of its output; nothing else is read.
        """
        layers = getattr(getattr(self._encoder, "encoder", None), "layer", None)
        if self.pool is not first_row or not isinstance(layers, nn.ModuleList):
            return False
        last: Any = layers[-1]
        if not hasattr(last, "feed_forward_chunk") or not hasattr(last, "attention"):
            return False
        self._hook = last.attention.register_forward_hook(_first_rows_only, with_kwargs=True)
        self.pool = _as_given
        return True

    def untrim(self) -> None:
        """Undoes `trim`."""
        if self._hook is not None:
            self._hook.remove()
            self._hook, self.pool = None, first_row

    @property
    def details(self) -> dict[str, str]:
        """What `info` tells of this pass."""
        last_layer = "every row" if self._hook is None else "[CLS] rows"
        return {"pass": "packed", "attention": self.kernel.__name__, "last_layer": last_layer}

    def pack(self, batch: TokenBatch) -> Packed:
        """Two copies to the device, from pinned memory where it is CUDA; nothing waits for them."""
        device, lengths, offsets = self._encoder.device, batch.lengths, batch.offsets
        sequence = np.repeat(np.arange(len(lengths)), lengths)
        columns = np.arange(len(sequence)) - offsets[sequence]
        positions = columns if self._padding_idx is None else _counted(batch, self._padding_idx)
        cells = sequence * lengths.max() + columns
        tokens = _ship(
            np.stack([batch.input_ids, positions, batch.type_ids, sequence, cells]), device
        )
        packing = Packing(
            kernel=self.kernel,
            lengths=lengths,
            offsets=_ship(offsets.astype(np.int32), device),
            cells=tokens[4],
        )
        inputs = {"input_ids": tokens[None, 0], "position_ids": tokens[None, 1]}
        if self._type_ids:
            inputs["token_type_ids"] = tokens[None, 2]
        return Packed(inputs=inputs, packing=packing, sequence=tokens[3])

    def encode(self, packed: Packed) -> Tensor:
        """Hidden states of shape (tokens, width)."""
        options = {"use_cache": False} if "use_cache" in self._accepts else {}
        output = self._encoder(**packed.inputs, **options, packing=packed.packing)
        hidden: Tensor = output[0]
        return hidden[0]

    def head(self, hidden: Tensor, packed: Packed, pool: Pool) -> Tensor:
        """Logits of shape (pairs, labels)."""
        ends = packed.last if pool is last_row else packed.first
        logits: Tensor = self._head(
            pool(hidden, packed), packed.inputs["input_ids"][0].index_select(0, ends)
        )
        return logits


def takes_type_ids(checkpoint: Checkpoint) -> bool:
    """Whether the checkpoint's tokenizer makes token_type_ids and its network reads them."""
    made = "token_type_ids" in getattr(checkpoint.tokenizer, "model_input_names", ())
    return made and "token_type_ids" in inspect.signature(checkpoint.network.forward).parameters


def _offset_positions(encoder: PreTrainedModel) -> int | None:
    """RoBERTa's kin count positions from padding_idx + 1: their padding_idx, or None."""
    for module in encoder.modules():
        padding_idx = getattr(module, "padding_idx", None)
        learned = isinstance(getattr(module, "position_embeddings", None), nn.Embedding)
        if learned and isinstance(padding_idx, int):
            return padding_idx
    return None


def _counted(batch: TokenBatch, padding_idx: int) -> NDArray[np.int64]:
    """Positions as RoBERTa counts them: over the tokens that are not padding, within a sequence."""
    real = (batch.input_ids != padding_idx).astype(np.int64)
    counts = np.cumsum(real)
    before = np.concatenate(([0], counts))[batch.offsets[:-1]]
    positions: NDArray[np.int64] = (counts - np.repeat(before, batch.lengths)) * real + padding_idx
    return positions


def _ship(array: NDArray[Any], device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
