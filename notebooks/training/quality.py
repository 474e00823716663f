r"""Measure a reranker where it was never trained: BM25's first 100, nDCG@10, four sets.

    python notebooks/training/quality.py --data ../shared/data --out notebooks/training/quality.json
    python notebooks/training/quality.py --data ../shared/data --values kept.json \
        --difference "old int8" "new int8"       # of two models measured with --values and --label

Candidates: bm25s with k1 0.9 and b 0.4, its English stop words, no stemming, title and text; SelQA
brings its own lists. BM25, the base bi-encoder and every listed model order the same candidates.
"""

import argparse
import json
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import bm25s
import ir_measures
import numpy as np
import torch
from data import join_punctuation, read_jsonl
from ir_measures import nDCG
from model import base_folder, load_tokenizer
from numpy.typing import NDArray
from ragged import Ragged, tokenised, vectors
from transformers import BertModel

DEPTH = 100
SETS = ("scifact", "nq_qed", "selqa", "chunking_eval")
BUCKETS = ((0, 64), (64, 128), (128, 256), (256, 10**6))  # tokens of a set's labelled passages
Scores = dict[str, dict[str, float]]  # query id → document id → score


@dataclass
class MeasuredSet:
    """Queries with labels and one list of candidates each, best first by BM25.

    lexical: the BM25 score of every candidate.
    """

    name: str
    queries: dict[str, str]
    documents: dict[str, str]
    labels: dict[str, dict[str, int]]
    lexical: Scores

    def pairs(self) -> list[tuple[str, str]]:
        """All (query id, document id) to be scored."""
        return [(q, d) for q, found in self.lexical.items() for d in found]

    def score(self, values: NDArray[np.float32]) -> Scores:
        """Values in the order of `pairs` as nested dicts."""
        table: Scores = defaultdict(dict)
        for (query, document), value in zip(self.pairs(), values.tolist(), strict=True):
            table[query][document] = value
        return table


def beir(name: str, folder: Path, limit: int, seed: int, *, joined: bool = False) -> MeasuredSet:
    """A BEIR folder with BM25's first candidates for at most `limit` queries."""
    clean = join_punctuation if joined else str
    labels: dict[str, dict[str, int]] = defaultdict(dict)
    for line in (folder / "qrels.tsv").read_text().splitlines()[1:]:
        query, document, grade = line.split("\t")
        labels[query][document] = int(grade)
    rows = [r for r in read_jsonl(folder / "queries.jsonl") if r["_id"] in labels]
    rows = random.Random(seed).sample(rows, min(limit, len(rows)))
    queries = {r["_id"]: r["text"] for r in rows}
    corpus = read_jsonl(folder / "corpus.jsonl")
    texts = {r["_id"]: clean(f"{r['title']} {r['text']}".strip()) for r in corpus}
    labels = {q: labels[q] for q in queries}
    return MeasuredSet(name, queries, texts, labels, bm25_candidates(queries, texts))


def bm25_candidates(queries: dict[str, str], texts: dict[str, str]) -> Scores:
    """The first DEPTH documents of every query with their BM25 scores."""
    keys = np.array(list(texts))
    index = bm25s.BM25(k1=0.9, b=0.4)
    options = {"stopwords": "en", "show_progress": False}
    index.index(bm25s.tokenize(list(texts.values()), **options), show_progress=False)
    tokens = bm25s.tokenize(list(queries.values()), **options)
    found, scores = index.retrieve(tokens, k=min(DEPTH, len(keys)), show_progress=False)
    rows = zip(queries, found, scores, strict=True)
    return {q: dict(zip(keys[at].tolist(), s.tolist(), strict=True)) for q, at, s in rows}


def selqa(file: Path, limit: int, seed: int) -> MeasuredSet:
    """SelQA: the sentences of one section are the candidates."""
    rows = [r for r in json.loads(file.read_text()) if r["answers"]]
    rows = random.Random(seed).sample(rows, min(limit, len(rows)))
    measured = MeasuredSet("selqa test", {}, {}, {}, {})
    for number, row in enumerate(rows):
        own = {f"{number}.{i}": text for i, text in enumerate(row["candidates"])}
        query = {str(number): row["question"]}
        measured.queries |= query
        measured.documents |= own
        measured.labels[str(number)] = {f"{number}.{i}": 1 for i in row["answers"]}
        measured.lexical |= bm25_candidates(query, own)
    return measured


