"""The checkpoint as one torch module: token ids in, raw logits out."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import Any, cast

import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.cross_encoder.modules import LogitScore
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..backends.torch.whole import load_whole
from ..checkpoints import Checkpoint

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class Network(nn.Module):
    """A classifier, or any chain of sentence-transformers modules that ends in "scores".

    `forward` takes int64 tensors of shape (batch, sequence), named by `inputs`, and returns float32
    logits of shape (batch, labels), without activation.
    """

    def __init__(self, oracle: CrossEncoder, inputs: tuple[str, ...]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(oracle)
        self.inputs = inputs

    def forward(self, *tensors: Tensor) -> Tensor:
        """Return raw logits, float32 of shape (batch, labels)."""
        features = dict(zip(self.inputs, tensors, strict=True))
        for stage in self.stages:
            features = stage(features)
        scores: Tensor = features["scores"]
        return scores

    @property
    def model(self) -> PreTrainedModel:
        """The transformer inside."""
        model: PreTrainedModel = self.stages[0].model  # type: ignore[assignment]  # torch says Tensor
        return model


class CausalNetwork(Network):
    """A language model whose score is the lead of the logit of "yes" over that of "no".

    The output matrix keeps those two rows alone. Padding on the left, as these models are fed, is
    moved to the right first: there it stands behind all that a real token sees, and a score stays
    the same to the bit however much of it there is.
    """

    def __init__(self, oracle: CrossEncoder) -> None:
        super().__init__(oracle, INPUTS[:2])
        head: Any = oracle[1]  # a LogitScore: `build` looked
        self.stages = nn.ModuleList([oracle[0]])
        tokens = [token for token in (head.true_token_id, head.false_token_id) if token is not None]
        _keep_rows(self.model, tokens)

    def forward(self, *tensors: Tensor) -> Tensor:
        """Return one raw logit per pair, float32 of shape (batch, 1)."""
        input_ids, mask = tensors
        columns = torch.arange(mask.shape[1], device=mask.device)
        order = torch.minimum(columns + mask.argmax(-1, keepdim=True), columns[-1:])
        lengths = mask.sum(-1)
        input_ids, mask = input_ids.gather(1, order), (columns < lengths[:, None]).long()
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        logits: Tensor = self.model(
            input_ids=input_ids, attention_mask=mask, position_ids=positions, use_cache=False
        ).logits
        chosen = logits[torch.arange(logits.shape[0], device=mask.device), lengths - 1]
        return chosen[:, :1] - chosen[:, 1:] if chosen.shape[1] == 2 else chosen


def load(
    folder: Path,
    *,
    trust_remote_code: bool = False,
    answers: tuple[int, int | None] | None = None,
    cache_folder: str | None = None,
) -> CrossEncoder:
    """Load the checkpoint in *folder* as sentence-transformers does: float32, CPU, eval mode.

    Raises ModelError where it is no reranker or sentence-transformers cannot load it.
    """
    oracle = load_whole(
        folder,
        device=torch.device("cpu"),
        dtype=torch.float32,
        trust_remote_code=trust_remote_code,
        answers=answers,
        cache_folder=cache_folder,
    )
    limit = Checkpoint.read(folder).position_limit
    if limit is not None and limit < oracle.tokenizer.model_max_length:
        # Where the tokenizer states none, RoBERTa's kin would be asked for positions they lack.
        oracle.tokenizer.model_max_length = limit
    return oracle


def build(oracle: CrossEncoder) -> Network:
    """Return the module to trace; a language model loses the head's rows that no score reads."""
    causal = any(isinstance(stage, LogitScore) for stage in oracle)
    network = CausalNetwork(oracle) if causal else Network(oracle, _inputs(oracle))
    return network.eval()


def _inputs(oracle: CrossEncoder) -> tuple[str, ...]:
    """Return the inputs the network reads; token types only where there are several."""
    model = cast("Transformer", oracle[0]).model
    accepts = inspect.signature(model.forward).parameters
    types = getattr(model.config, "type_vocab_size", 0) or 0
    return INPUTS if types > 1 and "token_type_ids" in accepts else INPUTS[:2]


def _keep_rows(model: PreTrainedModel, tokens: list[int]) -> None:
    """Cut the output matrix to the rows of *tokens*; tied input embeddings stay whole."""
    whole: nn.Linear = model.get_output_embeddings()  # type: ignore[no-untyped-call]  # no types there
    head = nn.Linear(whole.in_features, len(tokens), bias=whole.bias is not None)
    with torch.no_grad():
        head.weight.copy_(whole.weight[tokens])
        if whole.bias is not None:
            head.bias.copy_(whole.bias[tokens])
    model.config = copy.copy(model.config)
    model.config.tie_word_embeddings = False
    model.set_output_embeddings(head)  # type: ignore[no-untyped-call]  # as above
