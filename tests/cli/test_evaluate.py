"""`evaluate` says what spoils its numbers, `compare` compares two runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import permutation_test

from rerank_adapters import InputError
from rerank_adapters.cli.collection import read_collection
from rerank_adapters.cli.evaluate import measures
from tests.test_cli import run


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Eight queries, eight documents, and judgements by each test."""
    documents = [{"_id": f"d{row}", "text": f"passage {row}"} for row in range(8)]
    queries = [{"_id": f"q{row}", "text": f"topic {row}"} for row in range(8)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(map(json.dumps, documents)))
    (tmp_path / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    return tmp_path


@pytest.mark.parametrize(
    ("qrels", "said"),
    [
        (
            ["q0 0 d0 1", "q1 0 v2-d1 1"],
            "1 of 2 judged documents are not in the corpus",
        ),
        (["q0 0 d0 1", "q1 0 d1 0"], "1 of 2 queries have no relevant document"),
        (["q0 0 d0 1", "q9 0 d1 1"], "1 of 2 judged queries are not in"),
        (["q0 0 d0 1", "q0 0 d0 2"], "judges 1 pairs twice and differently, such as 'q0 d0'"),
    ],
)
def test_what_spoils_the_numbers_is_said(data: Path, qrels: list[str], said: str) -> None:
    """On standard error, with a name to look for; the rest is measured."""
    (data / "qrels.txt").write_text("\n".join(qrels))
    result = run("evaluate", str(data), "--candidates", "2", "--json")
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert json.loads(result.stdout)["queries"] >= 1


def test_a_sound_collection_has_no_notes(data: Path) -> None:
    """The same judgement twice is none."""
    (data / "qrels.txt").write_text("q0 0 d0 1\nq0 0 d0 1\nq1 0 d1 2")
    said: list[str] = []
    assert read_collection(data, tell=said.append).qrels == {"q0": {"d0": 1}, "q1": {"d1": 2}}
    assert said == []


@pytest.mark.parametrize(
    ("qrels", "queries", "message"),
    [
        ("q0 0 d0 0\nq1 0 d1 0", None, "every grade of .* is 0"),
        (
            "q0 0 d0 1",
            '{"_id": "q0", "text": "a"}\n{"_id": "q0", "text": "b"}',
            "two texts",
        ),
        ("q0 0 x 1", None, "judges none of them, but 'x'"),
    ],
)
def test_what_leaves_nothing_to_measure_is_an_error(data: Path, qrels, queries, message) -> None:
    """And is named."""
    (data / "qrels.txt").write_text(qrels)
    if queries:
        (data / "queries.jsonl").write_text(queries)
    with pytest.raises(InputError, match=message):
        read_collection(data)


def test_recall_is_shown_where_another_order_can_change_it() -> None:
    """At every cut below the number of candidates; the recall of all of them stands alone."""
    assert [str(it) for it in measures(100)] == ["nDCG@10", "RR@10", "R@5", "R@10", "R@50"]
    assert [str(it) for it in measures(10)] == ["nDCG@10", "RR@10", "R@5"]


def test_two_runs_are_compared(data: Path) -> None:
    """Reciprocal ranks worked by hand, and scipy's test of their difference."""
    (data / "qrels.txt").write_text("\n".join(f"q{row} 0 d{row} 1" for row in range(6)))
    ranks = {"a": [1, 2, 4, 5, 0, 2], "b": [1, 1, 2, 1, 2, 1]}
    for name, found in ranks.items():
        lines = []
        for row, rank in enumerate(found):
            names = [f"x{at}" for at in range(5)]
            if rank:
                names[rank - 1] = f"d{row}"
            lines += [f"q{row} Q0 {it} {at} {9 - at} t" for at, it in enumerate(names, 1)]
        (data / f"{name}.trec").write_text("\n".join(lines))
    files = [str(data / f"{name}.trec") for name in ranks]
    answer = json.loads(run("compare", *files, str(data), "--json", "--per-query").stdout)
    row = {it["measure"]: it for it in answer["measures"]}["RR@10"]
    a, b = ([1 / rank if rank else 0.0 for rank in found] for found in ranks.values())
    assert row["A"] == pytest.approx(np.mean(a))
    assert row["B"] == pytest.approx(np.mean(b))
    test = permutation_test(
        (b, a), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=np.inf
    )
    assert row["p_value"] == pytest.approx(test.pvalue)
    assert answer["per_query"]["q2"]["A"]["RR@10"] == pytest.approx(1 / 4)
    by_file = json.loads(run("compare", *files, str(data / "qrels.txt"), "--json").stdout)
    assert by_file["measures"] == answer["measures"]
    shown = run("compare", *files, str(data)).stdout
    assert shown.split()[:5] == ["measure", "A", "B", "change", "p"]
    assert "ms (p50)" not in shown
