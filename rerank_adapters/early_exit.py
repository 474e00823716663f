"""Early exit: the weak candidates of a query stop after a few layers, the others go on."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ConfigError

HIDDEN = "hidden"
"""The hidden states that parts of a graph hand on: float32 (batch, sequence, width)."""

CUT_BY_TORCH = ("bert", "camembert", "modernbert", "roberta", "xlm-roberta")
"""Kinds of network whose layers are a plain chain between embeddings and a head."""


@dataclass(frozen=True, slots=True)
class EarlyExit:
    """Where candidates may stop, and how many of a query's go on from there.

    layer  layers that all of a query's candidates run; or several numbers, ascending
    keep   how many go on: those with the highest exit logits, ties by index; as many numbers, each
           smaller than the one before
    heads  the file of exit heads, as `rerank-adapters exits train` writes it; None: the model's own

    A query with no more candidates than go on anywhere is scored as without it; a layer that as
    many may pass as are left is no exit for that query. Raises ConfigError. Source: Xin et al.,
    2020, "Early Exiting BERT for Efficient Document Ranking" (SustaiNLP).

    >>> EarlyExit(layer=3, keep=15).to_dict()
    {'layer': 3, 'keep': 15, 'heads': None}
    >>> EarlyExit(layer=(2, 3, 4), keep=(40, 12, 4)).steps
    ((2, 40), (3, 12), (4, 4))
    """

    layer: int | Sequence[int]
    keep: int | Sequence[int]
    heads: str | None = None

    def __post_init__(self) -> None:
        layers, keeps = (_numbers(name, getattr(self, name)) for name in ("layer", "keep"))
        if len(layers) != len(keeps):
            raise ConfigError(
                "early_exit.layer and early_exit.keep must be as many numbers as each other: got "
                f"{len(layers)} and {len(keeps)}"
            )
        for name, values in (("layer", layers), ("keep", keeps[::-1])):
            if any(one >= other for one, other in itertools.pairwise(values)):
                order = "larger" if name == "layer" else "smaller"
                raise ConfigError(
                    f"early_exit.{name} must be numbers each {order} than the one before: got "
                    f"{getattr(self, name)!r:.80}"
                )
        for name, values in (("layer", layers), ("keep", keeps)):
            object.__setattr__(self, name, values if len(values) > 1 else values[0])
        if self.heads is not None:
            if not str(self.heads).strip():
                raise ConfigError("early_exit.heads must be a path, or None: got a blank one")
            object.__setattr__(self, "heads", str(self.heads))

    @classmethod
    def of(cls, value: object) -> EarlyExit | None:
        """*value* as an EarlyExit: one, a mapping of its fields, or None. Raises ConfigError."""
        if value is None or isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            raise ConfigError(
                "early_exit must be EarlyExit(layer, keep), a mapping of its fields or None: got "
                f"{value!r:.80}"
            )
        unknown = set(value) - set(cls.__dataclass_fields__)
        if unknown or not {"layer", "keep"} <= set(value):
            raise ConfigError(
                "early_exit must have layer and keep, and may have heads: got "
                f"{', '.join(map(str, value)) or 'none of them'}"
            )
        return cls(**value)

    @property
    def steps(self) -> tuple[tuple[int, int], ...]:
        """(layer, how many go on), first to last."""
        both = (_numbers(name, getattr(self, name)) for name in ("layer", "keep"))
        return tuple(zip(*both, strict=True))

    def __str__(self) -> str:
        """As the command line takes it, without the file of heads.

        >>> print(EarlyExit((3, 4), (12, 4)))
        layer=3+4,keep=12+4
        """
        layers, keeps = zip(*self.steps, strict=True)
        return f"layer={'+'.join(map(str, layers))},keep={'+'.join(map(str, keeps))}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: list(it) if isinstance(it, tuple) else it for name, it in values.items()}


def _numbers(name: str, value: object) -> tuple[int, ...]:
    """One number or several: an int, a sequence of them, or text such as "2+3"."""
    if isinstance(value, str) and all(part.isdecimal() for part in value.split("+")):
        value = [int(part) for part in value.split("+")]
    several = value if isinstance(value, list | tuple) else [value]
    if not several or not all(type(it) is int and it >= 1 for it in several):
        raise ConfigError(
            f"early_exit.{name} must be an int of at least 1, or several: got {value!r:.80}"
        )
    return tuple(several)


@dataclass(frozen=True, slots=True, eq=False)
class ExitHead:
    """Reads an exit logit off the hidden states after `layer`: linear in what `pool` makes of them.

    weight is float32 (3 · width,), bias one number. Two heads of equal numbers are equal, wherever
    they lie: `digest` is of these.
    """

    layer: int
    weight: NDArray[np.float32]
    bias: float
    digest: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        numbers = repr((self.layer, self.bias)).encode() + self.weight.tobytes()
        object.__setattr__(self, "digest", hashlib.sha256(numbers).hexdigest())

    def __call__(self, pooled: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 (pairs,) of *pooled*, float32 (pairs, 3 · width).

        Each row is summed by itself, in float64: a product of matrices would group terms by how
        many rows there are, and an exit logit must not depend on its company.
        """
        products = pooled.astype(np.float64) * self.weight
        logits: NDArray[np.float32] = (products.sum(axis=1) + self.bias).astype(np.float32)
        return logits

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ExitHead) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


def query_rows(ids: NDArray[np.int32]) -> slice:
    """Which of a pair's tokens are its query: those between the first and the first separator.

    The separator is the token that the pair ends with. Where there are none, the first token.

    >>> query_rows(np.array([101, 7, 8, 102, 9, 102], np.int32))
    slice(1, 3, None)
    """
    end = int(np.argmax(ids == ids[-1]))
    return slice(1, end) if end > 1 else slice(0, 1)


def pool(states: NDArray[np.float32], ids: NDArray[np.int32]) -> NDArray[np.float32]:
    """float32 (3 · width,) of one pair's hidden states (tokens, width), and the tokens' ids.

    The first row, the mean of all, the mean of the query's: what a query's tokens have found of
    themselves in the document shows layers earlier there than in the first row.
    """
    means = (rows.mean(axis=0, dtype=np.float64) for rows in (states, states[query_rows(ids)]))
    return np.concatenate((states[0], *(mean.astype(np.float32) for mean in means)))
