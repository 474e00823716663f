"""Text from files, documents and other libraries, made fit to be shown: the one place for all.

Commands, tables, notebooks, log lines and errors show what a stranger may have written. Nothing of
it moves a cursor, disguises its neighbours, breaks a line or tells a secret.
"""

from __future__ import annotations

import re
import unicodedata

LONGEST = 4000
"""Characters of an error's message; what a damaged file holds may be megabytes."""

_REORDERING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c")
_UNSAFE = ("Cc", "Cs", "Zl", "Zp")
_SECRETS = (
    (re.compile(r"\bhf_[A-Za-z0-9_-]{4,}"), "hf_***"),
    (re.compile(r"(?i)\b(bearer|basic)(\s+)[A-Za-z0-9._~+/=-]{4,}"), r"\1\2***"),
    (re.compile(r"(?<=://)[^\s/@'\"]+@"), "***@"),
)
"""A hub's tokens, an authorization header, and the user and password in an address."""


def one_line(text: str, width: int | None = None) -> str:
    """Return *text* on one line of at most *width* terminal cells, a cut marked by "…".

    White space is joined; control characters, lone surrogates and marks that reorder text
    become U+FFFD, so that no document can move the cursor or disguise its neighbours.
    """
    line = "".join(map(_safe, " ".join(text.split())))
    if width is None or cells(line) <= width:
        return line
    kept, room = [], width - 1
    for letter in line:
        room -= cells(letter)
        if room < 0:
            break
        kept.append(letter)
    return "".join(kept).rstrip() + "…"


def lines(text: str) -> str:
    """Return *text* with its lines as they are, a blank for each tab, all else as in `one_line`."""
    return "".join(
        letter if letter == "\n" else _safe(letter) for letter in text.replace("\t", " ")
    )


def in_json(line: str) -> str:
    """Return a line of JSON, of the same value, with all escaped that a terminal might obey."""
    return "".join(
        letter if _safe(letter) == letter else f"\\u{ord(letter):04x}" for letter in line
    )


def message(text: str) -> str:
    """Return what an error may say: safe to print, bounded, and without secrets."""
    text = withheld("".join(map(_safe, re.sub(r"\s*[\r\n]+\s*", " ", text[: 2 * LONGEST]))))
    return text if len(text) <= LONGEST else text[:LONGEST] + "…"


def withheld(text: str) -> str:
    """Return *text* with "***" for what looks like a token, a password or a header of them."""
    for pattern, stars in _SECRETS:
        text = pattern.sub(stars, text)
    return text


def cells(text: str) -> int:
    """Terminal cells that *text* takes: two for wide characters, none for combining ones."""
    return sum(
        0
        if unicodedata.category(letter) in ("Mn", "Me", "Cf")
        else 1 + (unicodedata.east_asian_width(letter) in "WF")
        for letter in text
    )


def _safe(letter: str) -> str:
    unsafe = unicodedata.category(letter) in _UNSAFE or letter in _REORDERING
    return "\ufffd" if unsafe else letter
