"""Documents longer than a model reads: how they are cut, and documents that come in paragraphs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, Self, get_args

from .errors import ConfigError, InputError
from .texts import whole

Aggregate = Literal["max", "mean", "first", "topk_mean"]


@dataclass(frozen=True, slots=True)
class Windows:
    """How documents are read that are longer than one window.

    tokens       most tokens of a window; a query that leaves less makes windows smaller
    stride       most tokens between the beginnings of two windows; None: three quarters of `tokens`
    aggregate    what the windows' logits become: "max" (the best window's logit and score), "first"
                 (the first window alone is read), "mean", or "topk_mean" (the mean of the `topk`
                 best); a mean goes through the activation like any logit
    max_windows  windows of one document that are read, from its beginning on; None: all
    topk         how many "topk_mean" takes

    Raises ConfigError. Source: Dai & Callan, 2019, arXiv:1905.09217.

    >>> Windows(256, 128).stride
    128
    """

    tokens: int
    stride: int | None = None
    aggregate: Aggregate = "max"
    max_windows: int | None = None
    topk: int = 3

    def __post_init__(self) -> None:
        for name in ("tokens", "stride", "max_windows", "topk"):
            value = getattr(self, name)
            if value is None and name in ("stride", "max_windows"):
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"windows.{name} must be an int of at least 1: got {value!r:.80}")
        if self.aggregate not in get_args(Aggregate):
            words = ", ".join(f'"{word}"' for word in get_args(Aggregate))
            raise ConfigError(f"windows.aggregate must be one of {words}: got {self.aggregate!r}")
        if self.stride is not None and self.stride > self.tokens:
            raise ConfigError(
                f"windows.stride must be at most windows.tokens, {self.tokens}, or text between "
                f"windows would be lost: got {self.stride}"
            )

    @classmethod
    def of(cls, value: object) -> Windows | None:
        """*value* as Windows: one, a mapping of its fields, or None. Raises ConfigError."""
        if value is None or isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            raise ConfigError(
                f"windows must be Windows(tokens, ...), a mapping of its fields or None: got "
                f"{value!r:.80}"
            )
        unknown = sorted(map(str, set(value) - set(cls.__dataclass_fields__)))
        if unknown or "tokens" not in value:
            raise ConfigError(
                f"windows must have tokens, and may have stride, aggregate, max_windows and topk: "
                f"got {', '.join(map(str, value)) or 'none of them'}"
            )
        return cls(**value)

    @property
    def step(self) -> int:
        """`stride`, or what stands for None."""
        return self.stride or max(1, self.tokens * 3 // 4)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


class Paragraphs(str):
    """A document in paragraphs, of which the *keep* closest to the query are scored, each alone.

    It is the str of its paragraphs with a blank line between two of them. *closeness* is what a
    first stage gave each paragraph, higher is closer; ties keep the order given. The document gets
    the logit and score of its best paragraph (of all that are kept, by `Windows.aggregate`), whose
    bounds are the ranking's `span`. Raises InputError. Source: Vespa's guide to cross-encoders
    over a multi-vector index.

    >>> document = Paragraphs(["It is red.", "It is 70 m tall."], closeness=[0.1, 0.9])
    >>> document.kept
    ((12, 28),)
    """

    __slots__ = ("bounds", "kept")

    bounds: tuple[tuple[int, int], ...]
    kept: tuple[tuple[int, int], ...]

    def __new__(
        cls, paragraphs: Sequence[str], *, closeness: Sequence[float], keep: int = 1
    ) -> Self:
        """Join *paragraphs*, one or more, of which *closeness* has one number each."""
        _check_paragraphs(paragraphs, closeness, keep)
        paragraphs = [whole(paragraph) for paragraph in paragraphs]  # as they are read
        document = super().__new__(cls, "\n\n".join(paragraphs))
        starts = [0]
        for paragraph in paragraphs:
            starts.append(starts[-1] + len(paragraph) + 2)
        document.bounds = tuple(
            (start, start + len(text)) for start, text in zip(starts, paragraphs, strict=False)
        )
        closest = sorted(range(len(paragraphs)), key=lambda at: -closeness[at])[:keep]
        document.kept = tuple(document.bounds[at] for at in sorted(closest))
        return document

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Paragraphs):
            return str.__eq__(self, other) and self.kept == other.kept
        return False if isinstance(other, str) else NotImplemented

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((str(self), self.kept))

    def __str__(self) -> str:
        return str.__str__(self)

    def __reduce__(self) -> tuple[Any, ...]:
        texts = [str.__getitem__(self, slice(*bounds)) for bounds in self.bounds]
        kept = [float(bounds in self.kept) for bounds in self.bounds]
        return _again, (texts, kept, len(self.kept))


def _again(texts: list[str], closeness: list[float], keep: int) -> Paragraphs:
    return Paragraphs(texts, closeness=closeness, keep=keep)


def _check_paragraphs(texts: Any, closeness: Any, keep: object) -> None:
    several = isinstance(texts, Sequence) and not isinstance(texts, str)
    if not several or not texts or not all(isinstance(text, str) for text in texts):
        raise InputError(f"paragraphs must be one or more str: got {texts!r:.80}")
    numbers = list(closeness)
    if len(numbers) != len(texts):
        raise InputError(
            f"closeness must hold one number per paragraph: got {len(numbers)} for {len(texts)}"
        )
    for at, number in enumerate(numbers):
        if not isinstance(number, Real) or isinstance(number, bool) or math.isnan(number):
            raise InputError(f"closeness[{at}] must be a number: got {number!r:.80}")
    if isinstance(keep, bool) or not isinstance(keep, int) or keep < 1:
        raise InputError(f"keep must be an int of at least 1: got {keep!r:.80}")
