"""JSON files of a checkpoint, and the numbers in them that mean "no limit"."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from ..errors import ModelError
from .damage import as_model_error, refuse_pointer

Json = TypeVar("Json", dict[str, Any], list[Any])

NO_LIMIT = 2**30
"""Tokens; a checkpoint that states no limit is never cut."""

MOST_BYTES = 256_000_000
"""Of a JSON file; the largest vocabularies have a tenth of it."""


def read_json(file: Path, empty: Json) -> Json:
    """Return the object or list in *file*, *empty* without such a file; ModelError if damaged."""
    if not file.is_file():
        return empty
    with as_model_error(str(file)):
        if file.stat().st_size > MOST_BYTES:
            raise ModelError(f"{file} must have at most {MOST_BYTES} bytes")
        refuse_pointer(file)
        try:
            value = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ModelError(f"{file} is not JSON: {error}") from error
    if not isinstance(value, type(empty)):
        kind = "an object" if isinstance(empty, dict) else "a list"
        raise ModelError(f"{file} must hold {kind}: got {type(value).__name__}")
    return value


def write_json(file: Path, content: object) -> None:
    """Write UTF-8 JSON as people read it."""
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
