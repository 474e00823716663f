"""The folder an export leaves behind: complete, or not there at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx

from ..loading.hub import CONFIG_FILES, LocalFolder, matching

ONE_FILE_LIMIT = 1_900_000_000
"""Bytes of weights above which they go to a file of their own: protobuf ends at 2 GiB."""


@contextmanager
def draft(folder: Path) -> Iterator[Path]:
    """A temporary folder next to *folder*; its files move in when the block ends without an error.

    Each move is atomic, and ONNX files move last: where one is, everything it needs is.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield temporary
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        for path in sorted(files, key=lambda path: path.suffix == ".onnx"):
            target = folder / path.relative_to(temporary)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def copy_configuration(source: Path, folder: Path) -> None:
    """Copy every small file that says what the checkpoint means and how it reads text."""
    for name in matching(LocalFolder(source).files, CONFIG_FILES):
        if not name.endswith(".index.json"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, folder / name)


def write_graph(model: onnx.ModelProto, file: Path) -> None:
    """Write the graph as one file, or with its weights in `<name>_data` where they are too many."""
    weights = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if weights <= ONE_FILE_LIMIT:
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
