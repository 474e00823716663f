"""The two passes from token ids to logits: packed (ours) and padded (sentence-transformers').

Packed: tokens end to end through the backbone, then one gathered row a pair through the head.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from ...tokens import TokenBatch
from .attention import Kernel, Packing
from .head import Head, backbone_of
from .loading import LoadedCrossEncoder
from .packing import POOLINGS, Packed, Pooling, first_row, last_row


def _as_given(hidden: Tensor, packed: Packed) -> Tensor:  # noqa: ARG001 a Pooling
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

    `constants` are what the checkpoint's own preprocessing makes in addition to ids and masks.
    """

    def __init__(
        self, loaded: LoadedCrossEncoder, *, pad_id: int, pad_side: Literal["left", "right"]
    ) -> None:
        self._loaded = loaded
        self._pad_id = pad_id
        self._pad_side = pad_side
        self._type_ids = takes_type_ids(loaded)
        self.constants: Mapping[str, Any] = {}
        self.one_by_one = False

    @property
    def details(self) -> dict[str, str]:
        """What `info` says of this pass."""
        return {"layout": "one pair a pass" if self.one_by_one else "padded"}

    def __call__(self, batch: TokenBatch) -> Tensor:
        """Return logits on the device, by one forward of sentence-transformers.

        Where `one_by_one` is set each pair has its own, so that none is padded.
        """
        if self.one_by_one:
            return torch.cat([self._forward(batch.take([row])) for row in range(len(batch))])
        return self._forward(batch)

    def _forward(self, batch: TokenBatch) -> Tensor:
        device = self._loaded.network.device
        names = ("input_ids", "attention_mask", "token_type_ids")
        arrays = batch.padded(self._pad_id, self._pad_side)
        features = {name: _ship(array, device) for name, array in zip(names, arrays, strict=True)}
        if not self._type_ids:
            del features["token_type_ids"]
        return self._loaded.forward({**self.constants, **features})


class PackedPass:
    """TokenBatch → logits of shape (pairs, labels) on the device, without padding.

    `pooling` says which row stands for a pair; `settle` finds it.
    """

    def __init__(self, loaded: LoadedCrossEncoder, *, kernel: Kernel) -> None:
        self.kernel = kernel
        self._backbone = backbone_of(loaded)
        self._head = Head(loaded)
        self._accepts = inspect.signature(self._backbone.forward).parameters.keys()
        self._type_ids = takes_type_ids(loaded)
        self._padding_idx = _offset_positions(self._backbone)
        self._unread = _unread_at_the_end(loaded)
        self._hook: RemovableHandle | None = None
        self.pooling: Pooling = first_row

    def __call__(self, batch: TokenBatch) -> Tensor:
        """Return logits on the device, without waiting for it."""
        packed = self.pack(batch)
        return self.head(self.hidden(packed), packed, self.pooling)

    def settle(self, batch: TokenBatch, oracle: Tensor) -> Tensor:
        """Find which row stands for a pair, and return the logits that are nearest *oracle*."""
        packed = self.pack(batch)
        hidden = self.hidden(packed)
        tried = {pooling: self.head(hidden, packed, pooling) for pooling in POOLINGS}
        gaps = {
            pooling: float((logits.float() - oracle).abs().max())
            for pooling, logits in tried.items()
        }
        self.pooling = min(POOLINGS, key=gaps.__getitem__)
        return tried[self.pooling]

    def trim(self) -> bool:
        """Let the last layer's feed-forward see [CLS] rows only, where the layer is BERT's kind.

        Such a layer is attention, then a row-by-row function of its output; nothing else is read.
        """
        layers = getattr(getattr(self._backbone, "encoder", None), "layer", None)
        if self.pooling is not first_row or not isinstance(layers, nn.ModuleList):
            return False
        last: Any = layers[-1]
        if not hasattr(last, "feed_forward_chunk") or not hasattr(last, "attention"):
            return False
        self._hook = last.attention.register_forward_hook(_first_rows_only, with_kwargs=True)
        self.pooling = _as_given
        return True

    def untrim(self) -> None:
        """Undo `trim`."""
        if self._hook is not None:
            self._hook.remove()
            self._hook, self.pooling = None, first_row

    @property
    def backbone(self) -> PreTrainedModel:
        """The network without its head."""
        return self._backbone

    @property
    def details(self) -> dict[str, str]:
        """What `info` says of this pass."""
        last_layer = "every row" if self._hook is None else "[CLS] rows"
        return {"layout": "packed", "attention": self.kernel.__name__, "last_layer": last_layer}

    def pack(self, batch: TokenBatch) -> Packed:
        """Copy a batch to the device in two transfers, from pinned memory and unawaited on CUDA."""
        device, lengths, offsets = self._backbone.device, batch.lengths, batch.offsets
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
        ends = offsets[1:] - 1
        if self._unread is not None:
            read = np.where(batch.input_ids == self._unread, 0, columns)
            ends = offsets[:-1] + np.maximum.reduceat(read, offsets[:-1])
        inputs = {"input_ids": tokens[None, 0], "position_ids": tokens[None, 1]}
        if self._type_ids:
            inputs["token_type_ids"] = tokens[None, 2]
        return Packed(inputs=inputs, packing=packing, sequence=tokens[3], last=_ship(ends, device))

    def hidden(self, packed: Packed, part: PreTrainedModel | None = None) -> Tensor:
        """Return hidden states of shape (tokens, width); *part* runs in the backbone's place."""
        options = {"use_cache": False} if "use_cache" in self._accepts else {}
        output = (part or self._backbone)(**packed.inputs, **options, packing=packed.packing)
        states: Tensor = output[0]
        return states[0]

    def head(self, hidden: Tensor, packed: Packed, pooling: Pooling) -> Tensor:
        """Return logits of shape (pairs, labels)."""
        ends = packed.last if pooling is last_row else packed.first
        logits: Tensor = self._head(
            pooling(hidden, packed), packed.inputs["input_ids"][0].index_select(0, ends)
        )
        return logits


def takes_type_ids(loaded: LoadedCrossEncoder) -> bool:
    """Whether the checkpoint's tokenizer makes token_type_ids and its network reads them."""
    made = "token_type_ids" in getattr(loaded.tokenizer, "model_input_names", ())
    return made and "token_type_ids" in inspect.signature(loaded.network.forward).parameters


def _offset_positions(backbone: PreTrainedModel) -> int | None:
    """Return padding_idx where positions are counted from padding_idx + 1, as RoBERTa does."""
    for module in backbone.modules():
        padding_idx = getattr(module, "padding_idx", None)
        learned = isinstance(getattr(module, "position_embeddings", None), nn.Embedding)
        if learned and isinstance(padding_idx, int):
            return padding_idx
    return None


def _unread_at_the_end(loaded: LoadedCrossEncoder) -> int | None:
    """Return the id that a decoder's own head of labels passes over to find its last token.

    transformers looks for the last token that is not the pad token, so a text that ends in it is
    read before it. Heads that sentence-transformers puts behind a network go by the mask.
    """
    pad = getattr(loaded.network.config.get_text_config(), "pad_token_id", None)
    return pad if isinstance(pad, int) and not loaded.tail else None


def _counted(batch: TokenBatch, padding_idx: int) -> NDArray[np.int64]:
    """Return positions as RoBERTa counts them: over the tokens of a sequence that do not pad."""
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
