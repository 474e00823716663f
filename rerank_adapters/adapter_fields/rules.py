"""One rule and one error class for each mistake, wherever it is made.

A field that breaks a rule is a ConfigError, an argument of a call an InputError. pydantic carries
the values; its own ValidationError is left for what it alone can judge, such as absent fields.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, get_args, get_origin

from pydantic import ValidationError

from ..checks import check_selection
from ..errors import ConfigError, InputError, OptionError, RerankError
from ..hints import option_hint


@contextmanager
def own_errors(fields: Iterable[str]) -> Iterator[None]:
    """Raise this library's errors as they are, and what is none of *fields* as a TypeError."""
    try:
        yield
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            cause = detail.get("ctx", {}).get("error")
            if isinstance(cause, RerankError):
                raise cause from None
            if detail["type"] == "extra_forbidden":
                name = str(detail["loc"][-1])
                raise OptionError(
                    f"{error.title}() got an unexpected keyword argument {name!r}"
                    f"{option_hint(name, fields)}"
                ) from None
        raise


@contextmanager
def as_config_errors() -> Iterator[None]:
    """Raise ConfigError for a rule of calls that a field breaks."""
    try:
        yield
    except InputError as error:
        raise ConfigError(str(error)) from None


def plain_selection(
    top_n: int | None, score_threshold: float | None
) -> tuple[int | None, float | None]:
    """Both as fields keep them: plain numbers that JSON gives back. Raises ConfigError."""
    with as_config_errors():
        check_selection(top_n, score_threshold)
    if score_threshold is None:
        return (None if top_n is None else int(top_n)), None
    if math.isinf(score_threshold):  # JSON would give it back as None, which is no bound
        raise ConfigError(f"score_threshold must be finite, or None: got {score_threshold!r}")
    return (None if top_n is None else int(top_n)), float(score_threshold)


def check_word(name: str, value: object, words: tuple[object, ...]) -> None:
    """Raise InputError unless *value* is one of *words*."""
    if value not in words:
        raise InputError(f"{name} must be one of {', '.join(map(repr, words))}: got {value!r:.80}")


def plain_signature(kind: type) -> inspect.Signature:
    """The signature of a model's constructor as people read it: types without what judges them."""
    signature = inspect.signature(kind)
    named = [it for it in signature.parameters.values() if it.kind is not it.VAR_POSITIONAL]
    plain = [it.replace(annotation=_plain(it.annotation)) for it in named]
    return signature.replace(parameters=plain)


def _plain(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
