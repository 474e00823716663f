"""Which of several labels means "relevant"."""

from __future__ import annotations

import re

from ..checkpoints import ABSENT, Checkpoint
from ..errors import ConfigError, ModelError

_AFFIRMS = {"relevant", "positive", "true", "yes", "entailment", "related", "match", "duplicate"}
_DENIES = {"negative", "false", "no", "contradiction"}


def label_of(checkpoint: Checkpoint, asked: int | str | None) -> int:
    """Return the index of the label whose lead is the score, 1 of two unless their names deny it.

    Raises ConfigError for a label that is not there, ModelError where no rule says which it is.
    """
    labels, names = checkpoint.labels, _names(checkpoint)
    if asked is not None:
        return _asked(asked, labels, names)
    if checkpoint.manifest.label not in (ABSENT, None):
        return int(checkpoint.manifest.label)
    if labels > 2:
        raise ModelError(
            f"expected a model with 1 or 2 labels: got {labels} ({', '.join(names)}); pass label= "
            'with the one that means "relevant", such as label="entailment" for an NLI model'
        )
    if labels == 2 and (_affirms(names[0]) or _denies(names[1])) and not _affirms(names[1]):
        raise ModelError(
            f'of two labels the second means "relevant", and these are called {names[0]!r} and '
            f"{names[1]!r}: pass label=0 or label={names[0]!r} if it is the first, label=1 if not"
        )
    return 1


def _asked(asked: int | str, labels: int, names: list[str]) -> int:
    if labels == 1:
        raise ConfigError(f"label must be None for a model with 1 label: got {asked!r}")
    if isinstance(asked, str):
        found = [index for index, name in enumerate(names) if name.lower() == asked.lower()]
        if len(found) == 1:
            return found[0]
    elif 0 <= asked < labels:
        return asked
    raise ConfigError(
        f"label must be an index below {labels} or one of {', '.join(names)}: got {asked!r}"
    )


def _names(checkpoint: Checkpoint) -> list[str]:
    stated = checkpoint.config.get("id2label") or {}
    return [str(stated.get(str(index), f"LABEL_{index}")) for index in range(checkpoint.labels)]


def _affirms(name: str) -> bool:
    return name.lower() in _AFFIRMS


def _denies(name: str) -> bool:
    plain = name.lower()
    negated = re.sub(r"^(ir|un|in|dis|not?|non|mis)[ _-]*", "", plain)
    return plain in _DENIES or (negated != plain and negated in _AFFIRMS)
