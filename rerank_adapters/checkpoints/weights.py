"""Whether the weights that torch is to read are there: what lacks is named before anybody fails."""

from __future__ import annotations

from pathlib import Path

from ..errors import ModelError
from .damage import refuse_pointer
from .json import read_json

_LARGE = ("*.safetensors", "*.bin", "tokenizer.json", "*.model")
_READ = ("model.safetensors", "pytorch_model.bin")
_OTHERS = ("*.gguf", "*.h5", "*.msgpack", "*.ckpt", "*.pt", "*.safetensors", "*.bin", "*.onnx")
_CURE = "get the whole checkpoint"


def check_stored(folder: Path) -> None:
    """Raise ModelError where *folder* holds no weights that torch reads, or a part of them alone.

    A part: shards that an index names and that are not there, and pointers of Git LFS.
    """
    for kind in _LARGE:
        for file in folder.rglob(kind):
            refuse_pointer(file)
    named = read_json(folder / "config.json", {}).get("transformers_weights")
    if named is not None or (folder / "adapter_config.json").is_file():
        return
    if not any(found for name in _READ for found in folder.rglob(f"{name}*")):
        there = sorted({file.name for kind in _OTHERS for file in folder.glob(kind)})
        raise ModelError(
            f"{folder} holds no weights that torch reads, {' or '.join(_READ)} (found: "
            f"{', '.join(there) or 'none'}): {_CURE}"
        )
    for name in _READ:  # transformers takes the first of these that it finds
        index = folder / f"{name}.index.json"
        if (folder / name).is_file() or index.is_file():
            if not (folder / name).is_file():
                _check_shards(index)
            break


def _check_shards(index: Path) -> None:
    shards = read_json(index, {}).get("weight_map")
    names = {str(it) for it in shards.values()} if isinstance(shards, dict) else set()
    lacking = sorted(it for it in names if not (index.parent / it).is_file())
    if lacking:
        more = f" and {len(lacking) - 3} more" if lacking[3:] else ""
        raise ModelError(
            f"{index} names files that are not there: {', '.join(lacking[:3])}{more}; {_CURE}"
        )


def why_unreadable(folder: Path) -> str:
    """Return "; " and what would help where the weights of *folder* need another library, or "".

    An adapter over another checkpoint, and weights in the form of a quantisation library.
    """
    base = read_json(folder / "adapter_config.json", {}).get("base_model_name_or_path")
    if base is not None:
        return (
            f"; it is an adapter over {base}: merge it into that (peft's merge_and_unload) and "
            "save the whole"
        )
    stated = read_json(folder / "config.json", {}).get("quantization_config")
    if isinstance(stated, dict):
        return (
            f"; its weights are quantised by {stated.get('quant_method')}, as its config.json "
            'says: take the checkpoint they were made of, or an ONNX file with backend="onnx"'
        )
    return ""
