"""What a damaged file makes others raise, told as a ModelError: the one place for all readers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import ModelError, RerankError

_POINTER = b"version https://git-lfs.github.com/spec/"


def refuse_pointer(file: Path) -> None:
    """Raise ModelError where *file* is what Git leaves in a large file's place without its LFS."""
    with file.open("rb") as opened:
        pointer = opened.read(len(_POINTER)) == _POINTER
    if pointer:
        raise ModelError(
            f"{file} is a pointer of Git LFS and not the file itself: run git lfs pull in its "
            "folder, or download the file"
        )


@contextmanager
def as_model_error(what: str) -> Iterator[None]:
    """Raise ModelError saying that *what* cannot be read, for whatever is raised inside.

    A library's own exception, a number too large, a nesting too deep, no memory, a panic of a
    library written in Rust, which is no Exception. Our own errors pass, and so does a device's
    memory, which is not the file's fault.
    """
    try:
        yield
    except RerankError:
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":
            raise
        raise _damaged(what, error) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # Ctrl-C and exits are nobody's damage
            raise
        raise _damaged(what, error) from error


def _damaged(what: str, error: BaseException) -> ModelError:
    return ModelError(f"{what} cannot be read: {type(error).__name__}: {error}")
