"""What follows the backbone, run by its own code on one row a pair."""

from __future__ import annotations

import copy
import inspect
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import (
    BaseModelOutputWithPoolingAndCrossAttentions as BackboneOutput,
)

from .loading import LoadedCrossEncoder


class Head(nn.Module):
    """Everything after the backbone, run by its own code on rows already gathered.

    Each pair is handed over as a sequence of one token, so a head that reads the first, the last or
    the mean row reads the row given. The network is copied by reference, with the rows' stand-in
    where its backbone was; no weight is doubled.
    """

    def __init__(self, loaded: LoadedCrossEncoder) -> None:
        super().__init__()
        network, backbone = loaded.network, backbone_of(loaded)
        self._tail = nn.ModuleList(loaded.tail)
        self._output_name = loaded.output_name
        self._network: PreTrainedModel | None = None
        if backbone is not network:
            self._network = copy.copy(network)
            self._network._modules = dict(network._modules)
            setattr(self._network, network.base_model_prefix, _StandIn(backbone))

    def forward(self, rows: Tensor, ids: Tensor) -> Tensor:
        """Return logits of shape (pairs, labels) from rows (pairs, width) and their token ids."""
        ones = torch.ones_like(ids)[:, None]
        output = rows[:, None]
        if self._network is not None:
            output = self._network(
                input_ids=ids[:, None], inputs_embeds=output, attention_mask=ones
            ).logits
        features = {self._output_name: output, "attention_mask": ones}
        for module in self._tail:
            features = module(features)
        logits = features["scores"]
        return logits.reshape(len(rows), -1)


class _StandIn(nn.Module):
    """Answers for the backbone with the rows it is given as `inputs_embeds`."""

    def __init__(self, backbone: PreTrainedModel) -> None:
        super().__init__()
        self.config = backbone.config
        self._arguments = inspect.signature(backbone.forward)
        self.pooler: nn.Module | None = getattr(backbone, "pooler", None)

    def forward(self, *args: Any, **options: Any) -> BackboneOutput:
        given = self._arguments.bind_partial(*args, **options).arguments
        rows = given["inputs_embeds"]
        return BackboneOutput(
            last_hidden_state=rows,
            pooler_output=None if self.pooler is None else self.pooler(rows),
        )


def backbone_of(loaded: LoadedCrossEncoder) -> PreTrainedModel:
    """Return the network without its head: the network itself where it has none."""
    backbone: Any = loaded.network.base_model
    return cast(PreTrainedModel, backbone)
