"""Draws the README's picture, before and after: `python .docs/pictures.py`."""

# ruff: noqa: INP001  # a script, not a package
from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt

from rerank_adapters import Reranker, plot_rank_changes
from rerank_adapters.cli.corpus import Bm25, example_folder, passages

QUESTION = "How can I get back the files that I threw away last week?"
CANDIDATES = 8
TARGET = Path(__file__).with_name("before_after.svg")


def draw(target: Path) -> None:
    """BM25's first eight passages of the example handbook, and where the reranker puts them."""
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "rerank-adapters"  # the same picture has the same bytes
    collection = list(passages(example_folder()))
    hits = Bm25(passage.full_text for passage in collection).search(QUESTION, CANDIDATES)
    found = [collection[index] for index, _ in hits]
    with Reranker() as reranker:
        ranking = reranker.rerank(QUESTION, [passage.full_text for passage in found])
    titles = [passage.title for passage in found]
    axes = plot_rank_changes(ranking, titles, scores_before=[score for _, score in hits])
    axes.set_title(QUESTION, fontsize=11)
    axes.figure.savefig(target, metadata={"Date": None})
    plt.close("all")


if __name__ == "__main__":
    draw(TARGET)
