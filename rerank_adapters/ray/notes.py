"""What a job of files was told, noted beside what it wrote: another job does not go on with it."""

from __future__ import annotations

import hashlib
from io import BytesIO
from pathlib import Path

import pyarrow.dataset as pads

from ..errors import InputError

PENDING = [".pending", ".parquet"]
"""How Ray ends the name of an account that a killed driver left: what it is of it writes anew."""


def go_on(source: str, target: str, checkpoint: str, options: str) -> None:
    """Note in *target*.job what makes the rows what they are; raise where another job wrote there.

    That is *options*, and the files of *source* as their footers tell them: more files may come,
    and be ranked by a next run, but none may change. How many engines rank them is nothing.

    InputError: *target* holds what nobody keeps account of, or of other options or files; or an
    account is there of rows that are not. What a URL names is nobody's to look into.
    """
    if "://" in target:
        return
    told, noted = Path(f"{target}.job"), [options, *_footers(source)]
    if Path(target).is_dir() and any(Path(target).iterdir()):
        if not Path(checkpoint).is_dir():
            raise InputError(
                f"target must be a new folder, or have its .checkpoint: got {target!r}"
            )
        if told.exists():
            before = told.read_text("utf-8").split("\n")
            if before[:1] != noted[:1] or not set(before) <= set(noted):
                raise InputError(
                    f"target must be a new folder where rows or options differ: {told}"
                )
    elif any(it.suffixes != PENDING for it in Path(checkpoint).rglob("*.parquet")):
        raise InputError(f"target must hold what {checkpoint} says is done: remove that too")
    told.write_text("\n".join(noted), "utf-8")


def _footers(source: str) -> list[str]:
    """A digest for each file: of its columns, counts, sizes and bounds, which its footer has."""
    found = []
    for part in pads.dataset(source, format="parquet").get_fragments():
        footer = BytesIO()
        part.metadata.write_metadata_file(footer)
        found.append(hashlib.sha256(footer.getvalue()).hexdigest())
    return sorted(found)
