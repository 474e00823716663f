"""Early exits for the bundled model: its graphs cut after layers 2, 3 and 4, and heads for them.

    python notebooks/training/exits.py DATA [--queries 120] [--candidates 25]

DATA holds the training sets that `data.py` reads; the measuring sets are never opened. Heads are
fitted on the int8 graph that ships, frozen, from the same number of questions of each set with
BM25's best passages. The weights file and both whole graphs stay as they are, byte for byte.
"""

import argparse
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from data import nq_qed, scifact, selqa, squad

from rerank_adapters import RerankerConfig
from rerank_adapters.checkpoints import HEADS, ExitFiles, Manifest
from rerank_adapters.checkpoints.json import write_json
from rerank_adapters.cli.corpus import Bm25
from rerank_adapters.export import FILE_NAMES, gate, network, parts
from rerank_adapters.loading import bundled
from rerank_adapters.loading.exit_training import Fit, train_heads
from rerank_adapters.parity.comparison import BOUNDS

LAYERS = (2, 3, 4)
SETS = (nq_qed, squad, scifact, selqa)
MOST_TOKENS = 320
"""Pairs are cut to as many: means over more tokens say little else."""


def cut(folder: Path) -> None:
    """Write the parts of both graphs beside them; ModelError where they drift from the whole."""
    encoder = network.load(bundled.unpack())
    probes = gate.probe(encoder)
    states = parts.hidden_states(network.build(encoder), probes[0], LAYERS)
    for dtype in ("float32", "int8"):
        file = folder / FILE_NAMES[dtype]
        written = parts.write(file, parts.boundaries(file, probes[0], states))
        parts.check(written, file, probes, BOUNDS[dtype].batch_drift)
    manifest = Manifest.read(folder) or Manifest()
    replace(manifest, exits=ExitFiles(LAYERS)).write(folder)


def fitted(data: Path, queries: int, candidates: int) -> Fit:
    """Heads of the int8 graph, from *queries* of each set with their best *candidates*."""
    asked = list(_asked(data, queries, candidates))
    random.Random(0).shuffle(asked)
    return train_heads(RerankerConfig(backend="onnx", max_length=MOST_TOKENS), asked, layers=LAYERS)


def _asked(data: Path, queries: int, candidates: int) -> Iterator[tuple[str, list[str]]]:
    for load in SETS:
        for found in load(data, random.Random(0)):
            index = Bm25(found.documents)
            questions = found.split(held=False)
            for question in random.Random(1).sample(questions, min(queries, len(questions))):
                rows = index.search(question.text, candidates)
                yield question.text, [found.documents[at] for at, _ in rows]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--queries", type=int, default=120)
    parser.add_argument("--candidates", type=int, default=25)
    arguments = parser.parse_args()
    target = bundled.folder()
    cut(target)
    fit = fitted(arguments.data, arguments.queries, arguments.candidates)
    fit.write(target / HEADS)
    shipped = [*bundled.verify(target), "rerank_adapters.json", HEADS]
    shipped += [file.name for file in target.glob("*_part*.onnx")]
    sums = {name: bundled.checksum_of(target / name) for name in sorted(set(shipped))}
    write_json(target / bundled.CHECKSUMS, sums)
    for layer in LAYERS:
        print(layer, f"explained {fit.explained[layer]:.3f}", f"kept {fit.kept[layer]:.3f}")
