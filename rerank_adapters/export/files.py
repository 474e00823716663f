"""The folder an export leaves behind: complete, or not there at all."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx

from ..checkpoints import inside
from ..errors import ConfigError
from ..loading.hub import CONFIG_FILES, UNWRITABLE, LocalFolder, matching

ONE_FILE_LIMIT = 1_900_000_000
"""Bytes of weights above which they go to a file of their own: protobuf ends at 2 GiB."""


@contextmanager
def draft(folder: Path) -> Iterator[Path]:
    """A temporary folder next to *folder*; its files move in when the block ends without an error.

    Each move is atomic, and ONNX files move last: where one is, everything it needs is. No move
    goes through a link. Raises ConfigError where the folder cannot be written.
    """
    with _writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists() and not folder.is_dir():
            raise FileExistsError(errno.EEXIST, "it is a file")
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            yield temporary
            _move(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Raise ConfigError where the system says that *folder* cannot be written."""
    try:
        yield
    except OSError as error:
        if error.errno not in (*UNWRITABLE, errno.EEXIST, errno.ENOENT):
            raise
        raise ConfigError(
            f"folder must be one that can be written: got {str(folder)!r} ({error}); export to "
            "another, or make room on the disk"
        ) from error


def _move(source: Path, folder: Path) -> None:
    files = sorted(path for path in source.rglob("*") if path.is_file())
    for path in files:
        inside(folder, str(path.relative_to(source).parent), said_in="an export")
    for path in sorted(files, key=lambda path: path.suffix == ".onnx"):
        target = folder / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)


def copy_configuration(source: Path, folder: Path) -> None:
    """Copy every small file that says what the checkpoint means and how it reads text."""
    for name in matching(LocalFolder(source).files, CONFIG_FILES):
        if not name.endswith(".index.json"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, folder / name)


def write_graph(model: onnx.ModelProto, file: Path, *, apart: bool = False) -> None:
    """Write the graph as one file, or with its weights in `<name>_data`.

    They go there where they are too many, or are to be kept *apart* for others to share.
    """
    weights = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if weights <= ONE_FILE_LIMIT and not apart:
        onnx.save(model, file)
        return
    onnx.save(
        model,
        file,
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=f"{file.name}_data",
        size_threshold=1024,
    )
