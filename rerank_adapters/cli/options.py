"""The options of a model, as every command that loads one takes them."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from ..config import OPTIONS, RerankerConfig
from ..errors import ConfigError
from ..ranking import FuseMethod

Command = Callable[..., None]

DEFAULTS = {field.name: field.default for field in fields(RerankerConfig)}

LISTS = ("answers", "device")
"""Options that take several values, written with commas between them."""

MAPPINGS = ("windows", "fuse", "early_exit", "cache", "remote")
"""Options that belong together: "tokens=256,stride=128", or a JSON object."""


def takes(names: Iterable[str] = OPTIONS, *, but: Iterable[str] = ()) -> Callable[[Command], Any]:
    """Give a command an option for each of *names* of `RerankerConfig`; it gets them as `options`.

    Their texts, types and defaults are the library's own. *but* are left out.
    """
    chosen = [name for name in names if name not in set(but)]

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        own = [it for it in signature.parameters.values() if it.name != "options"]

        @functools.wraps(command)
        def run(**given: Any) -> None:
            options = {name: _read(name, given.pop(name)) for name in chosen}
            command(**given, options=options)

        parameters = [*own, *map(_parameter, chosen)]
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {it.name: it.annotation for it in parameters}
        return run

    return decorate


def _parameter(name: str) -> inspect.Parameter:
    hint = get_type_hints(RerankerConfig)[name]
    words = get_args(hint)
    flags = [f"--{name.replace('_', '-')}", *(["-m"] if name == "model" else [])]
    more: dict[str, Any] = {"rich_help_panel": f"Options: {OPTIONS[name].group}"}
    kind: Any = str | None
    if name == "token":
        more |= {"envvar": "HF_TOKEN", "show_default": False}
    elif name in MAPPINGS:
        more |= {"metavar": "KEY=VALUE,..."}
    elif hint is bool:
        kind = bool
    elif get_origin(hint) is Literal:
        kind = hint
    elif int in words and str not in words:
        kind, more = int | None, {**more, "min": 1}
    elif DEFAULTS[name] is not None:
        kind = str
    annotation = Annotated[kind, typer.Option(*flags, help=OPTIONS[name].text, **more)]
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=DEFAULTS[name], annotation=annotation
    )


def _read(name: str, value: Any) -> Any:
    """An option's value from what was typed."""
    if name == "fuse" and value in get_args(FuseMethod):
        return value
    if name in MAPPINGS:
        return mapping(f"--{name}", value)
    if name in LISTS and isinstance(value, str) and "," in value:
        return tuple(value.split(","))
    if name == "answers" and value is not None:
        return (value,)
    if name == "label" and isinstance(value, str) and value.isdecimal():
        return int(value)
    return value


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
    return {key.strip(): _number(value.strip()) for key, _, value in parts}


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
