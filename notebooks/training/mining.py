"""Teacher vectors, retrievals and the groups of candidates a training step is made of.

The teacher is the base bi-encoder itself: 20 times the cosine, the scale it was trained with. BM25
adds a small lexical part. Everything is computed once and kept in the run's folder.
"""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import bm25s
import numpy as np
import torch
from data import RelevanceSet, load_all
from model import base_folder, embed, load_tokenizer
from numpy.typing import NDArray
from transformers import BertModel

TEACHER_TOKENS = 126  # with its two specials 128, the length the base was trained at
TEACHER_SCALE = 20.0


@dataclass(frozen=True)
class Group:
    """One query and its candidates.

    candidates: (k,) positions in the union corpus. teacher: (k,) logits. labels: (k,) 1 for an
    answer and 0 for none, or empty for an unlabelled group.
    """

    source: str
    query: str
    candidates: tuple[int, ...]
    teacher: tuple[float, ...]
    labels: tuple[int, ...] = ()


@torch.inference_mode()
def embed_texts(texts: Sequence[str], *, tokens_per_batch: int = 4096) -> NDArray[np.float32]:
    """Unit vectors (n, 384) of the base bi-encoder, sorted by length for speed, order kept."""
    folder = base_folder()
    bert = BertModel.from_pretrained(folder).eval()
    encodings = load_tokenizer(folder).encode_batch_fast(list(texts), add_special_tokens=False)
    ids = [encoding.ids[:TEACHER_TOKENS] for encoding in encodings]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    vectors = np.empty((len(ids), bert.config.hidden_size), np.float32)
    begin = 0
    while begin < len(order):
        size = max(1, tokens_per_batch // (len(ids[order[begin]]) + 8))
        rows = order[begin : begin + size]
        vectors[rows] = embed(bert, [ids[i] for i in rows]).numpy()
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
        """From the data folder; vectors are cached in `run`."""
        sets = load_all(folder, seed)
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
        tokens = bm25s.tokenize(queries, stopwords="en", show_progress=False)
        found, _ = self.bm25.retrieve(tokens, k=min(depth, self.size), show_progress=False)
        return found.astype(np.int64)

    def teacher(
        self,
        query: str,
        vector: NDArray[np.float32],
        positions: Sequence[int],
        lexical_scale: float,
    ) -> tuple[float, ...]:
        """20·cosine + lexical_scale·(BM25 as a share of the query's best), per position."""
        options = {"stopwords": "en", "show_progress": False, "return_ids": False}
        tokens = bm25s.tokenize([query], **options)[0]
        rows = list(positions)
        lexical = np.zeros(len(rows), np.float32)
        if tokens:
            scores = self.bm25.get_scores(tokens)
            lexical = scores[rows] / max(float(scores.max()), 1e-6)
        logits = TEACHER_SCALE * (self.vectors[rows] @ vector) + lexical_scale * lexical
        return tuple(np.round(logits, 4).tolist())

    def dense(self, vectors: NDArray[np.float32], depth: int) -> Ranked:
        """The `depth` best by cosine."""
        depth = min(depth, self.size)
        tops = []
        for part in np.array_split(vectors, max(1, len(vectors) // 256)):
            scores = part @ self.vectors.T
            top = np.argpartition(-scores, depth - 1, axis=1)[:, :depth]
            rank = np.argsort(-np.take_along_axis(scores, top, 1), axis=1)
            tops.append(np.take_along_axis(top, rank, 1))
        return np.concatenate(tops)


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
