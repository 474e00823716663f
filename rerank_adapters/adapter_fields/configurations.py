"""A whole configuration in one argument, for frameworks whose adapters are no pydantic models."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..calibration import Calibration
from ..config import DEFAULT_MODEL, LIVE, RerankerConfig
from ..early_exit import EarlyExit
from ..errors import ConfigError, OptionError
from ..hints import option_hint
from ..passages import Windows
from ..ranking import Fuse
from ..remote import RemoteConfig

Configuration = str | Path | Mapping[str, Any] | RerankerConfig | RemoteConfig
"""A hub id or a folder, a RerankerConfig or a mapping of its fields, or a server."""

_FIELDS = {field.name: field.default for field in dataclasses.fields(RerankerConfig)}
_UNSAVED = ("token", *LIVE)


def configuration(value: Configuration, name: str) -> RerankerConfig:
    """*value* as a RerankerConfig; *name* is what errors call it. Raises ConfigError."""
    if isinstance(value, RerankerConfig):
        return value
    if isinstance(value, RemoteConfig):
        return RerankerConfig(remote=value)
    if isinstance(value, str | Path):
        return RerankerConfig(model=value)  # type: ignore[arg-type]  # it takes a Path too
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"{name} must be a hub id, a folder, a RerankerConfig or a mapping of its fields: got "
            f"{value!r:.80}"
        )
    for key in value:
        if key not in _FIELDS:
            raise OptionError(f"{name} has no field {key!r:.80}{option_hint(str(key), _FIELDS)}")
    return RerankerConfig(**value)


def saved(config: RerankerConfig) -> str | dict[str, Any]:
    """*config* as plain values that `configuration` reads: its model, or every field that is set.

    Token and what is alive are left out.
    """
    fields = {
        name: _plain(getattr(config, name))
        for name, default in _FIELDS.items()
        if name not in _UNSAVED and getattr(config, name) != default
    }
    if set(fields) <= {"model"}:
        return str(fields.get("model", DEFAULT_MODEL))
    return fields


def _plain(value: Any) -> Any:
    if isinstance(value, Windows | Fuse | EarlyExit | Calibration | RemoteConfig):
        return value.to_dict()
    return list(value) if isinstance(value, tuple) else value
