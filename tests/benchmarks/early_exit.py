"""What an early exit of the bundled model saves and costs: layer-tokens and nDCG@10.

    taskset -c 1 python -m tests.benchmarks.early_exit DATA [--choose 100] [--queries 200]
        [--candidates 50] [--states FOLDER] [--minutes 60]

DATA holds nq_qed, selqa and scifact. Settings are chosen on questions of Natural Questions' train
part, frozen, and then measured once, on three sets that neither the heads nor the choice have seen:
Natural Questions dev, SelQA test (sentences of all sections in one corpus) and SciFact test.
Candidates are BM25's best.

Two settings are frozen: the one that loses least of those that save 1.8 times, and the one that
saves most of those that lose at most 0.002. Layer-tokens are tokens times the layers that each ran;
no clock is read. Intervals are a paired bootstrap's over queries, 95 %.

Each candidate runs through the int8 graph once: what it has after each layer that may be an exit,
and after the last, says what any setting would answer. That an engine answers so, bit for bit, is
what `tests/scorers/test_early_exit_properties.py` holds, and the first query of each set is asked
of a real one here. FOLDER keeps a file per query, so that a run may be stopped and gone on with:
what it holds is the network's, whatever the heads and settings.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ir_measures
import numpy as np
from ir_measures import nDCG
from numpy.typing import NDArray

from rerank_adapters import EarlyExit, Reranker, RerankerConfig
from rerank_adapters.checkpoints import HEADS
from rerank_adapters.cli.collection import read_collection
from rerank_adapters.cli.evaluate import bm25_run
from rerank_adapters.early_exit import ExitHead, pool
from rerank_adapters.engine.batching import iterate_batches
from rerank_adapters.loading import bundled, find
from rerank_adapters.loading.assembly import start
from rerank_adapters.loading.exits import read_heads
from rerank_adapters.loading.meaning import read
from rerank_adapters.protocols import Call
from tests.benchmarks.texts import machine

LAYERS = 6
STOPS = (2, 3, 4)
KEEPS = (4, 6, 8, 10, 15, 20)
SAVES, LOSES = 1.8, 0.002
WIDTH = 384
CHOICE, MEASURED = "nq_qed train", ("selqa test", "nq_qed dev", "scifact test")
COLUMNS = (
    *("set", "queries", "layer", "keep", "fewer layer-tokens", "nDCG@10", "with exit", "loss"),
    *("95 %", "missed"),
)
DRAWS = 10_000
CONFIG = RerankerConfig(backend="onnx", dtype="int8", num_threads=1)

Heads = dict[int, ExitHead]


@dataclass(frozen=True, slots=True)
class Seen:
    """One query's candidates: tokens, last logit, and pooled states by layer."""

    query: str
    ids: list[str]
    lengths: NDArray[np.int64]
    whole: NDArray[np.float32]
    pooled: dict[int, NDArray[np.float32]]

    def ranked(self, heads: Heads, stop: EarlyExit | None) -> tuple[list[str], int]:
        """Ids, best first, and layer-tokens, with *stop* or without one."""
        whole, lengths = self.whole, self.lengths
        if stop is None or len(whole) <= stop.keep:
            order = np.argsort(-whole, kind="stable")
            return [self.ids[at] for at in order], LAYERS * int(lengths.sum())
        best = np.argsort(-heads[stop.layer](self.pooled[stop.layer]), kind="stable")
        going = np.sort(best[: stop.keep])
        order = np.concatenate((going[np.argsort(-whole[going], kind="stable")], best[stop.keep :]))
        work = stop.layer * lengths.sum() + (LAYERS - stop.layer) * lengths[going].sum()
        return [self.ids[at] for at in order], int(work)


