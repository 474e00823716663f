"""What an early exit of the bundled model saves and costs: layer-tokens and nDCG@10.

    taskset -c 1 python -m tests.benchmarks.early_exit DATA [--choose 100] [--queries 200]
        [--candidates 50] [--states FOLDER] [--minutes 60]

DATA holds nq_qed, selqa and scifact. Settings are chosen on questions of Natural Questions' train
part and of SelQA's dev part, frozen, and then measured once, on three sets that neither the heads
nor the choice have seen: Natural Questions dev, SelQA test (both of SelQA's over the sentences of
all their sections) and SciFact test. Candidates are BM25's best.

Two settings are frozen: of those that save 1.85 times, which leaves 1.8 on sets of other lengths,
the one that loses least of nDCG@10 by the whole model's own scores as grades, which every candidate
has and few questions' labels; and of those that lose at most 0.002 by labels, and 0.01 by the upper
bound, the one that saves most. Layer-tokens are tokens times the layers that each ran; no clock is
read. Intervals are a paired bootstrap's over queries, 95 %.

Each candidate runs through the int8 graph once: what it has after each layer that may be an exit,
and after the last, says what any setting would answer. That an engine answers so, bit for bit, is
what `tests/scorers/test_early_exit_steps.py` holds, and the first query of each set is asked
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
from rerank_adapters.early_exit import ExitHead
from rerank_adapters.loading import bundled, find
from rerank_adapters.loading.assembly import start
from rerank_adapters.loading.exit_training import run_through
from rerank_adapters.loading.exits import read_heads
from rerank_adapters.loading.meaning import read
from rerank_adapters.protocols import Call
from tests.benchmarks.texts import machine

LAYERS = 6
STOPS = (2, 3, 4)
KEEPS = {2: (10, 15, 20, 25, 30, 40), 3: (4, 6, 8, 10, 12, 15, 20), 4: (2, 3, 4, 5, 6, 8, 10)}
SAVES, LOSES, AT_MOST = 1.8, 0.002, 0.01
CHOSEN_SAVES = 1.85
DISCOUNTS = 1 / np.log2(np.arange(10) + 2)
CHOICE, MEASURED = ("nq_qed train", "selqa dev"), ("selqa test", "nq_qed dev", "scifact test")
COLUMNS = (
    *("set", "queries", "early_exit", "fewer layer-tokens", "nDCG@10", "with exit", "loss", "95 %"),
    "missed",
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
        going, behind = np.arange(len(self.whole)), np.zeros(0, np.int64)
        work, ran = 0, 0
        for layer, keep in () if stop is None else stop.steps:
            if len(going) > keep:
                work, ran = work + (layer - ran) * int(self.lengths[going].sum()), layer
                logits = heads[layer](self.pooled[layer][going])
                best = going[np.argsort(-logits, kind="stable")]
                behind = np.concatenate((best[keep:], behind))
                going = np.sort(best[:keep])
        work += (LAYERS - ran) * int(self.lengths[going].sum())
        first = going[np.argsort(-self.whole[going], kind="stable")]
        return [self.ids[at] for at in (*first, *behind)], work


class Network:
    """The bundled model's int8 graph in its parts."""

    def __init__(self, states: Path | None) -> None:
        found = find(CONFIG)
        self._meaning = read(found)
        self._backend: Any = start(found, self._meaning).backends[0]
        self._states = states

    def knows(self, name: str, query: str) -> bool:
        """Whether what one query's candidates gave is on disk."""
        return self._states is not None and (self._states / f"{name} {query}.npz").is_file()

    def see(self, name: str, query: str, text: str, documents: dict[str, str]) -> Seen:
        """Run one query's candidates through all layers, or read what they gave before."""
        if self._states is None:
            return self._run(query, text, documents)
        self._states.mkdir(exist_ok=True)
        file = self._states / f"{name} {query}.npz"
        if self.knows(name, query):
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
        states, whole = run_through(self._backend, batch, STOPS, self._meaning.family.keys)
        pooled = {layer: each.astype(np.float32) for layer, each in states.items()}
        return Seen(query, [*documents], batch.lengths, whole.astype(np.float32), pooled)


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
        """Each query's candidates, until it is *end*; one is always seen, and what is on disk."""
        found: list[Seen] = []
        for query in self.queries:
            if not found or time.monotonic() < end or network.knows(self.name, query):
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


