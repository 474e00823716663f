"""Exit heads fitted on a frozen network: hidden states of some layers → its own last logit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from ..checkpoints import ExitFiles, Manifest
from ..checkpoints.tensors import write_tensors
from ..config import RerankerConfig
from ..early_exit import CUT_BY_TORCH, ExitHead
from ..engine.batching import iterate_batches
from ..errors import ConfigError, InputError
from ..protocols import BackendTraits, Call, StagedBackend
from ..tokens import TokenBatch
from .assembly import start
from .exits import BIAS, WEIGHT
from .finding import find
from .meaning import read

RIDGE = 1e-2
"""What is added to the mean square of each number of the states: few pairs fit no noise then."""

HELD_OUT = 5
"""Every so many queries one is left out of the fit, to say how good it is."""

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Fit:
    """Heads by layer, and how well they foretell the last logit of queries that were left out.

    explained  share of the last logit's variance, by layer
    kept       share of a query's ten best by it that are among the fifteen best by the exit logit
    """

    heads: dict[int, ExitHead]
    pairs: int
    explained: dict[int, float]
    kept: dict[int, float]

    def write(self, file: Path) -> None:
        """Write the heads to *file*, and into the manifest beside it where a checkpoint is there.

        Raises ConfigError where the folder cannot be written.
        """
        tensors: dict[str, NDArray[np.generic]] = {}
        for layer, head in self.heads.items():
            tensors[WEIGHT.format(layer)] = head.weight[None]
            tensors[BIAS.format(layer)] = np.array([head.bias], np.float32)
        folder = file.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_tensors(file, tensors)
            if (folder / "config.json").is_file():
                exits = ExitFiles(tuple(sorted(self.heads)), file.name)
                replace(Manifest.read(folder) or Manifest(), exits=exits).write(folder)
        except OSError as error:
            raise ConfigError(
                f"heads must go into a folder that can be written: got {str(file)!r} ({error})"
            ) from error


@dataclass(slots=True)
class _Squares:
    """The normal equations of a linear fit with a constant, summed pair by pair in float64."""

    left: Floats | float = 0.0
    right: Floats | float = 0.0
    pairs: int = 0

    def add(self, pooled: Floats, target: Floats) -> None:
        rows = np.concatenate((pooled, np.ones((len(pooled), 1))), axis=1)
        self.left = self.left + rows.T @ rows
        self.right = self.right + rows.T @ target
        self.pairs += len(rows)

    def head(self, layer: int, ridge: float) -> ExitHead:
        """The least squares, every weight drawn to 0 by *ridge* per pair; the constant is free."""
        left = np.array(self.left)
        weights = np.arange(len(left) - 1)
        left[weights, weights] += ridge * self.pairs
        solved = np.linalg.solve(left, self.right)
        return ExitHead(layer, solved[:-1].astype(np.float32), float(np.float32(solved[-1])))


@dataclass(slots=True)
class _Layer:
    """What is known of one layer: its sums, and of queries left out states and last logits."""

    sums: _Squares = field(default_factory=_Squares)
    left_out: list[tuple[Floats, Floats]] = field(default_factory=list)


def train_heads(
    config: RerankerConfig,
    queries: Iterable[tuple[str, Sequence[str]]],
    *,
    layers: Sequence[int] = (2, 3, 4),
    ridge: float = RIDGE,
    on_query: Callable[[], None] = lambda: None,
) -> Fit:
    """Fit a head for each of *layers* of *config*'s model, which stays as it is.

    *queries* are queries with their candidates; no labels: what a head foretells is the logit of
    the last layer. Least squares in closed form, float64. Raises ConfigError where the network
    cannot stop after a layer, InputError without candidates. Source: Hoerl & Kennard, 1970.
    """
    found = find(config)
    meaning = read(found)
    loaded = start(found, meaning)
    try:
        backend = cast("StagedBackend", loaded.backends[0])
        _check(layers, backend.traits, found.backend)
        known = {layer: _Layer() for layer in sorted(set(layers))}
        for number, (query, documents) in enumerate(queries):
            pairs = [(query, document) for document in documents if document.strip()]
            if pairs:
                batch = meaning.tokenizer.encode(pairs, Call().prompts, None).batch
                pooled, target = run_through(backend, batch, list(known), meaning.family.keys)
                _take(known, pooled, target, left_out=number % HELD_OUT == HELD_OUT - 1)
            on_query()
    finally:
        loaded.engine.close()
    return _fitted(known, ridge)


def _check(layers: Sequence[int], traits: BackendTraits, backend: str) -> None:
    able = traits.exit_layers
    if not able:
        why = traits.why_whole or "this backend runs networks whole"
        cure = f'pass backend="torch", which cuts networks of {", ".join(CUT_BY_TORCH)}'
        if backend == "torch":
            cure = "train them for a model that it cuts"
        raise ConfigError(f"exit heads cannot be trained here: {why}: {cure}")
    if not layers or not set(layers) <= set(able):
        raise ConfigError(
            f"layers must be some of {', '.join(map(str, able))}: got {', '.join(map(str, layers))}"
        )


def run_through(
    backend: StagedBackend,
    batch: TokenBatch,
    layers: Sequence[int],
    keys: Callable[[NDArray[np.float32]], NDArray[np.float32]],
) -> tuple[dict[int, Floats], Floats]:
    """Pooled states after each of *layers*, ascending, and the last logit, of every pair."""
    pooled: dict[int, list[Floats]] = {layer: [] for layer in layers}
    target, order = [], []
    for rows in iterate_batches(batch.lengths, max_batch_tokens=backend.traits.batch_tokens):
        part = batch.take(rows)
        order.append(rows)
        states, after = None, 0
        for layer in layers:  # each layer of the network once
            each, states = backend.start(part, layer, states, after=after)
            pooled[layer].append(each.astype(np.float64))
            after = layer
        target.append(keys(backend.resume(part, states or [], after)).astype(np.float64))
    back = np.argsort(np.concatenate(order))
    whole = {layer: np.concatenate(parts)[back] for layer, parts in pooled.items()}
    return whole, np.concatenate(target)[back]


def _take(
    known: dict[int, _Layer], pooled: dict[int, Floats], target: Floats, *, left_out: bool
) -> None:
    for layer, it in known.items():
        if left_out:
            it.left_out.append((pooled[layer], target))
        else:
            it.sums.add(pooled[layer], target)


def _fitted(known: dict[int, _Layer], ridge: float) -> Fit:
    heads, explained, kept = {}, {}, {}
    for layer, it in known.items():
        if not it.sums.pairs:
            raise InputError("queries must have candidates with text: got none")
        head = it.sums.head(layer, ridge)
        explained[layer], kept[layer] = _quality(head, it.left_out)
        for pooled, target in it.left_out:  # measured by now: they are worth fitting too
            it.sums.add(pooled, target)
        heads[layer] = it.sums.head(layer, ridge)
    return Fit(heads, it.sums.pairs, explained, kept)


def _quality(head: ExitHead, queries: Sequence[tuple[Floats, Floats]]) -> tuple[float, float]:
    """(share of the variance explained, share of the ten best among the fifteen), NaN for none."""
    if not queries:
        return float("nan"), float("nan")
    guessed = [head(pooled.astype(np.float32)).astype(np.float64) for pooled, _ in queries]
    true = np.concatenate([target for _, target in queries])
    error = float(((np.concatenate(guessed) - true) ** 2).sum())
    spread = float(((true - true.mean()) ** 2).sum())
    shares = []
    for guess, (_, target) in zip(guessed, queries, strict=True):
        best = np.argsort(-target, kind="stable")[:10]
        going = np.argsort(-guess, kind="stable")[:15]
        shares.append(len(np.intersect1d(best, going)) / len(best))
    return (1 - error / spread if spread else float("nan")), float(np.mean(shares))
