"""LangChain: a document compressor, a retriever and a cross-encoder, on langchain-core alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import MissingDependencyError

try:
    import langchain_core  # noqa: F401 (only to say what is missing before anything else fails)
except ImportError as error:
    raise MissingDependencyError("langchain_core", "langchain") from error

from .compressor import CrossEncoderCompressor
from .cross_encoder import LangChainCrossEncoder
from .retriever import RerankingRetriever

if TYPE_CHECKING:
    from .middleware import RerankingMiddleware

__all__ = [
    "CrossEncoderCompressor",
    "LangChainCrossEncoder",
    "RerankingMiddleware",
    "RerankingRetriever",
]


def __getattr__(name: str) -> Any:
    """Load the middleware on first use: it alone needs `langchain` beside langchain-core."""
    if name != "RerankingMiddleware":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .middleware import RerankingMiddleware

    return RerankingMiddleware


def __dir__() -> list[str]:
    return sorted(__all__)