def own_loss(one: Seen, heads: Heads, stop: EarlyExit) -> float:
    """What *stop* loses of one query's nDCG@10, where the whole model's scores are the grades."""
    grades = dict(
        zip(one.ids, (1 / (1 + np.exp(-one.whole.astype(np.float64)))).tolist(), strict=True)
    )
    best = np.sort(list(grades.values()))[::-1][:10]
    found = np.array([grades[name] for name in one.ranked(heads, stop)[0][:10]])
    ideal = float((best * DISCOUNTS[: len(best)]).sum())
    return 1 - float((found * DISCOUNTS[: len(found)]).sum()) / ideal


def bounds(losses: NDArray[np.float64]) -> tuple[float, float]:
    """The 95 % interval of the mean loss, by a paired bootstrap over queries."""
    generator = np.random.default_rng(0)
    draws = generator.integers(0, len(losses), (DRAWS, len(losses)))
    low, high = np.percentile(losses[draws].mean(axis=1), (2.5, 97.5))
    return float(low), float(high)


def settings() -> Iterator[EarlyExit]:
    """Every setting that is tried: one exit, or several that let fewer and fewer pass."""
    for count in range(1, len(STOPS) + 1):
        for layers in itertools.combinations(STOPS, count):
            for keeps in itertools.product(*(KEEPS[layer] for layer in layers)):
                if all(one > other for one, other in itertools.pairwise(keeps)):
                    yield EarlyExit(layers, keeps)


@dataclass(frozen=True, slots=True)
class Tried:
    """A setting, how many times fewer layer-tokens it takes, its losses, by labels an interval."""

    stop: EarlyExit
    saves: float
    own: float
    loss: float
    low: float
    high: float


def choose(sets: Sequence[tuple[Asked, Sequence[Seen]]], heads: Heads) -> list[EarlyExit]:
    """The settings that are frozen; of those tried the ones that no other beats are printed.

    Beaten is who saves less and loses more by the model's own scores.
    """
    told = " and ".join(f"{len(seen)} questions of {asked.name}" for asked, seen in sets)
    print(f"\n## Chosen on {told}\n")
    print("| early_exit | fewer layer-tokens | loss by own scores | loss of nDCG@10 | 95 % |")
    print("|---|---|---|---|---|")
    every = [one for _, seen in sets for one in seen]
    whole = [asked.gains(seen, heads, None) for asked, seen in sets]
    tried = []
    for stop in settings():
        gains = [asked.gains(seen, heads, stop) for asked, seen in sets]
        losses = np.concatenate(whole) - np.concatenate(gains)
        own = float(np.mean([own_loss(one, heads, stop) for one in every]))
        saves, loss = saved(every, heads, stop), float(losses.mean())
        tried.append(Tried(stop, saves, own, loss, *bounds(losses)))
    best = float("inf")
    for one in sorted(tried, key=lambda it: -it.saves):
        if one.own < best:
            best = one.own
            print(
                f"| {one.stop} | {one.saves:.2f}x | {one.own:+.4f} | {one.loss:+.4f} "
                f"| [{one.low:+.4f}, {one.high:+.4f}] |"
            )
    fast = [one for one in tried if one.saves >= CHOSEN_SAVES]
    careful = [one for one in tried if one.loss <= LOSES and one.high <= AT_MOST]
    chosen = [min(fast, key=lambda one: one.own).stop] if fast else []
    chosen += [max(careful, key=lambda one: one.saves).stop] if careful else []
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
        missed += [] if high <= AT_MOST else [f"upper bound over {AT_MOST}"]
        missed += [] if len(seen) >= 200 else ["under 200 queries"]
        print(
            f"| {asked.name} | {len(seen)} | {stop} | {times:.2f}x "
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


def selqa(data: Path, part: str) -> Iterator[tuple[str, dict[str, str], list[str]]]:
    """Questions over the sentences of all sections; an equal sentence is one document."""
    known: dict[str, str] = {}
    file = data / "selqa" / f"selqa-ass-{part}.json"
    rows: list[dict[str, Any]] = json.loads(file.read_text("utf-8"))
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
        place = Path(made)
        train = beir(place / "train", nq_train(options.data))
        dev, test = (beir(place / part, selqa(options.data, part)) for part in ("dev", "test"))
        sets = []
        for name, folder in zip(CHOICE, (train, dev), strict=True):
            asked = Asked(name, folder, options.choose, options.candidates)
            sets.append((asked, asked.seen(network, end)))
        stops = choose(sets, heads)
        folders = (test, options.data / "nq_qed" / "dev_beir", options.data / "scifact")
        print("\n## Measured once, as chosen\n")
        print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|", flush=True)
        for name, folder in zip(MEASURED, folders, strict=True):
            asked = Asked(name, folder, options.queries, options.candidates)
            seen = asked.seen(network, end)
            confirm(asked, seen[0], heads, stops)
            report(asked, seen, heads, stops)


if __name__ == "__main__":
    main()
