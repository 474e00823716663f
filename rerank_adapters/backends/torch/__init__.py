"""PyTorch: loads through sentence-transformers, runs the padding-free pass where it is proven."""

from __future__ import annotations

from .backend import TorchBackend
from .templates import convert_tokenizer, render_chat

__all__ = ["TorchBackend", "convert_tokenizer", "render_chat"]
