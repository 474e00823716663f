"""Options that belong together, as one word of a command line."""

from __future__ import annotations

import json
from typing import Any

from ..errors import ConfigError


def mapping(name: str, text: str | None) -> dict[str, Any] | None:
    """The values in *text*: "tokens=256,stride=128", or a JSON object. ConfigError names *name*.

    A value is a number where it is written as one, else text.
    """
    if text is None:
        return None
    if text.lstrip().startswith("{"):
        try:
            return dict(json.loads(text))
        except ValueError as error:
            raise ConfigError(f"{name} must be a JSON object: got {text!r:.80}") from error
    parts = [part.partition("=") for part in text.split(",")]
    if not all(key.strip() and equals for key, equals, _ in parts):
        raise ConfigError(
            f"{name} must be key=value, several with commas between: got {text!r:.80}"
        )
    return {key.strip(): _value(value.strip()) for key, _, value in parts}


def _value(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
