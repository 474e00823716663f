"""Data folders → the two things that training reads: texts and teachers, each a file that travels.

    python notebooks/training/prepare.py --data ../shared/data --out runs/main

Seeded. Everything that needs the data sets happens here; what follows reads only what is written.
"""

import argparse
import bz2
import json
import random
import time
from pathlib import Path

import junk
import teachers
import web
from data import RelevanceSet, fragment, load_all

MOST_CHARACTERS = 2600  # more than 512 tokens of English
WEB = ("nq", "squad", "clapnq", "wiki", "openstax")  # one pool for queries without labels
OWN = (
    "nq_long",
    "squad_long",
    "ares",
    "covid_qa",
    "scifact",
    "medquad",
    "selqa",
    "python_code",
    "python_docs",
    "packages_code",
    "packages_docs",
    "definitions",
    "factbook",
    "conditionalqa",
    "pubmedqa",
)
FRAGMENTS = {
    "wiki": 24000,
    "openstax": 6000,
    "nq": 4000,
    "squad": 2000,
    "scifact": 4000,
    "covid_qa": 3000,
    "medquad": 3000,
    "selqa": 2000,
    "nq_long": 1500,
    "squad_long": 700,
    "python_code": 2000,
    "python_docs": 1500,
    "packages_code": 4000,
    "packages_docs": 4000,
}
"""How many queries are made from pieces of each set's documents."""


def texts(folder: Path, seed: int, share: float) -> dict:
    """Documents of all sets end to end, questions with labels, queries without: plain data."""
    rng = random.Random(seed)
    old = {found.name: found for found in load_all(folder, seed)}
    new, places = web.load(folder, seed)
    sets = old | {found.name: found for found in new}
    sets = {name: thinned(sets[name], share, rng) for name in (*WEB, *OWN)}
    offsets, documents, spans = {}, [], []
    for name, found in sets.items():
        offsets[name] = len(documents)
        documents += [d[:MOST_CHARACTERS] for d in found.documents]
        spans.append((name, offsets[name], len(documents)))
    questions = [
        (
            q.text,
            name,
            *(tuple(offsets[name] + p for p in part) for part in (q.positives, q.given, q.listed)),
            q.answers,
            i % 12 == 0,
        )
        for name, found in sets.items()
        for i, q in enumerate(found.questions)
    ]
    real = web.real_queries(folder / "web_like", list(sets.values()))
    real = rng.sample(real, round(share * len(real)))
    made = [
        (q, name, offsets[name] + at)
        for q, name, at in web.made_queries(folder / "web_like", places, rng)
        if at < len(sets[name].documents)
    ]
    for name, count in FRAGMENTS.items():
        for _ in range(round(share * count)):
            at = rng.randrange(len(sets[name].documents))
            made.append((fragment(sets[name].documents[at], rng)[:400], name, offsets[name] + at))
    answered = web.answered(folder / "web_like")
    return {
        "documents": documents,
        "sets": spans,
        "questions": questions,
        "real": [(q, web.held(q)) for q in real],
        "made": made,
        "answered": answered,
        "junk": junk.passages(400, seed),
    }


def thinned(found: RelevanceSet, share: float, rng: random.Random) -> RelevanceSet:
    """The whole set, or for a trial a share of its questions and the documents at its beginning."""
    if share >= 1:
        return found
    kept = RelevanceSet(found.name, found.documents[: max(60, round(share * len(found.documents)))])
    within = [
        q
        for q in found.questions
        if all(p < len(kept.documents) for p in (*q.positives, *q.given, *q.listed))
    ]
    kept.questions = rng.sample(
        within, min(len(within), max(24, round(share * len(found.questions))))
    )
    return kept


def main() -> None:
    """Prepare and say what was made."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the folder of data sets")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="less than 1: a trial on a part")
    parser.add_argument("--no-teachers", action="store_true", help="texts only")
    options = parser.parse_args()
    begun = time.monotonic()
    options.out.mkdir(parents=True, exist_ok=True)
    made = texts(options.data, options.seed, options.share)
    data = json.dumps(made, ensure_ascii=False, separators=(",", ":")).encode()
    (options.out / "texts.json.bz2").write_bytes(bz2.compress(data))
    counts = {key: len(value) for key, value in made.items()}
    size = (options.out / "texts.json.bz2").stat().st_size
    print(f"{counts}, {size:,} bytes, {time.monotonic() - begun:.0f} s", flush=True)
    if not options.no_teachers:
        teachers.write(options.out, made["documents"], [q for q, _ in made["real"]])
        print(f"{time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
