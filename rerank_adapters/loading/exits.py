"""The exit that a configuration asks for: its head, read and checked against what can stop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..checkpoints import ABSENT, Checkpoint, inside
from ..checkpoints.tensors import read_tensors
from ..config import RerankerConfig
from ..early_exit import ExitHead
from ..errors import ConfigError, ModelError
from ..protocols import BackendTraits
from .finding import find

WEIGHT, BIAS = "layer_{}.weight", "layer_{}.bias"
"""How a head's tensors are called in a file of heads: float32 (1, 3 · width) and (1,)."""

CURE = (
    'rerank-adapters export --exits HEADS writes a graph in parts, for backend="onnx", of heads '
    "that rerank-adapters exits train fits"
)


@dataclass(frozen=True, slots=True, eq=False)
class ChosenExit:
    """Heads, first to last, and how many of a query's candidates go on from each."""

    steps: tuple[tuple[ExitHead, int], ...]

    @property
    def identity(self) -> tuple[tuple[int, int, str], ...]:
        """What makes two of them answer alike: the numbers of heads, not where they lie."""
        return tuple((head.layer, keep, head.digest) for head, keep in self.steps)

    def __str__(self) -> str:
        """For people, as facts of a model tell it."""
        each = [f"after layer {head.layer} the best {keep}" for head, keep in self.steps]
        return f"{', '.join(each)} of a query's candidates go on"


def chosen_exit(
    config: RerankerConfig, checkpoint: Checkpoint, traits: Sequence[BackendTraits]
) -> ChosenExit | None:
    """What *config* asks for, None where it asks for none.

    Raises ConfigError where the network cannot stop there, or nobody trained a head for it.
    """
    asked = config.early_exit
    if asked is None:
        return None
    for each in traits:
        if not each.exit_layers:
            why = each.why_whole or "this backend runs networks whole"
            raise ConfigError(f"early_exit cannot be had here: {why}: {CURE}")
        for layer, _ in asked.steps:
            if layer not in each.exit_layers:
                able = ", ".join(map(str, each.exit_layers))
                raise ConfigError(f"early_exit.layer must be one of {able}: got {layer}")
    file = _file(asked.heads, checkpoint)
    heads = read_heads(file)
    for layer, _ in asked.steps:
        if layer not in heads:
            able = ", ".join(map(str, sorted(heads)))
            raise ConfigError(f"early_exit.layer must have a head in {file} ({able}): got {layer}")
    return ChosenExit(tuple((heads[layer], keep) for layer, keep in asked.steps))


def head_layers(config: RerankerConfig, heads: str | None = None) -> list[int]:
    """Layers that *config*'s model has heads for, or those in the file *heads*, ascending.

    Raises ConfigError where there are none, ModelError.
    """
    return sorted(read_heads(_file(heads, find(config).checkpoint)))


def read_heads(file: Path) -> dict[int, ExitHead]:
    """The heads in *file*, by layer. Raises ModelError, ConfigError where there is no such file."""
    if not file.is_file():
        raise ConfigError(
            f"early_exit.heads must be a file of exit heads: got {str(file)!r}; "
            "rerank-adapters exits train makes one"
        )
    tensors = read_tensors(file)
    heads = {}
    for name, values in tensors.items():
        layer = name.removeprefix("layer_").removesuffix(".weight")
        bias = tensors.get(BIAS.format(layer))
        if not name.endswith(".weight"):
            continue
        if not layer.isdecimal() or bias is None or bias.size != 1 or values.dtype != np.float32:
            raise ModelError(f"{file} holds no exit heads: {name} has no layer or no bias")
        weight = np.array(values, np.float32).reshape(-1)
        heads[int(layer)] = ExitHead(int(layer), weight, float(bias.reshape(-1)[0]))
    if not heads:
        raise ModelError(
            f"{file} holds no exit heads: none of its tensors is called {WEIGHT.format('N')}; "
            "rerank-adapters exits train makes such a file"
        )
    return heads


def _file(given: str | None, checkpoint: Checkpoint) -> Path:
    if given is not None:
        return Path(given).expanduser()
    exits = checkpoint.manifest.exits
    if exits is ABSENT:
        raise ConfigError(
            "early_exit needs exit heads, and the checkpoint has none: rerank-adapters exits train "
            "fits them on your queries and candidates; name their file with early_exit.heads"
        )
    return inside(checkpoint.folder, exits.heads, said_in="exits in rerank_adapters.json")
