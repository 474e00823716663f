"""From queries and retrieval to groups of candidates: arrays, seeded, as long as a run needs.

A group is a query with up to WIDTH candidates. Labelled groups hold one answer first, then hard
negatives that do not look like missed answers; the others are what three retrievers find.
"""

import random
import re
from dataclasses import dataclass, field, fields, replace

import numpy as np
from asking import keywords, typo
from corpus import Corpus, Question
from mining import Ranked
from numpy.typing import NDArray

WIDTH, LONG_WIDTH = 16, 8
LONG = {"nq_long", "squad_long", "scifact", "medquad"}
LABELLED = {
    "nq": 26000,
    "squad": 20000,
    "clapnq": 5000,
    "ares": 6000,
    "wiki": 9000,
    "conditionalqa": 4500,
    "pubmedqa": 2000,
    "covid_qa": 5000,
    "scifact": 4500,
    "selqa": 6000,
    "medquad": 4000,
    "definitions": 9000,
    "factbook": 3000,
    "nq_long": 4000,
    "squad_long": 4000,
    "python_code": 3500,
    "python_docs": 2500,
    "packages_code": 4000,
    "packages_docs": 4000,
}
"""How many labelled groups of each set."""
REAL_TIMES = 4
"""How often each real query comes, each time with other candidates."""
KINDS = ("clean", "no question mark", "typo", "keywords")
KIND_SHARES = (0.4, 0.38, 0.12, 0.1)


@dataclass
class Groups:
    """Groups as arrays of n rows.

    query: the teacher's query. asked: the words that the student is asked with. candidates:
    (n, WIDTH) documents, -1 where there is none. labels: (n, WIDTH) 1 for an answer. labelled: (n,)
    whether the others are known not to be answers. junk: (n, WIDTH) passages that answer nothing.
    source: (n,) which set.
    """

    query: NDArray[np.int32]
    asked: NDArray[np.int32]
    candidates: NDArray[np.int32]
    labels: NDArray[np.int8]
    labelled: NDArray[np.bool_]
    source: NDArray[np.int16]
    teacher: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, WIDTH), np.float32))

    def __len__(self) -> int:
        return len(self.query)

    @property
    def there(self) -> NDArray[np.bool_]:
        """Where there is a candidate."""
        return self.candidates >= 0

    def take(self, rows: NDArray) -> "Groups":
        """Some of them."""
        kept = {each.name: getattr(self, each.name) for each in fields(self)}
        return replace(self, **{k: v[rows] for k, v in kept.items() if len(v) == len(self.query)})


@dataclass
class Queries:
    """Every text that is asked, once: `texts`, and the ways to ask each of them."""

    texts: list[str] = field(default_factory=list)
    at: dict[str, int] = field(default_factory=dict)

    def add(self, text: str) -> int:
        """Where the text stands."""
        if text not in self.at:
            self.at[text] = len(self.texts)
            self.texts.append(text)
        return self.at[text]

    def ways(self, text: str) -> list[int]:
        """Where the four ways of asking stand, in the order of KINDS."""
        short = keywords(text) if len(text.split()) > 4 else text
        slip = typo(text, random.Random(text))
        return [self.add(text), self.add(text.rstrip(" ?")), self.add(slip), self.add(short)]


@dataclass
class Asked:
    """Queries before groups are made of them: rows of `Queries`, a set, a home document."""

    rows: list[int]
    ways: list[list[int]]
    sources: list[str]
    homes: list[int]
    questions: list[Question | None]

    @classmethod
    def collect(cls, corpus: Corpus, queries: Queries, *, held: bool = False) -> "Asked":
        """Labelled questions, real queries and made ones, in this order."""
        found = cls([], [], [], [], [])
        for question in corpus.questions:
            if question.held is held:
                found._add(question.text, question.source, -1, question, queries)
        for text, own in corpus.real:
            if own is held:
                found._add(text, "wiki", -1, None, queries)
        if not held:
            for text, source, home in corpus.made:
                found._add(text, source, home, None, queries)
        return found

    def _add(
        self, text: str, source: str, home: int, question: Question | None, queries: Queries
    ) -> None:
        self.rows.append(queries.add(text))
        self.ways.append(queries.ways(text) if home < 0 else [queries.add(text)] * 4)
        self.sources.append(source)
        self.homes.append(home)
        self.questions.append(question)


@dataclass
class Found:
    """What each retriever finds for each of `Asked`: (queries, depth), best first, -1 for none."""

    lexical: Ranked
    dense: Ranked
    e5: Ranked


