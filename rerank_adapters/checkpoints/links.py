"""Links and paths of a model folder lead nowhere but into it, or into the hub cache it is in."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..errors import ModelError

_SHARED_BLOB = re.compile(r"[0-9a-f]{2}/[0-9a-f]{64}")


def check_links(folder: Path) -> None:
    """Raise ModelError for a link in *folder* that leads out of it, and for what is no file.

    A snapshot of a hub's cache may link into the blobs of its own repository, and into the store
    that its cache shares between repositories.
    """
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            if path.is_symlink():
                _check_target(folder, path)
            elif path.exists() and not (path.is_file() or path.is_dir()):
                raise ModelError(f"{path} is neither a file nor a folder: take it out of the model")


def inside(folder: Path, name: str, *, said_in: str) -> Path:
    """Return the path of *name* in *folder*; ModelError naming *said_in* where it leads out."""
    path = folder / name
    try:
        if _within(folder, path):
            return path
    except (OSError, RuntimeError, ValueError):  # too long, a circle of links, a null byte
        pass
    raise ModelError(f"{said_in} must name files inside {folder}: got {name!r}")


def _check_target(folder: Path, link: Path) -> None:
    if not link.exists() or _within(folder, link):
        return  # a link to nothing, or in a circle, reads as a missing file
    raise ModelError(
        f"{link} is a link out of the model's folder, to {link.readlink()}: a model is read only "
        "from its own folder, or from the hub cache that it is a snapshot of; copy the file there"
    )


def _within(folder: Path, path: Path) -> bool:
    root, real = folder.resolve(), path.resolve()
    if real.is_relative_to(root):
        return True
    repository = root.parent.parent
    if root.parent.name != "snapshots" or not repository.name.startswith("models--"):
        return False
    if real.parent == repository / "blobs":
        return True
    shared = repository.parent / "blobs"
    return real.is_relative_to(shared) and bool(
        _SHARED_BLOB.fullmatch(real.relative_to(shared).as_posix())
    )
