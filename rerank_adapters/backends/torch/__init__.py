"""PyTorch: loads through sentence-transformers, runs the padding-free pass where it agrees."""

from __future__ import annotations

from pathlib import Path

from .. import LoadOptions, Selection
from .backend import TorchBackend
from .templates import convert_tokenizer, render_chat

__all__ = ["TorchBackend", "convert_tokenizer", "load", "render_chat", "select"]


def select(files: frozenset[str], *, dtype: str, file_name: str | None) -> Selection:
    """Return the weights to fetch, in one format: safetensors where there are any.

    They are the same for every *dtype*, and *file_name* is for backends that open one file.
    """
    del dtype, file_name
    if any(name.endswith(".safetensors") for name in files):
        return Selection(None, ("*.safetensors",))
    return Selection(None, ("pytorch_model*.bin", "*/pytorch_model*.bin"))


def load(folder: Path, selection: Selection, options: LoadOptions) -> TorchBackend:
    """Load the checkpoint in *folder* on one device; see `TorchBackend.from_folder`."""
    del selection  # sentence-transformers finds the weights in the folder
    return TorchBackend.from_folder(
        folder,
        device=options.device,
        dtype=options.dtype,
        pad_id=options.pad_id,
        pad_side=options.pad_side,
        max_length=options.max_length,
        trust_remote_code=options.trust_remote_code,
        num_threads=options.num_threads,
        prompt=options.prompt,
        encode=options.encode,
        answers=options.answers,
        framed=options.framed,
    )
