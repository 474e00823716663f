"""What a model's scores mean, and what slips of the questioner cost: three small measurements.

    python notebooks/training/robust.py --data ../shared/data --out notebooks/training/robust.json

plain: 200 question-answer pairs written for this repository (`plain.tsv`): the median score of the
right answer, and of the best of the 199 others. nothing: the mean score of blank, boilerplate and
foreign passages under the same questions. asked otherwise: nDCG@10 on nq_qed's development
questions as they are and with a typo, in upper case, without a question mark, by keywords alone.
"""

import argparse
import json
import random
from pathlib import Path

import junk
import numpy as np
from asking import keywords, typo
from quality import beir, ndcg_by_query

from rerank_adapters import Reranker


def plain(reranker: Reranker) -> dict[str, float]:
    """Medians over the plain pairs, and the mean score of passages that answer nothing."""
    lines = (Path(__file__).parent / "plain.tsv").read_text(encoding="utf-8").splitlines()
    questions, answers = zip(*(line.split("\t") for line in lines), strict=True)
    table = np.stack([reranker.score(question, list(answers)) for question in questions])
    right = table.diagonal().copy()
    others = table.copy()
    np.fill_diagonal(others, -np.inf)
    shown = {
        "answer, median": np.median(right),
        "best other, median": np.median(others.max(1)),
        "answer first, share": np.mean(right > others.max(1)),
    }
    kinds = {
        "blank": ["", " ", "\n\t"],
        "boilerplate": junk.BOILERPLATE,
        "other languages": junk.FOREIGN,
        "off topic": list(answers),
    }
    for name, texts in kinds.items():
        means = [
            others[i].clip(0).mean() if name == "off topic" else reranker.score(q, texts).mean()
            for i, q in enumerate(questions[::4])
        ]
        shown[f"{name}, mean"] = np.mean(means)
    return {key: round(float(value), 4) for key, value in shown.items()}


def asked_otherwise(reranker: Reranker, data: Path, limit: int, seed: int) -> dict[str, float]:
    """nDCG@10 of the same candidates under each way to ask."""
    measured = beir("nq_qed dev", data / "nq_qed" / "dev_beir", limit, seed, joined=True)
    rng = random.Random(seed)
    ways = {
        "as asked": str,
        "upper case": str.upper,
        "no question mark": lambda q: q.rstrip(" ?"),
        "keywords": keywords,
        "typo": lambda q: typo(q, rng),
    }
    found = {}
    for name, change in ways.items():
        asked = {key: change(text) for key, text in measured.queries.items()}
        pairs = [(asked[q], measured.documents[d]) for q, d in measured.pairs()]
        values = ndcg_by_query(measured, measured.score(reranker.score_pairs(pairs)))
        found[name] = round(float(np.mean(list(values.values()))), 4)
    return found


def main() -> None:
    """Measure and print; with `--out` keep it under the model's label."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, help="the folder of data sets; without it the pairs alone"
    )
    parser.add_argument("--model", default="default")
    parser.add_argument("--label", default="ours")
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with Reranker(options.model, backend="onnx") as reranker:
        found = plain(reranker)
        if options.data:
            found |= asked_otherwise(reranker, options.data, options.queries, options.seed)
    print(options.label, json.dumps(found, indent=1))
    if options.out:
        whole = json.loads(options.out.read_text()) if options.out.exists() else {}
        options.out.write_text(json.dumps(whole | {options.label: found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