class Network:
    """The bundled model's int8 graph in its parts."""

    def __init__(self, states: Path | None) -> None:
        found = find(CONFIG)
        self._meaning = read(found)
        self._backend: Any = start(found, self._meaning).backends[0]
        self._states = states

    def see(self, name: str, query: str, text: str, documents: dict[str, str]) -> Seen:
        """Run one query's candidates through all layers, or read what they gave before."""
        if self._states is None:
            return self._run(query, text, documents)
        self._states.mkdir(exist_ok=True)
        file = self._states / f"{name} {query}.npz"
        if file.is_file():
            with np.load(file) as kept:
                pooled = {layer: kept[f"layer_{layer}"] for layer in STOPS}
                return Seen(query, kept["ids"].tolist(), kept["lengths"], kept["whole"], pooled)
        seen = self._run(query, text, documents)
        arrays: dict[str, Any] = {f"layer_{layer}": seen.pooled[layer] for layer in STOPS}
        np.savez(file, ids=seen.ids, lengths=seen.lengths, whole=seen.whole, **arrays)
        return seen

    def _run(self, query: str, text: str, documents: dict[str, str]) -> Seen:
        pairs = [(text, document) for document in documents.values()]
        batch = self._meaning.tokenizer.encode(pairs, Call().prompts, None).batch
        whole = np.zeros(len(pairs), np.float32)
        pooled = {layer: np.zeros((len(pairs), 2 * WIDTH), np.float32) for layer in STOPS}
        for rows in iterate_batches(
            batch.lengths, max_batch_tokens=self._backend.traits.batch_tokens
        ):
            part, hidden = batch.take(rows), None
            parts = self._backend._parts.until(STOPS[-1])
            for layer, session in zip(STOPS, parts, strict=True):  # each layer once
                hidden = self._backend._run_parts(part, [session], hidden)
                each = zip(hidden, part.lengths.tolist(), strict=True)
                pooled[layer][rows] = np.stack([pool(row[:length]) for row, length in each])
            rest = self._backend._parts.after(STOPS[-1])
            whole[rows] = self._backend._run_parts(part, rest, hidden)[:, 0]
        return Seen(query, [*documents], batch.lengths, whole, pooled)


class Asked:
    """A set's queries in a drawn order, with their candidates."""

    def __init__(self, name: str, folder: Path, queries: int, candidates: int) -> None:
        self.name = name
        self.collection = read_collection(folder)
        names = sorted(self.collection.queries)
        random.Random(0).shuffle(names)
        self.queries = names[:queries]
        self._retrieve = bm25_run(self.collection, candidates)

    def candidates(self, query: str) -> dict[str, str]:
        """Id and text of each, BM25's best first."""
        rows = self._retrieve(self.collection.queries[query])
        ids = [name for name, _ in rows]
        return dict(zip(ids, self.collection.documents.texts(ids), strict=True))

    def seen(self, network: Network, end: float) -> list[Seen]:
        """Each query's candidates, until it is *end*; one is always seen."""
        found: list[Seen] = []
        for query in self.queries:
            if not found or time.monotonic() < end:
                text = self.collection.queries[query]
                found.append(network.see(self.name, query, text, self.candidates(query)))
        return found

    def gains(
        self, seen: Sequence[Seen], heads: Heads, stop: EarlyExit | None
    ) -> NDArray[np.float64]:
        """nDCG@10 of each query."""
        run = {
            one.query: {name: -float(at) for at, name in enumerate(one.ranked(heads, stop)[0])}
            for one in seen
        }
        qrels = {one.query: self.collection.qrels[one.query] for one in seen}
        found = {it.query_id: it.value for it in ir_measures.iter_calc([nDCG @ 10], qrels, run)}
        return np.array([found[one.query] for one in seen])


def saved(seen: Sequence[Seen], heads: Heads, stop: EarlyExit) -> float:
    """How many times fewer layer-tokens *stop* takes."""
    with_exit = sum(one.ranked(heads, stop)[1] for one in seen)
    return sum(one.ranked(heads, None)[1] for one in seen) / with_exit


def bounds(losses: NDArray[np.float64]) -> tuple[float, float]:
    """The 95 % interval of the mean loss, by a paired bootstrap over queries."""
    generator = np.random.default_rng(0)
    draws = generator.integers(0, len(losses), (DRAWS, len(losses)))
    low, high = np.percentile(losses[draws].mean(axis=1), (2.5, 97.5))
    return float(low), float(high)


def choose(asked: Asked, seen: Sequence[Seen], heads: Heads) -> list[EarlyExit]:
    """The settings that are frozen; every one that was tried is printed."""
    print(f"\n## Chosen on {len(seen)} questions of {asked.name}\n")
    print("| layer | keep | fewer layer-tokens | loss of nDCG@10 | 95 % |\n|---|---|---|---|---|")
    tried = []
    whole = asked.gains(seen, heads, None)
    for layer, keep in itertools.product(STOPS, KEEPS):
        stop = EarlyExit(layer=layer, keep=keep)
        losses = whole - asked.gains(seen, heads, stop)
        tried.append((stop, saved(seen, heads, stop), float(losses.mean())))
        low, high = bounds(losses)
        print(
            f"| {layer} | {keep} | {tried[-1][1]:.2f}x | {losses.mean():+.4f} "
            f"| [{low:+.4f}, {high:+.4f}] |"
        )
    fast = [one for one in tried if one[1] >= SAVES]
    careful = [one for one in tried if one[2] <= LOSES]
    chosen = [min(fast, key=lambda one: one[2])[0]] if fast else []
    chosen += [max(careful, key=lambda one: one[1])[0]] if careful else []
    return list(dict.fromkeys(chosen))


