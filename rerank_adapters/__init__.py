"""Fast, exact, dependable reranking for RAG: one cross-encoder core, PyTorch or ONNX Runtime."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .calibration import Calibration, Reliability, Threshold
from .config import RerankerConfig
from .document_tokens import DocumentTokens
from .early_exit import EarlyExit
from .errors import (
    BackendError,
    ClosedError,
    ConfigError,
    InputError,
    MissingDependencyError,
    ModelError,
    OverloadedError,
    RerankError,
)
from .passages import Paragraphs, Windows
from .ranking import Fuse, RankedDocument, Ranking
from .remote import RemoteConfig
from .score_cache import ScoreCache

if TYPE_CHECKING:
    from .cascade import Cascade
    from .ranking.plotting import plot_rank_changes as plot_rank_changes
    from .ranking.plotting import plot_reliability as plot_reliability
    from .reranker import Reranker

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "Calibration",
    "Cascade",
    "ClosedError",
    "ConfigError",
    "DocumentTokens",
    "EarlyExit",
    "Fuse",
    "InputError",
    "MissingDependencyError",
    "ModelError",
    "OverloadedError",
    "Paragraphs",
    "RankedDocument",
    "Ranking",
    "Reliability",
    "RemoteConfig",
    "RerankError",
    "Reranker",
    "RerankerConfig",
    "ScoreCache",
    "Threshold",
    "Windows",
    "__version__",
]

# Pictures are not in __all__, so that `import *` needs no matplotlib.
_LAZY = {
    "Cascade": "cascade",
    "Reranker": "reranker",
    "plot_rank_changes": "ranking.plotting",
    "plot_reliability": "ranking.plotting",
}


def __getattr__(name: str) -> Any:
    """Load what needs a runtime on first use: importing the package costs numpy at most."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