def load(data: Path, limit: int, seed: int, names: list[str]) -> Iterator[MeasuredSet]:
    """The measuring sets that are named, of at most `limit` queries each."""
    if "scifact" in names:
        yield beir("scifact test", data / "scifact", limit, seed)
    if "nq_qed" in names:
        yield beir("nq_qed dev", data / "nq_qed" / "dev_beir", limit, seed, joined=True)
    if "selqa" in names:
        yield selqa(data / "selqa" / "selqa-ass-test.json", limit, seed)
    if "chunking_eval" in names:
        yield beir("chunking_eval", data / "chunking_eval" / "chunks_120w", limit, seed)


def embedded(texts: list[str]) -> NDArray[np.float32]:
    """Unit vectors of the base bi-encoder, cut at 128 tokens as it was trained."""
    ids = tokenised(load_tokenizer(base_folder() / "tokenizer.json"), texts, 126)
    model = BertModel.from_pretrained(base_folder(), add_pooling_layer=False).eval()
    return vectors(model, Ragged.of(ids, torch.device("cpu")), [101], [102], 126).float().numpy()


def by_base(measured: MeasuredSet) -> Scores:
    """Cosine of the base bi-encoder."""
    keys = sorted({document for _, document in measured.pairs()})
    table = embedded([measured.documents[k] for k in keys])
    row = {key: i for i, key in enumerate(keys)}
    asked = dict(zip(measured.queries, embedded(list(measured.queries.values())), strict=True))
    return measured.score(
        np.array([float(asked[q] @ table[row[d]]) for q, d in measured.pairs()], np.float32)
    )


def by_model(measured: MeasuredSet, model: str, dtype: str) -> Scores:
    """Scores of a model through the library's public interface."""
    from rerank_adapters import (
        Reranker,  # measured only when asked for: BM25 and base need no library
    )

    pairs = [(measured.queries[q], measured.documents[d]) for q, d in measured.pairs()]
    with Reranker.from_pretrained(model, backend="onnx", dtype=dtype) as reranker:
        return measured.score(reranker.score_pairs(pairs))


def ndcg_by_query(measured: MeasuredSet, scores: Scores) -> dict[str, float]:
    """nDCG@10 of every query by ir-measures; an answer outside the candidates counts as missed."""
    found = ir_measures.iter_calc([nDCG @ 10], measured.labels, scores)
    return {m.query_id: m.value for m in found}


def rows_of(measured: MeasuredSet, system: str, scores: Scores) -> list[dict]:
    """One row for the set and one per length of the labelled passage."""
    values = ndcg_by_query(measured, scores)
    lengths = passage_lengths(measured)
    groups = {"all": list(values)}
    for low, high in BUCKETS:
        own = [q for q in values if low <= lengths[q] < high]
        groups[f"{low}-{high}" if high < 10**6 else f"{low}+"] = own
    return [
        {"set": measured.name, "system": system, "tokens": name, "queries": len(own),
         "ndcg@10": round(float(np.mean([values[q] for q in own])), 4)}
        for name, own in groups.items() if own
    ]  # fmt: skip


def passage_lengths(measured: MeasuredSet) -> dict[str, float]:
    """Mean length in words times 1.35, about its tokens, of each query's labelled passages."""
    return {
        q: float(np.mean([len(measured.documents[d].split()) * 1.35 for d in labels]))
        for q, labels in measured.labels.items()
    }


