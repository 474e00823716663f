"""PyTorch: loads through sentence-transformers, runs the padding-free pass where it agrees."""

from __future__ import annotations

from pathlib import Path

from ...checkpoints import HEADS, WEIGHTS, has_weights
from ...errors import ModelError
from .. import LoadOptions, Selection
from .backend import TorchBackend
from .templates import convert_tokenizer, render_chat

__all__ = ["TorchBackend", "convert_tokenizer", "load", "render_chat", "select"]


def select(files: frozenset[str], *, dtype: str, file_name: str | None) -> Selection:
    """Return the weights to fetch, in one format: safetensors where there are any.

    They are the same for every *dtype*, and *file_name* is for backends that open one file.
    Raises ModelError where *files* has ONNX graphs alone.
    """
    del dtype, file_name
    graphs = sorted(name for name in files if name.endswith(".onnx"))
    if graphs and not has_weights(files):
        raise ModelError(
            'no weights that backend="torch" reads in the checkpoint (found: '
            f'{", ".join(graphs)}): pass backend="onnx", or get model.safetensors'
        )
    safe = [name for name in files if name.endswith(".safetensors") and name != HEADS]
    return Selection(None, (*(WEIGHTS[:1] if safe else WEIGHTS[1:]), HEADS))


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
        tokenizer_json=options.tokenizer_json,
        cache_folder=options.cache_folder,
    )
