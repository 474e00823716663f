"""Texts and teachers → groups with the teacher's scores: retrieval, members, candidates.

    python notebooks/training/build.py --carry runs/main --out runs/main/groups.npz

Runs on a GPU or a CPU. What it writes is the cached teacher: every candidate with every member's
score, made again by this one command.
"""

import argparse
import time
from dataclasses import dataclass, fields
from pathlib import Path

import groups as grouping
import members as teacher
import numpy as np
import torch
from asking import STOP
from corpus import Corpus
from evaluation import Held, held_groups
from groups import Asked, Closeness, Found, Groups, Queries
from mining import Lexical, nearest
from model import load_tokenizer
from numpy.typing import NDArray
from ragged import Ragged, tokenised

BEGUN = time.monotonic()


def note(*words: object) -> None:
    """A line of progress with the seconds since the start."""
    print(f"[{time.monotonic() - BEGUN:6.1f}]", *words, flush=True)


@dataclass
class Material:
    """All that a run reads: token ids, groups, held-out groups, and what each member says."""

    corpus: Corpus
    queries: Ragged
    documents: Ragged
    groups: Groups
    members: NDArray[np.float16]
    held: Held


def waited(path: Path) -> Path:
    """The path once it is there: parts may arrive one after another."""
    while not path.exists():
        time.sleep(0.2)
    return path


def ready(carry: Path, name: str, files: str) -> bool:
    """Whether a part of the files is there. On a lent machine they arrive one after another: a flag
    says that the part is whole, or that it will not come; elsewhere the files are there or not.
    """
    if (carry / "arriving").exists():
        return "none" not in waited(carry / f"{name}.ready").read_text()
    return (carry / files).exists()


def sides(
    carry: Path, corpus: Corpus, texts: list[str], device: torch.device
) -> tuple[teacher.Side, teacher.Side, Lexical]:
    """Queries and documents as every member sees them, in the order in which the parts arrive."""
    tokenizer = load_tokenizer(carry / "tokenizer.json")
    queries = Ragged.of(tokenised(tokenizer, texts, 256), device)
    documents = Ragged.of(tokenised(tokenizer, corpus.documents, 509), device)
    note(f"{len(queries)} queries, {len(documents)} documents, {len(documents.flat):,} tokens")
    stop = [
        tokenizer.token_to_id(w)
        for w in sorted(STOP | set(".,?!;:'\"()-"))
        if tokenizer.token_to_id(w)
    ]
    lexical = Lexical(documents, stop)
    note("BM25's index")
    e5 = [
        teacher.by_e5(carry, part, prefix, limit, device)
        for part, prefix, limit in ((texts, "query: ", 64), (corpus.documents, "passage: ", 252))
    ]
    note("E5")
    ready(carry, "second", "base.npz")
    both = []
    for side, limit, terms in ((queries, 62, "query"), (documents, 250, "document")):
        cosine, tokens = teacher.by_base(carry, side, limit)
        heavy = teacher.by_splade(carry, side, limit, teacher.TERMS[terms])
        both.append(teacher.Side(side, cosine, tokens, e5[len(both)], None, heavy))
    note("the base and SPLADE")
    if ready(carry, "third", "mpnet.npz"):
        for side, limit in zip(both, (62, 190), strict=True):
            side.mpnet = teacher.by_mpnet(carry, side.texts, tokenizer, limit)
        note("mpnet")
    return both[0], both[1], lexical


def retrieved(
    asked: Asked, query: teacher.Side, document: teacher.Side, lexical: Lexical, corpus: Corpus
) -> Found:
    """BM25's 100, the base's 60 and E5's 50 of each query within its own pool."""
    depths, count = {"lexical": 100, "dense": 60, "e5": 50}, len(asked.rows)
    found = Found(*(np.full((count, depth), -1, np.int32) for depth in depths.values()))
    by_pool: dict[tuple[int, int], list[int]] = {}
    for at, source in enumerate(asked.sources):
        by_pool.setdefault(corpus.pool(source), []).append(at)
    for span, own in by_pool.items():
        rows = np.array(asked.rows)[own]
        found.lexical[own] = lexical.search(query.texts, rows, span, 100)
        found.dense[own] = nearest(query.cosine, document.cosine, rows, span, 60)
        found.e5[own] = nearest(query.e5, document.e5, rows, span, 50)
    return found


def build(carry: Path, device: torch.device, seed: int = 0, share: float = 1.0) -> Material:
    """Everything up to the first step of training."""
    corpus = Corpus.load(waited(carry / "texts.json.bz2"))
    table = Queries()
    asked, kept = Asked.collect(corpus, table), Asked.collect(corpus, table, held=True)
    for text, _ in corpus.answered:
        table.add(text)
    query, document, lexical = sides(carry, corpus, table.texts, device)
    found = retrieved(asked, query, document, lexical, corpus)
    note("retrieval")
    close = Closeness(query.cosine.cpu().numpy(), document.cosine.cpu().numpy())
    safe = grouping.safe_of(asked, found, corpus, close)
    made = grouping.training(asked, found, safe, corpus, seed, share)
    note(
        f"{len(made)} groups, {int(made.there.sum()):,} pairs, {int(made.labelled.sum())} labelled"
    )
    members = teacher.scored(query, document, made.query, made.candidates).astype(np.float16)
    note("the teacher's scores")
    held = held_groups(
        kept,
        retrieved(kept, query, document, lexical, corpus),
        corpus,
        table,
        query,
        document,
        lexical,
        seed,
    )
    note(f"{len(held.groups)} held-out groups")
    return Material(corpus, query.texts, document.texts, made, members, held)


def taught(material: Material, names: str = "") -> None:
    """Give all groups the teacher of the named members, of all where none is named."""
    weights = {k: v for k, v in teacher.WEIGHTS.items() if not names or k in names.split(",")}
    made, held = material.groups, material.held
    free = np.flatnonzero(~made.labelled)[:100_000]
    scale = teacher.coefficients(
        material.members[free].astype(np.float32), made.there[free], weights
    )
    made.teacher = material.members.astype(np.float32) @ scale
    held.groups.teacher = held.members @ scale


def save(material: Material, path: Path) -> None:
    """The groups and every member's score in one file."""
    made = material.groups
    arrays = {f.name: getattr(made, f.name) for f in fields(Groups) if f.name != "teacher"}
    low, high = material.members.min((0, 1)), material.members.max((0, 1))
    scaled = (material.members - low) / np.maximum(high - low, 1e-6).astype(np.float16)
    steps = (scaled.astype(np.float32) * 255).round().astype(np.uint8)
    np.savez_compressed(path, members=steps, low=low, high=high, **arrays)


def main() -> None:
    """Build and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--carry", type=Path, required=True, help="the folder that prepare.py wrote"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--share", type=float, default=1.0)
    options = parser.parse_args()
    save(build(options.carry, torch.device(options.device), share=options.share), options.out)


if __name__ == "__main__":
    main()
