"""`exits train`: heads for early exits, fitted on queries and their candidates, without labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..checkpoints import HEADS
from ..config import RerankerConfig
from ..loading.exit_training import Fit, train_heads
from .collection import Documents, read_queries, read_run
from .console import progress
from .corpus import Bm25

Candidates = Callable[[str, str], list[str]]


def train(
    corpus: Path,
    queries: Path,
    folder: Path,
    config: RerankerConfig,
    *,
    run: Path | None,
    candidates: int,
    layers: Sequence[int],
) -> tuple[Path, Fit]:
    """Fit heads on *queries* and the best *candidates* of each, and write them into *folder*.

    Candidates are those of the TREC *run*, without one BM25's. Raises InputError (the files),
    ConfigError and ModelError (the model).
    """
    documents, asked = Documents(corpus), read_queries(queries)
    retrieve = _retriever(documents, run, candidates)

    def pairs() -> Iterator[tuple[str, list[str]]]:
        for name, text in asked.items():
            yield text, documents.texts(retrieve(name, text))

    with progress("training", len(asked)) as advance:
        fit = train_heads(config, pairs(), layers=layers, on_query=advance)
    file = folder / HEADS
    fit.write(file)
    return file, fit


def _retriever(documents: Documents, run: Path | None, count: int) -> Candidates:
    if run is not None:
        rows = read_run(run, count)
        return lambda query, _: [name for name, _ in rows.get(query, [])]
    ids, index = documents.ids, Bm25(documents.stream())
    return lambda _, text: [ids[at] for at, _ in index.search(text, count)]
