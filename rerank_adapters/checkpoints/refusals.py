"""Kinds of checkpoints that this library does not score, and what would help."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

LAYERWISE = (
    "it is a layerwise reranker, whose score is the logit of a layer that its own code picks "
    "(cutoff_layers): take BAAI/bge-reranker-v2-m3 or BAAI/bge-reranker-v2-gemma instead, or wrap "
    "its own reranker in a scorer (Reranker.over)"
)
LISTWISE = (
    "it is a listwise reranker, which scores all documents of a query in one text, and no pair by "
    "itself: take jinaai/jina-reranker-v2-base-multilingual, or wrap it in a Ranker"
)
GENERATES = (
    "it is an encoder-decoder that answers with a generated token: take a reranker with a head, "
    "such as BAAI/bge-reranker-v2-m3, or wrap it in a scorer (Reranker.over)"
)
SEES = (
    "it reads images beside text, which this library does not: take a model of text, such as "
    "Qwen/Qwen3-Reranker-0.6B or nvidia/llama-nemotron-rerank-1b-v2"
)

_KINDS = {
    r"(LayerWise|CostWise)\w*ForCausalLM": LAYERWISE,
    r"\w*ForRanking": LISTWISE,
    r"(M?T5|UMT5|T5Gemma|Bart|MBart)\w*For(ConditionalGeneration|CausalLM)": GENERATES,
    r"\w*(VL|Vision|VLM)\w*For\w+": SEES,
}


def refusal(architectures: Sequence[str], config: Mapping[str, Any]) -> str:
    """Return why a checkpoint of *architectures* is not scored, and what would help, or ""."""
    for name in architectures[:1]:
        for pattern, reason in _KINDS.items():
            if re.fullmatch(pattern, name):
                return reason
    return SEES if "vision_config" in config else ""