def report(asked: Asked, seen: Sequence[Seen], heads: Heads, stops: Sequence[EarlyExit]) -> None:
    """One line a setting, and what is missed."""
    whole = asked.gains(seen, heads, None)
    for stop in stops:
        gains, times = asked.gains(seen, heads, stop), saved(seen, heads, stop)
        low, high = bounds(whole - gains)
        loss = float((whole - gains).mean())
        missed = [] if times >= SAVES else [f"under {SAVES}x"]
        missed += [] if loss <= LOSES else [f"loses over {LOSES}"]
        missed += [] if high <= 0.01 else ["upper bound over 0.01"]
        missed += [] if len(seen) >= 200 else ["under 200 queries"]
        print(
            f"| {asked.name} | {len(seen)} | {stop.layer} | {stop.keep} | {times:.2f}x "
            f"| {whole.mean():.4f} | {gains.mean():.4f} | {loss:+.4f} | [{low:+.4f}, {high:+.4f}] "
            f"| {', '.join(missed) or 'nothing'} |"
        )


def confirm(asked: Asked, one: Seen, heads: Heads, stops: Sequence[EarlyExit]) -> None:
    """A real engine answers as *one* says, bit for bit."""
    documents = asked.candidates(one.query)
    for stop in stops:
        with Reranker.from_config(replace(CONFIG, early_exit=stop)) as reranker:
            query = asked.collection.queries[one.query]
            ranking = reranker.rerank(query, [*documents.values()])
        assert [one.ids[at] for at in ranking.indices] == one.ranked(heads, stop)[0]


def beir(folder: Path, rows: Iterable[tuple[str, dict[str, str], list[str]]]) -> Path:
    """A collection on disk of (question, documents by id, ids of those that answer it)."""
    folder.mkdir()
    documents: dict[str, str] = {}
    queries, judged = [], ["query-id\tcorpus-id\tscore"]
    for number, (question, texts, answers) in enumerate(rows):
        documents |= texts
        queries.append(json.dumps({"_id": str(number), "text": question}))
        judged += [f"{number}\t{name}\t1" for name in answers]
    lines = [json.dumps({"_id": name, "text": text}) for name, text in documents.items()]
    for name, content in (("corpus.jsonl", lines), ("queries.jsonl", queries)):
        (folder / name).write_text("\n".join(content), "utf-8")
    (folder / "qrels.tsv").write_text("\n".join(judged), "utf-8")
    return folder


def nq_train(data: Path) -> Iterator[tuple[str, dict[str, str], list[str]]]:
    """Questions over the paragraphs of the train part alone."""
    known: dict[str, str] = {}
    for line in (data / "nq_qed" / "train.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        text = f"{row['title']} {row['paragraph']}"
        name = known.setdefault(text, f"p{len(known)}")
        yield row["question"], {name: text}, [name]


def selqa_test(data: Path) -> Iterator[tuple[str, dict[str, str], list[str]]]:
    """Questions over the sentences of all sections; an equal sentence is one document."""
    known: dict[str, str] = {}
    rows: list[dict[str, Any]] = json.loads(
        (data / "selqa" / "selqa-ass-test.json").read_text("utf-8")
    )
    for row in rows:
        names = [known.setdefault(text, f"s{len(known)}") for text in row["candidates"]]
        texts = dict(zip(names, row["candidates"], strict=True))
        yield row["question"], texts, [names[at] for at in row["answers"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--choose", type=int, default=100)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--candidates", type=int, default=50)
    parser.add_argument("--states", type=Path)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    options = parser.parse_args()
    end = time.monotonic() + options.minutes * 60
    print(f"# Early exit\n\n{machine()}\n\nint8, BM25's {options.candidates} best", flush=True)
    network, heads = Network(options.states), read_heads(bundled.folder() / HEADS)
    with tempfile.TemporaryDirectory() as made:
        train = beir(Path(made) / "train", nq_train(options.data))
        asked = Asked(CHOICE, train, options.choose, options.candidates)
        stops = choose(asked, asked.seen(network, end), heads)
        selqa = beir(Path(made) / "selqa", selqa_test(options.data))
        folders = (selqa, options.data / "nq_qed" / "dev_beir", options.data / "scifact")
        print("\n## Measured once, as chosen\n")
        print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|", flush=True)
        for name, folder in zip(MEASURED, folders, strict=True):
            asked = Asked(name, folder, options.queries, options.candidates)
            seen = asked.seen(network, end)
            confirm(asked, seen[0], heads, stops)
            report(asked, seen, heads, stops)


if __name__ == "__main__":
    main()
