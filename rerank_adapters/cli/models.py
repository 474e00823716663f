"""What `info` says without a model."""

from __future__ import annotations

import importlib.util
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ..backends import BACKENDS
from ..loading import hub

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
