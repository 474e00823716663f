"""Teacher vectors and retrieval: what groups of candidates are made from.

The teacher is the base bi-encoder itself, and BM25 adds a small lexical part.
"""

import multiprocessing
import pickle
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
import torch
from data import RelevanceSet, load_all
from model import base_folder, embed, load_tokenizer
from numpy.typing import NDArray
from transformers import BertModel

TEACHER_TOKENS = 126  # with its two specials 128, the length the base was trained at


DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@cache
def _base() -> BertModel:
    return BertModel.from_pretrained(base_folder(), dtype=torch.float32).eval().to(DEVICE)


@torch.inference_mode()
def embed_texts(texts: Sequence[str], *, tokens_per_batch: int = 4096) -> NDArray[np.float32]:
    """Unit vectors (n, 384) of the base bi-encoder, sorted by length for speed, order kept."""
    bert = _base()
    encodings = load_tokenizer(base_folder()).encode_batch_fast(
        list(texts), add_special_tokens=False
    )
    ids = [np.asarray(encoding.ids[:TEACHER_TOKENS], np.uint16) for encoding in encodings]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    vectors = np.empty((len(ids), bert.config.hidden_size), np.float32)
    tokens_per_batch *= 1 if DEVICE.type == "cpu" else 16
    begin = 0
    while begin < len(order):
        size = max(1, tokens_per_batch // (len(ids[order[begin]]) + 8))
        rows = order[begin : begin + size]
        vectors[rows] = embed(bert, [ids[i] for i in rows]).cpu().numpy()
        begin += size
    return vectors


def cached(path: Path, compute: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]:
    """The array at `path`, computed the first time."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, compute())
    return np.load(path)


@dataclass
class Union:
    """All sets end to end: document i of set s stands at offsets[s] + i."""

    sets: list[RelevanceSet]
    documents: list[str]
    offsets: dict[str, int]
    vectors: NDArray[np.float32]

    @classmethod
    def load(cls, folder: Path, run: Path, seed: int) -> "Union":
        """From the data folder; the sets and their vectors are cached in `run`."""
        kept = run / "sets.pickle"
        if not kept.exists():
            run.mkdir(parents=True, exist_ok=True)
            kept.write_bytes(pickle.dumps(load_all(folder, seed)))
        sets = pickle.loads(kept.read_bytes())
        documents, offsets = [], {}
        for found in sets:
            offsets[found.name] = len(documents)
            documents += found.documents
        vectors = cached(run / "documents.npy", lambda: embed_texts(documents))
        return cls(sets, documents, offsets, vectors)


Ranked = NDArray[np.int64]  # (queries, depth) positions, best first


class Retriever:
    """BM25 and the base bi-encoder over one list of documents."""

    def __init__(self, documents: list[str], vectors: NDArray[np.float32]) -> None:
        """Index both."""
        self.size, self.vectors = len(documents), vectors
        self.bm25 = bm25s.BM25(k1=0.9, b=0.4)
        self.bm25.index(bm25s.tokenize(documents, stopwords="en", show_progress=False),
                        show_progress=False)  # fmt: skip

    def lexical(self, queries: list[str], depth: int) -> Ranked:
        """The `depth` best by BM25 (k1 0.9, b 0.4, English stop words)."""
        parts = [queries[at : at + 256] for at in range(0, len(queries), 256)]
        return np.concatenate(self._spread(partial(_best, depth=min(depth, self.size)), parts))

    def teacher(
        self,
        queries: Sequence[str],
        vectors: Sequence[NDArray[np.float32]],
        positions: Sequence[Sequence[int]],
    ) -> list[tuple[tuple[float, ...], tuple[float, ...]]]:
        """Per query (the base's cosine, BM25 as a share of the query's best) of its positions."""
        shares = self._spread(_shares, list(zip(queries, positions, strict=True)))
        cosines = [self.vectors[list(at)] @ v for at, v in zip(positions, vectors, strict=True)]
        return [
            (tuple(np.round(cosine, 5).tolist()), share)
            for cosine, share in zip(cosines, shares, strict=True)
        ]

    def _spread(self, work: Callable[[Any], Any], items: list[Any]) -> list[Any]:
        """`work` of every item, by forked processes that share this index, where items are many."""
        SHARED.append(self)
        try:
            if len(items) < 64:
                return [work(item) for item in items]
            with multiprocessing.get_context("fork").Pool() as pool:
                return pool.map(work, items, chunksize=max(1, min(256, len(items) // 64)))
        finally:
            SHARED.pop()

    def dense(self, vectors: NDArray[np.float32], depth: int) -> Ranked:
        """The `depth` best by cosine."""
        table = torch.from_numpy(self.vectors).to(DEVICE).T
        tops = [
            (torch.from_numpy(part).to(DEVICE) @ table).topk(min(depth, self.size)).indices.cpu()
            for part in np.array_split(vectors, max(1, len(vectors) // 256))
        ]
        return torch.cat(tops).numpy()


SHARED: list[Retriever] = []  # whose index the forked processes read


def _best(queries: list[str], depth: int) -> Ranked:
    tokens = bm25s.tokenize(queries, stopwords="en", show_progress=False)
    found, _ = SHARED[-1].bm25.retrieve(tokens, k=depth, show_progress=False)
    return found.astype(np.int64)


def _shares(asked: tuple[str, Sequence[int]]) -> tuple[float, ...]:
    options = {"stopwords": "en", "show_progress": False, "return_ids": False}
    tokens = bm25s.tokenize([asked[0]], **options)[0]
    if not tokens:
        return (0.0,) * len(asked[1])
    scores = SHARED[-1].bm25.get_scores(tokens)
    return tuple(np.round(scores[list(asked[1])] / max(float(scores.max()), 1e-6), 4).tolist())


def pick(ranked: Sequence[int], count: int, rng: random.Random, skip: set[int]) -> list[int]:
    """`count` of the ranked positions, near ranks likelier than far ones; grows `skip`."""
    chosen: list[int] = []
    pool = [int(p) for p in ranked if int(p) not in skip]
    while pool and len(chosen) < count:
        chosen.append(pool.pop(int(len(pool) * rng.random() ** 1.7)))
    skip.update(chosen)
    return chosen


def fragment(document: str, rng: random.Random) -> str:
    """A query made from a document: a sentence, its beginning, or its rarer-looking words."""
    sentences = [s for s in re.split(r"(?<=[.!?])\s+|\n+", document) if len(s.split()) > 3]
    if not sentences:
        return " ".join(document.split()[:12])
    sentence = sentences[0] if rng.random() < 0.4 else rng.choice(sentences)
    words = sentence.split()[:30]
    kind = rng.random()
    if kind < 0.35:
        return " ".join(words)
    if kind < 0.6:
        begin = rng.randrange(max(1, len(words) - 6))
        return " ".join(words[begin : begin + rng.randint(4, 10)])
    rare = sorted({w.strip(".,;:()\"'") for w in document.split() if len(w) > 5}, key=str)
    keywords = " ".join(rng.sample(rare, min(len(rare), rng.randint(2, 5))))
    return rng.choice(("{}", "what is {}", "how to {}", "{} meaning", "{}")).format(keywords)
