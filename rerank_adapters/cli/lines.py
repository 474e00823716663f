"""Standard input to rows: plain lines, JSON lines, or one JSON array."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from ..errors import InputError
from .console import note
from .kinds import LINE_END

Form = Literal["auto", "text", "jsonl"]
"""What lines are. "auto": JSON where the first is an object or all are one array, else text."""

Row = dict[str, Any]


def rows(data: bytes, text_field: str, form: Form = "auto") -> list[Row]:
    """The rows in *data*, each with its text under *text_field*; blank lines are none.

    With "auto" one odd line breaks no other: among JSON lines what is no object is a text, and an
    object without a text is blank, each with a note. With "jsonl" both are InputErrors.
    """
    text = _decoded(data)
    if form != "text" and text.lstrip().startswith("["):
        values = _json(text)
        if isinstance(values, list):
            return [
                _row(value, f"item {number}", text_field, strict=form == "jsonl")
                for number, value in enumerate(values, 1)
            ]
    numbered = [(at, line) for at, line in enumerate(LINE_END.split(text), 1) if line.strip()]
    if form == "text" or (form == "auto" and not _are_objects(numbered)):
        return [{text_field: line} for _, line in numbered]
    return list(_objects(numbered, text_field, strict=form == "jsonl"))


def _are_objects(numbered: Sequence[tuple[int, str]]) -> bool:
    return bool(numbered) and isinstance(_json(numbered[0][1]), dict)


def _objects(
    numbered: Sequence[tuple[int, str]], text_field: str, *, strict: bool
) -> Iterator[Row]:
    first = numbered[0][0] if numbered else 0
    for number, line in numbered:
        value = _json(line)
        if not isinstance(value, dict):
            if strict:
                raise InputError(f"line {number} must be a JSON object: got {line[:60]!r}")
            note(f"line {number} is no JSON object: it is ranked as text")
            value = {text_field: line}
        yield _row(value, f"line {number}", text_field, strict=strict or number == first)


def _row(value: Any, where: str, text_field: str, *, strict: bool) -> Row:
    """*value* with a text under *text_field*; a str is one. InputError, or a blank text."""
    if isinstance(value, str):
        return {text_field: value}
    if isinstance(value, dict) and isinstance(value.get(text_field), str):
        return value
    if strict or not isinstance(value, dict):
        raise InputError(
            f"{where} must have a text under {text_field!r} (--text-field; --text for plain "
            f"lines): got {value!r:.60}"
        )
    note(f"{where} has no text under {text_field!r}: it is ranked as blank")
    return {**value, text_field: ""}


def _json(text: str) -> Any:
    """What *text* says as JSON; None where it is none, or nested too deep to be read."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _decoded(data: bytes) -> str:
    """UTF-8, UTF-16 with its mark; a line that is neither in the letters of Western Europe."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", errors="replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return "\n".join(_line(number, line) for number, line in enumerate(data.split(b"\n"), 1))


def _line(number: int, line: bytes) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError:
        note(f"line {number} is no UTF-8: it is read as Windows-1252")
        return line.decode("cp1252", errors="replace")
