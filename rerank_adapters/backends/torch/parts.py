"""A network of BERT's or ModernBERT's kind in parts, cut after layers, for early exits."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...early_exit import CUT_BY_TORCH, query_rows
from ...tokens import TokenBatch
from .packing import Packed
from .parity import Proven
from .passes import PackedPass


class Parts:
    """The parts of a packed pass, cut after any layers but the last; no weight is doubled."""

    def __init__(self, whole: PackedPass) -> None:
        self._whole = whole
        self._backbone = whole.backbone
        self._parts: dict[tuple[int, int | None], PreTrainedModel] = {}

    @property
    def layers(self) -> tuple[int, ...]:
        """Those after which it can be cut."""
        return tuple(range(1, len(_layers(self._backbone))))

    def start(
        self, batch: TokenBatch, layer: int, states: list[Tensor] | None, after: int
    ) -> tuple[Tensor, list[Tensor]]:
        """Pooled states, float32 (pairs, 3 · width), and the hidden states of each pair."""
        packed = self._whole.pack(batch)
        given = packed if states is None else _given(packed, states)
        hidden = self._whole.hidden(given, self._part(after, layer))
        first = hidden.index_select(0, packed.first).float()
        mean = _means(hidden, batch.lengths)
        rows = [
            np.arange(start, stop)[query_rows(batch.input_ids[start:stop])]
            for start, stop in itertools.pairwise(batch.offsets.tolist())
        ]
        query = hidden.index_select(0, torch.from_numpy(np.concatenate(rows)).to(hidden.device))
        asked = _means(query, np.array([len(each) for each in rows]))
        each = [part.clone() for part in torch.split(hidden, batch.lengths.tolist())]
        return torch.cat((first, mean, asked), dim=1), each

    def resume(self, batch: TokenBatch, states: list[Tensor], layer: int) -> Tensor:
        """Logits on the device, from the hidden states after *layer*."""
        packed = self._whole.pack(batch)
        hidden = self._whole.hidden(_given(packed, states), self._part(layer, None))
        return self._whole.head(hidden, packed, self._whole.pooling)

    def _part(self, after: int, layer: int | None) -> PreTrainedModel:
        key = after, layer
        if key not in self._parts:
            self._parts[key] = _part(self._backbone, after, layer)
        return self._parts[key]


def _means(states: Tensor, lengths: NDArray[np.int64]) -> Tensor:
    """float32 (pairs, width): the mean of each pair's rows, of which there are *lengths*."""
    counts = torch.from_numpy(lengths).to(states.device)
    return torch.segment_reduce(states.float(), "mean", lengths=counts)


def _given(packed: Packed, states: list[Tensor]) -> Packed:
    """*packed*, with what earlier layers made of its tokens in their place."""
    inputs = {name: it for name, it in packed.inputs.items() if name != "input_ids"}
    return Packed(
        inputs={**inputs, "inputs_embeds": torch.cat(states)[None]},
        packing=packed.packing,
        sequence=packed.sequence,
        last=packed.last,
    )


def parts_of(proven: Proven, network: PreTrainedModel) -> tuple[Parts | None, str]:
    """The parts of the pass that is *proven*, of *network*; or None, and why there are none."""
    kind = network.config.model_type
    if kind not in CUT_BY_TORCH:
        return None, f"torch cuts networks of {', '.join(CUT_BY_TORCH)}, and this is {kind}"
    if proven.why_texts or not isinstance(proven.run, PackedPass):
        return None, f"torch cuts its padding-free pass, which does not run for this {kind}"
    return Parts(proven.run), ""


def _layers(backbone: Any) -> nn.ModuleList:
    layers: nn.ModuleList = backbone.encoder.layer if _nested(backbone) else backbone.layers
    return layers


def _nested(backbone: nn.Module) -> bool:
    """Whether the layers lie in an encoder, as BERT's do; ModernBERT has them itself."""
    return "encoder" in backbone._modules


def _part(backbone: PreTrainedModel, after: int, layer: int | None) -> PreTrainedModel:
    """A copy by reference with the layers behind *after* up to *layer*, None: to the last."""
    part: PreTrainedModel = _copied(backbone)
    layers = _layers(backbone)[after:layer]
    if _nested(backbone):
        encoder = _copied(backbone.encoder)
        encoder._modules["layer"] = layers
        part._modules |= {"encoder": encoder, "pooler": None}
    else:
        part._modules["layers"] = layers
    if after:
        part._modules["embeddings"] = _Given()
    if layer is not None and "final_norm" in part._modules:
        part._modules["final_norm"] = nn.Identity()  # ModernBERT's follows the last layer alone
    return part


def _copied(module: Any) -> Any:
    made = copy.copy(module)
    made._modules = dict(module._modules)
    return made


class _Given(nn.Module):
    """Stands where embeddings were: the states are here already."""

    def forward(self, *, inputs_embeds: Tensor, **_: object) -> Tensor:
        return inputs_embeds