def table(rows: list[dict]) -> str:
    """Markdown: sets down, systems across; then the same by length."""
    systems = list(dict.fromkeys(r["system"] for r in rows))
    lines = ["| set | passage tokens | queries | " + " | ".join(systems) + " |"]
    lines.append("|---|---|---|" + "---|" * len(systems))
    cells = {(r["set"], r["tokens"], r["system"]): r for r in rows}
    kinds = list(dict.fromkeys((r["set"], r["tokens"]) for r in rows))
    for name, tokens in sorted(kinds, key=lambda kind: kind[1] != "all"):
        own = [cells.get((name, tokens, s), {}).get("ndcg@10") for s in systems]
        queries = cells[name, tokens, systems[0]]["queries"]
        lines.append(f"| {name} | {tokens} | {queries} | {shown(own)} |")
    means: list[float | None] = []
    names = {r["set"] for r in rows}
    for system in systems:
        whole = [r["ndcg@10"] for r in rows if r["tokens"] == "all" and r["system"] == system]
        means.append(float(np.mean(whole)) if len(whole) == len(names) else None)
    lines.append(f"| **mean of sets** | all | | {shown(means)} |")
    return "\n".join(lines) + "\n"


def shown(values: list[float | None]) -> str:
    """Cells of one row; a dash for what was not measured."""
    return " | ".join("–" if value is None else f"{value:.4f}" for value in values)


def kept(out: Path, rows: list[dict]) -> list[dict]:
    """The rows of *out* for sets that were not measured now, before those that were."""
    now = {row["set"] for row in rows}
    old = json.loads(out.read_text())["rows"] if out.exists() else []
    return [row for row in old if row["set"] not in now] + rows


def main() -> None:
    """Measure, print, write `--out` and the same as a table beside it; other sets stay in it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--model", default="default", help="name or folder for the library")
    parser.add_argument("--dtypes", default="float32,int8", help="empty: BM25 and base only")
    parser.add_argument("--no-base", action="store_true", help="BM25 and ours only")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--queries", type=int, default=10**9, help="at most so many of each set")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--label", default="ours", help="what the model is called in the table")
    parser.add_argument("--values", type=Path, help="a file to keep every query's nDCG@10 in")
    parser.add_argument(
        "--difference", nargs=2, metavar="SYSTEM", help="of two in --values; measures nothing"
    )
    options = parser.parse_args()
    rows, values = [], read_values(options.values)
    if options.difference:
        print(differences(values, *options.difference))
        return
    for measured in load(options.data, options.queries, options.seed, options.sets):
        systems = {"BM25": measured.lexical}
        if not options.no_base:
            systems["base"] = by_base(measured)
        for dtype in filter(None, options.dtypes.split(",")):
            systems[f"{options.label} {dtype}"] = by_model(measured, options.model, dtype)
        for system, scores in systems.items():
            rows += rows_of(measured, system, scores)
            values.setdefault(measured.name, {})[system] = ndcg_by_query(measured, scores)
        print(table([r for r in rows if r["set"] == measured.name]), flush=True)
        if options.values:
            options.values.write_text(json.dumps(values))
    if options.out:
        rows = kept(options.out, rows)
        options.out.write_text(json.dumps({"seed": options.seed, "rows": rows}, indent=1) + "\n")
        options.out.with_suffix(".md").write_text(table(rows))


def differences(values: dict[str, dict[str, dict[str, float]]], first: str, second: str) -> str:
    """Markdown: by how much *second* is above *first*, per set, of the queries that both have.

    With the 95 % interval of a paired bootstrap: 10,000 draws of as many queries, with replacement.
    """
    lines = [f"| set | queries | {first} | {second} | difference | 95 % interval |"]
    lines.append("|---|---:|---:|---:|---:|---:|")
    for name, systems in values.items():
        if first not in systems or second not in systems:
            continue
        queries = sorted(systems[first].keys() & systems[second].keys())
        pair = np.array([[systems[it][query] for it in (first, second)] for query in queries])
        gains = pair[:, 1] - pair[:, 0]
        rows = np.random.default_rng(0).integers(len(gains), size=(10_000, len(gains)))
        low, high = np.quantile(gains[rows].mean(1), [0.025, 0.975])
        before, after = pair.mean(0)
        lines.append(
            f"| {name} | {len(queries)} | {before:.4f} | {after:.4f} | {after - before:+.4f} "
            f"| {low:+.4f} to {high:+.4f} |"
        )
    return "\n".join(lines) + "\n"


def read_values(path: Path | None) -> dict[str, dict[str, dict[str, float]]]:
    """Set → system → query → nDCG@10 of earlier calls."""
    return json.loads(path.read_text()) if path and path.exists() else {}


if __name__ == "__main__":
    main()
