"""The default model's files: one weights file that both backends read, without network or torch.

    model.safetensors   weights under their usual names, 7 bits where it counts:
                          linear matrices   int8 (in, out), `….scale` (out,), and where inputs were
                                            evened out for int8, `….factor` (in, 1)
                          embedding tables  int8 (rows, width), `….scale` (rows, 1)
                          all else          float32
    model.onnx          float32 arithmetic; a graph whose weights are external data inside the above
    model_int8.onnx     int8 arithmetic; likewise
    model_part0.onnx … model_int8_part3.onnx    both graphs cut after some layers; likewise
    rerank_adapters.json, exit_heads.safetensors    which layers these are, and their exit heads
    tokenizer.json, tokenizer_config.json, config.json, checksums.json

A float32 weight is values · scale / factor, transposed to (out, in) for linear layers; `unpack`
writes that as an ordinary checkpoint, for torch.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import numpy as np

from ...checkpoints import FILE_NAME, HEADS
from ...checkpoints.tensors import Array, emit, read_tensors, write_tensors
from ...errors import ConfigError, ModelError

WEIGHTS = "model.safetensors"
CHECKSUMS = "checksums.json"
COPIED = ("config.json", "tokenizer.json", "tokenizer_config.json", FILE_NAME, HEADS)
"""What torch's copy has too, of what there is: a model without exits has the first three."""


def folder() -> Path:
    """Where the installed package keeps the default model."""
    return Path(str(files(__package__)))


def verify(folder: Path) -> dict[str, str]:
    """The sha256 of each file that `checksums.json` names, all as it says.

    Raises ModelError naming the file that is missing, damaged or not of this model. Reads every
    byte: about 20 ms for 24 MB.
    """
    try:
        expected: dict[str, str] = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _broken(folder / CHECKSUMS, f"it cannot be read ({error})") from error
    for name, checksum in expected.items():
        try:
            found = checksum_of(folder / name)
        except OSError as error:
            raise _broken(folder / name, f"it cannot be read ({error})") from error
        if found != checksum:
            raise _broken(folder / name, f"its sha256 is {found}, expected {checksum}")
    return expected


def unpack(cache_folder: str | Path | None = None) -> Path:
    """An ordinary float32 checkpoint of the default model, made once under *cache_folder*.

    None is `~/.cache/rerank-adapters`. The folder's name carries the checksum of all files, so
    versions live side by side. It appears by one rename, whole or not at all, also when several
    processes make it at once. One that is there already is checked, every byte of it.

    Raises ModelError for a damaged file, ConfigError where the cache cannot be written.
    """
    source = folder()
    verify(source)
    version = checksum_of(source / CHECKSUMS)[:16]
    try:
        cache = Path.home() / ".cache" / "rerank-adapters" if cache_folder is None else cache_folder
        target = Path(cache).expanduser() / f"default-{version}"
        if target.is_dir():
            _verify_unpacked(source, target)
        else:
            _unpack(source, target)
    except (OSError, RuntimeError) as error:  # Path.home() knows no home
        raise ConfigError(
            "cache_folder must be a folder that can be written, for the default model's weights: "
            f'got {cache_folder!r} ({error}); pass cache_folder= another, or backend="onnx", which '
            "unpacks nothing"
        ) from error
    return target


def _copied(source: Path) -> list[str]:
    return [name for name in COPIED if (source / name).is_file()]


def _unpack(source: Path, target: Path) -> None:
    """Write the checkpoint beside *target* and rename it there, whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        for name in _copied(source):
            shutil.copyfile(source / name, draft / name)
        write_tensors(draft / WEIGHTS, dequantize(read_tensors(source / WEIGHTS)))
        try:
            draft.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was first, with the same bytes
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _verify_unpacked(source: Path, target: Path) -> None:
    """Raise ModelError unless *target* holds what unpacking *source* would write, and no more."""
    expected = {name: checksum_of(source / name) for name in _copied(source)}
    digest = hashlib.sha256()
    emit(digest.update, dequantize(read_tensors(source / WEIGHTS)))
    expected[WEIGHTS] = digest.hexdigest()
    found = {path.name: path for path in target.iterdir()}
    for name in sorted({*found, *expected}):
        if name not in found or name not in expected or not found[name].is_file():
            reason = "is missing" if name not in found else "does not belong there"
        elif checksum_of(found[name]) != expected[name]:
            reason = "is damaged"
        else:
            continue
        raise ModelError(
            f"{target / name} {reason}: remove the folder {target}, and it is unpacked again"
        )


def dequantize(tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Float32 tensors under their usual names in their usual layout: linear ones (out, in)."""
    unpacked: dict[str, Array] = {}
    for name, values in tensors.items():
        if name.endswith((".scale", ".factor")):
            continue
        if values.dtype == np.int8:
            scale = tensors[f"{name}.scale"]
            floats = np.multiply(values, scale, dtype=np.float32)
            if f"{name}.factor" in tensors:
                floats /= tensors[f"{name}.factor"].astype(np.float32)
            values = np.ascontiguousarray(floats.T) if scale.ndim == 1 else floats
        unpacked[name] = values
    return unpacked


def checksum_of(file: Path) -> str:
    """The file's sha256, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _broken(file: Path, reason: str) -> ModelError:
    return ModelError(
        f"{file} is damaged or not a file of the default model: {reason}. Reinstall it: "
        "pip install --force-reinstall --no-deps rerank-adapters"
    )
