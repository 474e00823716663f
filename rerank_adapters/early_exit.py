"""Early exit: the weak candidates of a query stop after a few layers, the others go on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
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
    """Where candidates may stop, and how many of a query's go on.

    layer  layers that all of a query's candidates run
    keep   how many go on to the last one: those with the highest exit logits, ties by index
    heads  the file of exit heads, as `rerank-adapters exits train` writes it; None: the model's own

    A query with at most *keep* candidates is scored as without it. Raises ConfigError. Source: Xin
    et al., 2020, "Early Exiting BERT for Efficient Document Ranking" (SustaiNLP).

    >>> EarlyExit(layer=3, keep=15).to_dict()
    {'layer': 3, 'keep': 15, 'heads': None}
    """

    layer: int
    keep: int
    heads: str | None = None

    def __post_init__(self) -> None:
        for name in ("layer", "keep"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(
                    f"early_exit.{name} must be an int of at least 1: got {value!r:.80}"
                )
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

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


@dataclass(frozen=True, slots=True, eq=False)
class ExitHead:
    """Reads an exit logit off the hidden states after `layer`: linear in what `pool` makes of them.

    weight is float32 (2 · width,), bias one number. Two heads of equal numbers are equal, wherever
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
        """float32 (pairs,) of *pooled*, float32 (pairs, 2 · width).

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


def pool(states: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32 (2 · width,) of one pair's hidden states (tokens, width): the first row, the mean."""
    return np.concatenate((states[0], states.mean(axis=0, dtype=np.float64).astype(np.float32)))
