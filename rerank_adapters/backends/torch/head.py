"""What follows the encoder, run by its own code on one row a pair."""

from __future__ import annotations

import copy
import inspect
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import (
    BaseModelOutputWithPoolingAndCrossAttentions as EncoderOutput,
)

from .loading import Checkpoint


class Head(nn.Module):
    """Everything after the encoder, run by its own code on rows already gathered.

    Each pair is handed over as a sequence of one token, so a head that reads the first, the last or
    the mean row reads the row given. The network is copied by reference, with the rows' stand-in
    where its encoder was; no weight is doubled.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        network, encoder = checkpoint.network, encoder_of(checkpoint)
        self._tail = nn.ModuleList(checkpoint.tail)
        self._output_name = checkpoint.output_name
        self._network: PreTrainedModel | None = None
        if encoder is not network:
            self._network = copy.copy(network)
            self._network._modules = dict(network._modules)
            setattr(self._network, network.base_model_prefix, _StandIn(encoder))

    def forward(self, rows: Tensor, ids: Tensor) -> Tensor:
        """Rows of shape (pairs, width) and their token ids → logits of shape (pairs, labels)."""
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
    """Answers for the encoder with the rows it is given as `inputs_embeds`."""

    def __init__(self, encoder: PreTrainedModel) -> None:
        super().__init__()
        self.config = encoder.config
        self._arguments = inspect.signature(encoder.forward)
        self.pooler: nn.Module | None = getattr(encoder, "pooler", None)

    def forward(self, *args: Any, **options: Any) -> EncoderOutput:
        given = self._arguments.bind_partial(*args, **options).arguments
        rows = given["inputs_embeds"]
        return EncoderOutput(
            last_hidden_state=rows,
            pooler_output=None if self.pooler is None else self.pooler(rows),
        )


def encoder_of(checkpoint: Checkpoint) -> PreTrainedModel:
    """The network without its head: the network itself where it has none."""
    encoder: Any = checkpoint.network.base_model
    return cast(PreTrainedModel, encoder)
