"""LlamaIndex: a node postprocessor that changes nothing but the order and the score."""

from __future__ import annotations

from ..errors import MissingDependencyError

try:
    import llama_index.core  # noqa: F401 (only to say what is missing before anything else fails)
except ImportError as error:
    raise MissingDependencyError("llama_index.core", "llama-index") from error

from .postprocessor import CrossEncoderPostprocessor

__all__ = ["CrossEncoderPostprocessor"]
