"""From questions and retrievals to the seeded list of groups that a run walks through."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from data import Question, RelevanceSet, contains
from mining import Retriever, Union, embed_texts, fragment, pick
from numpy.typing import NDArray
from prepared import Group

# How often a group comes from each set: with labels, and without.
LABELLED = {
    "nq": 28, "nq_long": 4, "squad": 20, "squad_long": 4, "ares": 5, "covid_qa": 5, "scifact": 5,
    "medquad": 6, "selqa": 5, "python_code": 5, "python_docs": 3, "packages_code": 6,
    "packages_docs": 6,
}  # fmt: skip
UNLABELLED = {
    "nq": 20, "nq_long": 5, "squad": 9, "squad_long": 2, "ares": 4, "covid_qa": 6, "scifact": 10,
    "medquad": 10, "selqa": 8, "python_code": 6, "python_docs": 4, "packages_code": 9,
    "packages_docs": 9,
}  # fmt: skip
LONG = {"nq_long", "squad_long", "scifact", "medquad"}  # costlier documents, so fewer to a group


@dataclass(frozen=True)
class Mixture:
    """What is prepared; every field is an option of `prepare.py`."""

    groups: int = 100_000
    labelled: float = 0.5
    size: int = 8
    long_size: int = 6
    hard: str = "both"  # where hard negatives come from: "both", "bm25", "base" or "random"

    def draw(self, weights: dict[str, int], count: int, rng: random.Random) -> dict[str, int]:
        """How many groups of each set."""
        drawn = Counter(rng.choices(list(weights), list(weights.values()), k=count))
        return {name: drawn[name] for name in weights}


class GroupMaker:
    """Makes groups over the union of the sets."""

    def __init__(self, union: Union, mixture: Mixture, seed: int) -> None:
        """Nothing is retrieved yet."""
        self.union, self.mixture, self.rng = union, mixture, random.Random(seed)
        self.queries: dict[str, int] = {}

    def index_of(self, query: str) -> int:
        """The index of the query, which is stored once."""
        return self.queries.setdefault(query, len(self.queries))

    def make(self) -> list[Group]:
        """All groups, shuffled."""
        count = round(self.mixture.groups * self.mixture.labelled)
        wanted = self.mixture.draw(LABELLED, count, self.rng)
        made = [
            g for found in self.union.sets for g in self.labelled(found, wanted.get(found.name, 0))
        ]
        made += self.unlabelled(self.mixture.groups - len(made))
        self.rng.shuffle(made)
        return made

    def labelled(self, found: RelevanceSet, count: int) -> list[Group]:
        """Questions of one set with an answer, if there is one, and hard negatives of the set.

        A question comes again, with other negatives, where the set has fewer than `count`.
        """
        questions = found.split(held=False)
        questions = self.rng.sample(questions, min(count, len(questions)))
        if not questions:
            return []
        vectors = embed_texts([q.text for q in questions])
        retriever = retriever_of(self.union, found)
        rows = retrieve(retriever, [q.text for q in questions], vectors)
        asked = list(zip(questions, vectors, rows, strict=True))
        asked = [asked[i % len(asked)] for i in range(count)]
        made = [self._candidates(found, *each) for each in asked]
        texts, near = [q.text for q, _, _ in asked], [vector for _, vector, _ in asked]
        taught = retriever.teacher(texts, near, [rows for rows, _ in made])
        offset = self.union.offsets[found.name]
        return [
            Group(
                found.name, self.index_of(text), tuple(offset + p for p in rows), *teacher, labels
            )
            for text, (rows, labels), teacher in zip(texts, made, taught, strict=True)
        ]

    def _candidates(
        self, found: RelevanceSet, question: Question, vector: NDArray[np.float32],
        ranked: tuple[NDArray[np.int64], NDArray[np.int64]],
    ) -> tuple[list[int], tuple[int, ...]]:  # fmt: skip
        positives = list(question.positives)
        self.rng.shuffle(positives)
        chosen, skip = positives[:1], set(positives)
        size = self.mixture.long_size if found.name in LONG else self.mixture.size
        safe = [self._safe(found, question, vector, row) for row in ranked]
        chosen += pick(question.given, 2, self.rng, skip)
        chosen += self._negatives(found, question, safe, size - len(chosen), skip)
        return chosen, tuple(int(p in positives) for p in chosen)

    def _negatives(
        self,
        found: RelevanceSet,
        question: Question,
        safe: list[list[int]],
        count: int,
        skip: set[int],
    ) -> list[int]:
        if question.listed:
            return pick([p for p in question.listed if p not in skip], count, self.rng, skip)
        dense, lexical = {
            "both": (0.55, 0.3),
            "base": (0.85, 0),
            "bm25": (0, 0.85),
            "random": (0, 0),
        }[self.mixture.hard]
        chosen = pick(safe[1], round(dense * count), self.rng, skip)
        chosen += pick(safe[0], round(lexical * count), self.rng, skip)
        others = self.rng.sample(range(len(found.documents)), 40)
        others = [p for p in others if not contains(found.documents[p], question.answers)]
        return chosen + pick(others, count - len(chosen), self.rng, skip)

    def _safe(
        self,
        found: RelevanceSet,
        question: Question,
        vector: NDArray[np.float32],
        row: Sequence[int],
    ) -> list[int]:
        """Retrieved documents that do not look like unlabelled answers.

        One is left out when it holds an answer string or, where the set names no answer strings,
        when the base finds it closer than the labelled answer by more than 0.05.
        """
        limit = 2.0
        if question.positives and not question.answers:
            offset = self.union.offsets[found.name]
            limit = (
                max(float(vector @ self.union.vectors[offset + p]) for p in question.positives)
                + 0.05
            )
        vectors = self.union.vectors[self.union.offsets[found.name] + np.asarray(row, int)]
        close = vectors @ vector
        return [
            int(p) for p, cosine in zip(row, close, strict=True)
            if cosine < limit and not contains(found.documents[int(p)], question.answers)
        ]  # fmt: skip

    def unlabelled(self, count: int) -> list[Group]:
        """Fragments and foreign questions against their neighbours in the whole union."""
        if not count:
            return []
        union, wanted = self.union, self.mixture.draw(UNLABELLED, count, self.rng)
        sources, queries, homes = [], [], []
        for found in union.sets:
            for _ in range(wanted.get(found.name, 0)):
                home = self.rng.randrange(len(found.documents))
                own = found.questions and self.rng.random() < 0.15
                text = self.rng.choice(found.questions).text if own else None
                queries.append(text or fragment(found.documents[home], self.rng))
                homes.append([] if own else [union.offsets[found.name] + home])
                sources.append(found)
        vectors = embed_texts(queries)
        retriever = Retriever(union.documents, union.vectors)
        lexical, dense = retriever.lexical(queries, 30), retriever.dense(vectors, 400)
        chosen = [
            self._neighbours(*row) for row in zip(sources, homes, lexical, dense, strict=True)
        ]
        taught = retriever.teacher(queries, vectors, chosen)
        return [
            Group(f"{found.name}:unlabelled", self.index_of(query), tuple(rows), *teacher)
            for found, query, rows, teacher in zip(sources, queries, chosen, taught, strict=True)
        ]

    def _neighbours(
        self, found: RelevanceSet, home: list[int],
        lexical: NDArray[np.int64], dense: NDArray[np.int64],
    ) -> list[int]:  # fmt: skip
        size = self.mixture.long_size if found.name in LONG else self.mixture.size
        chosen = home if self.rng.random() < 0.7 else []
        skip = set(chosen)
        chosen = chosen + pick(dense[:30], 2, self.rng, skip)
        chosen += pick(lexical, 2, self.rng, skip)
        chosen += pick(dense[30:], size - 5, self.rng, skip)
        begin = self.union.offsets[found.name]
        strangers = [begin + self.rng.randrange(len(found.documents)) for _ in range(40)]
        chosen += pick(dense[:30] if self.rng.random() < 0.5 else strangers, 1, self.rng, skip)
        return chosen + pick(strangers, size - len(chosen), self.rng, skip)


def retriever_of(union: Union, found: RelevanceSet) -> Retriever:
    """Retrieval inside one set."""
    begin = union.offsets[found.name]
    return Retriever(found.documents, union.vectors[begin : begin + len(found.documents)])


def retrieve(
    retriever: Retriever, queries: list[str], vectors: NDArray[np.float32], depth: int = 30
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Per query (BM25 positions, base positions), best first."""
    lexical, dense = retriever.lexical(queries, depth), retriever.dense(vectors, depth)
    return list(zip(lexical, dense, strict=True))


def held_groups(maker: GroupMaker, per_set: int, depth: int, seed: int) -> list[Group]:
    """Held-out questions with the first `depth` of BM25 and the base, answered or not.

    Sets without own candidate lists retrieve inside themselves. For development and calibration.
    """
    rng, union, made = random.Random(seed), maker.union, []
    for found in union.sets:
        questions = [q for q in found.split(held=True) if q.positives]
        questions = rng.sample(questions, min(per_set, len(questions)))
        vectors = embed_texts([q.text for q in questions])
        retriever = retriever_of(union, found)
        rows = retrieve(retriever, [q.text for q in questions], vectors, depth)
        for question, vector, (lexical, dense) in zip(questions, vectors, rows, strict=True):
            merged = [int(p) for pair in zip(lexical, dense, strict=True) for p in pair]
            chosen = list(question.listed) or list(dict.fromkeys(merged))[:depth]
            (teacher,) = retriever.teacher([question.text], [vector], [chosen])
            where = tuple(union.offsets[found.name] + p for p in chosen)
            labels = tuple(int(p in question.positives) for p in chosen)
            made.append(Group(found.name, maker.index_of(question.text), where, *teacher, labels))
    return made
