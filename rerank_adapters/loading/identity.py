"""Whose weights a checkpoint runs: names that its forms share, for what was fitted to them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

from ..calibration import Calibration
from ..checkpoints import ABSENT, HEADS, WEIGHTS
from ..config import DEFAULT_MODEL
from ..errors import ConfigError
from . import bundled
from .finding import Found
from .fingerprint import content_hash, graph_files
from .hub import HubModel


def weights_of(found: Found) -> tuple[str, ...]:
    """The names of the weights that *found* runs; forms of one checkpoint share one of them.

    One is of the weights' content: of what an export was made of, for its manifest says it; else of
    the weights in the folder, for graphs that lie beside them; else of the graph. Another is the
    hub's id and commit. May read every weight.
    """
    config, revision = found.config, found.source.revision
    if config.model == DEFAULT_MODEL:
        return (_default(),)
    stated = found.checkpoint.manifest.weights
    graph = found.selection.file
    if graph is not None and stated is not ABSENT:
        content = stated
    else:
        named = isinstance(found.source, HubModel)
        content = weights_name(found.folder, named=named) or _graph_name(found.folder, str(graph))
    return (content,) if revision is None else (content, f"{config.model}@{revision}")


def weights_name(folder: Path, *, named: bool = False) -> str:
    """16 hexadecimal digits of a sha256 over the content of the weights in *folder*, "" if none.

    *named*: as `content_hash` has it.
    """
    paths = [path for path in folder.rglob("*") if path.name != HEADS]
    names = sorted(path.relative_to(folder).as_posix() for path in paths)
    for pattern in WEIGHTS:  # in one format, as torch reads them
        files = [folder / name for name in names if fnmatch(name, pattern)]
        if files:
            return _name([_sha256(file, named=named) for file in files])
    return ""


def check_weights(
    calibration: Calibration | None, weights: Callable[[], tuple[str, ...]], model: str
) -> None:
    """Raise ConfigError where *calibration* was fitted to others than *weights*, of *model*."""
    if calibration is None or not calibration.weights:
        return
    here = weights()
    if not set(calibration.weights) & set(here):
        fitted = f", of {calibration.model!r}" if calibration.model else ""
        raise ConfigError(
            f"calibration must be of the weights that run, {here[0]} of {model!r}: "
            f"got one of {calibration.weights[0]}{fitted}; fit another by rerank-adapters calibrate"
        )


def _default() -> str:
    """The default model's: torch reads what is unpacked of the same file."""
    checksums = json.loads((bundled.folder() / bundled.CHECKSUMS).read_text(encoding="utf-8"))
    return _name([checksums[bundled.WEIGHTS]])


def _graph_name(folder: Path, graph: str) -> str:
    return _name([_sha256(file) for file in sorted(graph_files(folder / graph))])


def _sha256(file: Path, *, named: bool = False) -> str:
    """Of a file's content; a hub's cache may know small files by git's hash."""
    found = content_hash(file, named=named)
    return found if len(found) == 64 else hashlib.sha256(file.read_bytes()).hexdigest()


def _name(hashes: list[str]) -> str:
    return hashlib.sha256("\0".join(hashes).encode()).hexdigest()[:16]
