"""A network of BERT's or ModernBERT's kind in two parts, cut after a layer, for early exits."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...early_exit import CUT_BY_TORCH
from ...tokens import TokenBatch
from .packing import Packed
from .parity import Proven
from .passes import PackedPass


class Halves:
    """The two parts of a packed pass, cut after any layer but the last; no weight is doubled."""

    def __init__(self, whole: PackedPass) -> None:
        self._whole = whole
        self._backbone = whole.backbone
        self._halves: dict[tuple[int, bool], PreTrainedModel] = {}

    @property
    def layers(self) -> tuple[int, ...]:
        """Those after which it can be cut."""
        return tuple(range(1, len(_layers(self._backbone))))

    def start(self, batch: TokenBatch, layer: int) -> tuple[Tensor, list[Tensor]]:
        """Pooled states, float32 (pairs, 2 · width), and the hidden states of each pair."""
        packed = self._whole.pack(batch)
        half = self._half(layer, resumes=False)
        hidden = self._whole.hidden(packed, half)
        lengths = torch.from_numpy(batch.lengths).to(hidden.device)
        mean = torch.segment_reduce(hidden.float(), "mean", lengths=lengths)
        first = hidden.index_select(0, packed.first).float()
        states = [part.clone() for part in torch.split(hidden, batch.lengths.tolist())]
        return torch.cat((first, mean), dim=1), states

    def resume(self, batch: TokenBatch, states: list[Tensor], layer: int) -> Tensor:
        """Logits on the device, from the hidden states after *layer*."""
        packed = self._whole.pack(batch)
        inputs = {name: it for name, it in packed.inputs.items() if name != "input_ids"}
        given = Packed(
            inputs={**inputs, "inputs_embeds": torch.cat(states)[None]},
            packing=packed.packing,
            sequence=packed.sequence,
            last=packed.last,
        )
        hidden = self._whole.hidden(given, self._half(layer, resumes=True))
        return self._whole.head(hidden, packed, self._whole.pooling)

    def _half(self, layer: int, *, resumes: bool) -> PreTrainedModel:
        key = layer, resumes
        if key not in self._halves:
            self._halves[key] = _half(self._backbone, layer, resumes=resumes)
        return self._halves[key]


def halves_of(proven: Proven, network: PreTrainedModel) -> tuple[Halves | None, str]:
    """The halves of the pass that is *proven*, of *network*; or None, and why there are none."""
    kind = network.config.model_type
    if kind not in CUT_BY_TORCH:
        return None, f"torch cuts networks of {', '.join(CUT_BY_TORCH)}, and this is {kind}"
    if proven.why_texts or not isinstance(proven.run, PackedPass):
        return None, f"torch cuts its padding-free pass, which does not run for this {kind}"
    return Halves(proven.run), ""


def _layers(backbone: Any) -> nn.ModuleList:
    layers: nn.ModuleList = backbone.encoder.layer if _nested(backbone) else backbone.layers
    return layers


def _nested(backbone: nn.Module) -> bool:
    """Whether the layers lie in an encoder, as BERT's do; ModernBERT has them itself."""
    return "encoder" in backbone._modules


def _half(backbone: PreTrainedModel, layer: int, *, resumes: bool) -> PreTrainedModel:
    """A copy by reference with the layers up to *layer*, or those after it."""
    half: PreTrainedModel = _copied(backbone)
    layers = _layers(backbone)
    layers = layers[layer:] if resumes else layers[:layer]
    if _nested(backbone):
        encoder = _copied(backbone.encoder)
        encoder._modules["layer"] = layers
        half._modules |= {"encoder": encoder, "pooler": None}
    else:
        half._modules["layers"] = layers
    if resumes:
        half._modules["embeddings"] = _Given()
    elif "final_norm" in half._modules:  # ModernBERT's, which follows the last layer alone
        half._modules["final_norm"] = nn.Identity()
    return half


def _copied(module: Any) -> Any:
    made = copy.copy(module)
    made._modules = dict(module._modules)
    return made


class _Given(nn.Module):
    """Stands where embeddings were: the states are here already."""

    def forward(self, *, inputs_embeds: Tensor, **_: object) -> Tensor:
        return inputs_embeds