def some(rng: np.random.Generator, ranked: Ranked, count: int) -> Ranked:
    """`count` of each row's positions at random, near ranks likelier than far ones."""
    depth = ranked.shape[1]
    key = rng.random(ranked.shape) * np.linspace(0.6, 1.4, depth) + 9 * (ranked < 0)
    at = np.argpartition(key, min(count, depth - 1), axis=1)[:, :count]
    return np.take_along_axis(ranked, at, 1)


def once(candidates: NDArray) -> NDArray:
    """The rows with what comes a second time put to -1."""
    order = np.argsort(candidates, axis=1, kind="stable")
    ordered = np.take_along_axis(candidates, order, 1)
    again = np.zeros_like(candidates, bool)
    again[:, 1:] = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    repeated = np.zeros_like(again)
    np.put_along_axis(repeated, order, again, 1)
    return np.where(repeated, -1, candidates)


def unlabelled(
    asked: Asked, found: Found, rows: NDArray, corpus: Corpus, rng: np.random.Generator
) -> Groups:
    """Eight of BM25's, four of the base's, two of E5's, a random one, and the home if any."""
    lexical, dense, e5 = found.lexical[rows], found.dense[rows], found.e5[rows]
    homes = np.array(asked.homes)[rows]
    homes = np.where(rng.random(len(rows)) < 0.8, homes, -1)
    spans = np.array([corpus.pool(asked.sources[r]) for r in rows])
    strangers = (spans[:, :1] + rng.random((len(rows), 2)) * (spans[:, 1:] - spans[:, :1])).astype(
        np.int32
    )
    candidates = np.concatenate(
        [
            homes[:, None],
            some(rng, lexical[:, :10], 3),
            some(rng, lexical[:, 10:], 5),
            some(rng, dense, 4),
            some(rng, e5, 2),
            strangers[:, :1],
        ],
        1,
    ).astype(np.int32)
    candidates = once(candidates)
    labels = np.zeros(candidates.shape, np.int8)
    return _made(asked, rows, candidates, labels, False, corpus, rng)


def labelled(
    asked: Asked,
    rows: NDArray,
    corpus: Corpus,
    safe: Ranked,
    rng: np.random.Generator,
) -> Groups:
    """An answer, ten hard negatives of the first thirty of each, three of the next, random ones.

    safe: (rows, depth) what both retrievers found and does not look like an answer.
    """
    spans = np.array([corpus.pool(asked.sources[r]) for r in rows])
    strangers = (spans[:, :1] + rng.random((len(rows), 3)) * (spans[:, 1:] - spans[:, :1])).astype(
        np.int32
    )
    questions = [asked.questions[r] for r in rows]
    first = np.full((len(rows), 1), -1, np.int32)
    given = np.full((len(rows), 2), -1, np.int32)
    for i, question in enumerate(questions):
        if question.positives:
            first[i] = question.positives[int(rng.integers(len(question.positives)))]
        for j, position in enumerate(rng.permutation(question.given)[:2] if question.given else ()):
            given[i, j] = position
    near, far = safe[:, :60], safe[:, 60:]
    candidates = np.concatenate(
        [first, given, some(rng, near, 9), some(rng, far, 2), strangers[:, :2]], 1
    )
    candidates = once(candidates.astype(np.int32))
    positives = [set(q.positives) for q in questions]
    labels = np.array(
        [[c in own for c in row] for row, own in zip(candidates.tolist(), positives, strict=True)],
        np.int8,
    )
    return _made(asked, rows, candidates, labels, True, corpus, rng)


def _made(
    asked: Asked,
    rows: NDArray,
    candidates: NDArray,
    labels: NDArray,
    known: bool,
    corpus: Corpus,
    rng: np.random.Generator,
) -> Groups:
    names = list(corpus.spans)
    long = np.array([asked.sources[r] in LONG for r in rows])
    candidates[long, LONG_WIDTH:] = -1
    junk = rng.integers(corpus.junk, len(corpus.documents), len(rows))
    put = rng.random(len(rows)) < 0.15  # a passage that answers nothing takes the last place
    candidates[put, -1] = junk[put]
    labels[put, -1] = 0
    way = rng.choice(len(KINDS), len(rows), p=KIND_SHARES)
    return Groups(
        np.array(asked.rows, np.int32)[rows],
        np.array(asked.ways, np.int32)[rows, way],
        candidates,
        labels,
        np.full(len(rows), known),
        np.array([names.index(asked.sources[r]) for r in rows], np.int16),
    )


