"""What `info` says without a model, and what `models` says of those that are known."""

from __future__ import annotations

import importlib.util
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ..backends import BACKENDS
from ..loading import hub
from ..published import PUBLISHED

FAMILIES = (
    "BERT (MiniLM, TinyBERT)",
    "RoBERTa",
    "XLM-RoBERTa (bge-reranker)",
    "ELECTRA",
    "DistilBERT",
    "ModernBERT",
    "DeBERTa-v2/v3 (mxbai-rerank v1)",
    "MPNet",
    "two-label classifiers",
    "causal yes/no rerankers with a chat template (Qwen3-Reranker)",
    "Transformer + Pooling + Dense (ettin-reranker)",
)
"""Each has a tiny checkpoint of its architecture in the tests, on both backends."""

RUNTIMES = (
    *(entry.needs for entry in BACKENDS.values()),
    *("transformers", "sentence-transformers", "tokenizers"),
)


def known_models() -> dict[str, Any]:
    """Runtimes installed, architectures tested, and rerankers in the hub's cache."""
    return {
        "runtimes": [f"{name} {_version(name)}" for name in RUNTIMES],
        "extras": [
            name
            for name in ("langchain_core", "llama_index", "torch", "onnx")
            if importlib.util.find_spec(name)
        ],
        "families tested": list(FAMILIES),
        "models here": ["default (bundled)", *hub.cached_models()],
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


HEADINGS = ("model", "licence", "GB", "languages", "tokens", "nDCG@10", "MRR@10")


def rows() -> list[list[str]]:
    """PUBLISHED under HEADINGS, "" where nobody says it."""
    return [
        [
            one.id,
            one.licence or "",
            _number(one.gigabytes),
            ", ".join(one.languages),
            "" if one.max_length is None else str(one.max_length),
            _number(one.ndcg10),
            _number(one.mrr10),
        ]
        for one in PUBLISHED
    ]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
