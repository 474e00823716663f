"""What people type into search boxes, and passages like those they find: the web-like sets.

Wikipedia's core and recent articles, textbooks and some Google questions make one pool, which
queries without labels are asked of; definitions, government pages, abstracts and the factbook are
sets of their own.
"""

import gzip
import json
import random
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from data import HELD_EVERY, Question, RelevanceSet

KEPT = 0.72
"""The share of Wikipedia's passages that is used: what can travel to a lent machine in one go."""


def rows(path: Path) -> list[dict]:
    """One dict per line of a gzip file."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def titled(row: dict, rng: random.Random) -> str:
    """The passage, one time in four behind its title."""
    return f"{row['title']}. {row['text']}" if rng.random() < 0.25 else row["text"]


def held(text: str) -> bool:
    """Whether a real query is kept for choices: by its own characters, the same in every list."""
    return sum(map(ord, text.lower())) % HELD_EVERY == 0


def wikipedia(folder: Path, rng: random.Random) -> tuple[RelevanceSet, dict[str, int]]:
    """Passages, with the questions whose answer string one of BM25's first holds (weak labels)."""
    found, at = RelevanceSet("wiki"), {}
    asked = rows(folder / "queries" / "distant.jsonl.gz")
    wanted = {p for row in asked for p in row["positives"]}
    wanted |= {row["passage"] for row in rows(folder / "wiki_core" / "leads.jsonl.gz")}
    for name in ("wiki_core", "wiki_recent"):
        for row in rows(folder / name / "corpus.jsonl.gz"):
            if row["_id"] in wanted or rng.random() < KEPT:
                at[row["_id"]] = found.add(titled(row, rng))
    for row in asked:
        where = tuple(dict.fromkeys(at[p] for p in row["positives"]))
        if not held(row["query"]):
            found.questions.append(Question(row["query"], where, tuple(row["answers"])))
    return found, at


def textbooks(folder: Path, rng: random.Random) -> tuple[RelevanceSet, dict[str, int]]:
    """OpenStax passages."""
    found, at = RelevanceSet("openstax"), {}
    for row in rows(folder / "openstax" / "corpus.jsonl.gz"):
        at[row["_id"]] = found.add(titled(row, rng))
    return found, at


ASKING = (
    "define {}",
    "{} meaning",
    "what is {}",
    "{} definition",
    "{}",
    "what does {} mean",
    "meaning of {}",
)


def definitions(folder: Path, rng: random.Random) -> RelevanceSet:
    """Glossaries and a part of WordNet: the term asked for, among other definitions."""
    found = RelevanceSet("definitions")
    glossary = rows(folder / "openstax" / "glossary.jsonl.gz")
    wordnet = rng.sample(rows(folder / "wordnet" / "definitions.jsonl.gz"), 5000)
    for row in glossary + wordnet:
        text = row["definition"]
        if not text.lower().startswith(row["term"].lower()):
            text = rng.choice(("{0}: {1}", "{0} is {1}", "{0} ({1})", "{1}")).format(
                row["term"], text
            )
        question = rng.choice(ASKING).format(row["term"])
        found.questions.append(Question(question, (found.add(text),)))
    rng.shuffle(found.questions)
    return found


def factbook(folder: Path, rng: random.Random) -> RelevanceSet:
    """Fields of some countries; the other fields and countries are what competes."""
    found, by_country = RelevanceSet("factbook"), defaultdict(list)
    for row in rows(folder / "factbook" / "pairs.jsonl.gz"):
        by_country[row["country"]].append(row)
    for country in rng.sample(sorted(by_country), 40):
        for row in by_country[country]:
            where = found.add(" ".join(row["text"].split()[:300]))
            if rng.random() < 0.5:
                asked = rng.choice(("{}", "what is the {}", "{}?")).format(row["query"])
                found.questions.append(Question(asked, (where,)))
    rng.shuffle(found.questions)
    return found


def paired(folder: Path, name: str) -> RelevanceSet:
    """A set of pairs: each question among the other passages."""
    found = RelevanceSet(name)
    for row in rows(folder / name / "pairs.jsonl.gz"):
        text = " ".join(row["text"].split()[:400])
        found.questions.append(Question(row["query"], (found.add(text),)))
    return found


def real_queries(folder: Path, sets: list[RelevanceSet]) -> list[str]:
    """Questions of real users, without labels."""
    texts = [q.text for found in sets if found.name in ("nq", "clapnq") for q in found.questions]
    for name in ("wellformedness", "nq_open", "webquestions", "clapnq"):
        texts += [row["query"] for row in rows(folder / "queries" / f"{name}.jsonl.gz")]
    return list(dict.fromkeys(texts))


def answered(folder: Path) -> list[tuple[str, tuple[str, ...]]]:
    """Held-out questions of nq_open and webquestions with their answer strings."""
    found = []
    for name in ("nq_open", "webquestions"):
        for row in rows(folder / "queries" / f"{name}.jsonl.gz"):
            if held(row["query"]):
                found += [(row["query"], tuple(row["answers"]))]
    return found


ABOUT = (
    "{}",
    "{}",
    "what is {}",
    "{} definition",
    "{} facts",
    "history of {}",
    "who was {}",
    "about {}",
    "{} meaning",
    "why is {} important",
    "how does {} work",
    "types of {}",
    "{} explained",
    "what are {}",
    "{} cause",
    "difference between {} and {other}",
    "{} vs {other}",
    "how much {}",
    "how long does {} take",
    "is {} a {other}",
)


def made_queries(
    folder: Path,
    places: dict[str, dict[str, int]],
    rng: random.Random,
) -> Iterator[tuple[str, str, int]]:
    """(query, set, document it was made from): titles and headings in a searcher's words."""
    leads = rows(folder / "wiki_core" / "leads.jsonl.gz")
    for row in leads:
        title = re.sub(r"\s*\(.*?\)", "", row["title"])
        other = re.sub(r"\s*\(.*?\)", "", rng.choice(leads)["title"])
        yield rng.choice(ABOUT).format(title, other=other), "wiki", places["wiki"][row["passage"]]
    for row in rows(folder / "openstax" / "headings.jsonl.gz"):
        if len(row["query"].split()) > 1:
            yield (
                rng.choice(ABOUT[:4]).format(row["query"]),
                "openstax",
                places["openstax"][row["passage"]],
            )


def load(folder: Path, seed: int) -> tuple[list[RelevanceSet], dict[str, dict[str, int]]]:
    """The web-like sets, and where the passages of Wikipedia and the textbooks stand."""
    source = folder / "web_like"
    wiki, at_wiki = wikipedia(source, random.Random(seed))
    books, at_books = textbooks(source, random.Random(seed))
    sets = [
        paired(source, "clapnq"),
        wiki,
        books,
        definitions(source, random.Random(seed)),
        factbook(source, random.Random(seed)),
        paired(source, "conditionalqa"),
        paired(source, "pubmedqa"),
    ]
    return sets, {"wiki": at_wiki, "openstax": at_books}