def safe_of(
    asked: Asked, found: Found, corpus: Corpus, closeness: "Closeness"
) -> dict[int, NDArray]:
    """For each labelled question the retrieved documents that do not look like missed answers.

    One is left out when it holds an answer string or, where the set names none, when the base finds
    it closer than the labelled answer by more than 0.05.
    """
    lowered = [d.lower() for d in corpus.documents]
    kept = {}
    for row, question in enumerate(asked.questions):
        if question is None:
            continue
        merged = np.stack([found.lexical[row, :60], found.dense[row, :60]], 1).ravel()
        merged = merged[merged >= 0]
        merged = merged[~np.isin(merged, question.positives)]
        if question.listed:
            merged = np.array([p for p in question.listed if p not in question.positives], np.int32)
        elif answers := [a.lower() for a in question.answers if len(a) > 2]:
            merged = merged[[not any(a in lowered[p] for a in answers) for p in merged.tolist()]]
        elif question.positives and len(merged):
            merged = merged[closeness.below(asked.rows[row], question.positives, merged)]
        line = np.full(120, -1, np.int32)
        merged = merged[:120]
        line[: len(merged)] = merged
        kept[row] = line
    return kept


class Closeness:
    """The base's cosines on the host, for the guard against missed answers."""

    def __init__(self, queries: NDArray, documents: NDArray) -> None:
        """Unit vectors of both."""
        self.queries, self.documents = queries, documents

    def below(self, query: int, positives: list[int], others: NDArray) -> NDArray[np.bool_]:
        """Which of the others are not clearly closer to the query than its answers."""
        vector = self.queries[query].astype(np.float32)
        limit = float((self.documents[positives].astype(np.float32) @ vector).max()) + 0.05
        return self.documents[others].astype(np.float32) @ vector < limit


def joined(parts: list[Groups]) -> Groups:
    """All parts one after another."""
    values = {f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Groups)}
    return Groups(**values)


def training(
    asked: Asked,
    found: Found,
    safe: dict[int, NDArray],
    corpus: Corpus,
    seed: int,
    share: float = 1.0,
) -> Groups:
    """All groups of a run, shuffled."""
    rng, parts = np.random.default_rng(seed), []
    for name, count in LABELLED.items():
        own = [r for r in safe if asked.sources[r] == name]
        if own:
            rows = rng.choice(own, max(4, round(share * count)), replace=True)
            if len(own) < len(rows):  # every question before one comes again
                rows = np.concatenate([rng.permutation(own)] * (len(rows) // len(own) + 1))[
                    : len(rows)
                ]
            lines = np.stack([safe[r] for r in rows])
            parts.append(labelled(asked, rows, corpus, lines, rng))
    free = np.array([r for r, q in enumerate(asked.questions) if q is None])
    real = free[[asked.homes[r] < 0 for r in free]]
    made = free[[asked.homes[r] >= 0 for r in free]]
    parts += [unlabelled(asked, found, real, corpus, rng) for _ in range(REAL_TIMES)]
    parts.append(unlabelled(asked, found, made, corpus, rng))
    whole = joined(parts)
    return whole.take(rng.permutation(len(whole)))


PATTERNS = (
    ("definition", r"^(define|what does .* mean|meaning of|what is an? \w+$)|definition|meaning$"),
    (
        "amount",
        r"\bhow (much|many|long|old|far|tall|big|often|deep|high|fast)\b|\bcost|price|salary",
    ),
    ("how-to", r"^how (to|do|does|can|should|would|is|are)\b|^why\b"),
    ("factoid", r"^(who|when|where|which)\b|^(what|in what) (year|country|city|state|team|name)\b"),
)
DOMAINS = {
    "medquad": "medical",
    "covid_qa": "medical",
    "pubmedqa": "medical",
    "scifact": "medical",
    "conditionalqa": "legal",
    "python_code": "technical",
    "python_docs": "technical",
    "packages_code": "technical",
    "packages_docs": "technical",
    "factbook": "keyword",
    "definitions": "definition",
}


def kind(text: str, source: str) -> str:
    """Of what kind a held-out question is, for the table that choices are made by."""
    if source in DOMAINS:
        return DOMAINS[source]
    for name, pattern in PATTERNS:
        if re.search(pattern, text.lower()):
            return name
    return "keyword" if len(text.split()) < 4 else "other question"
