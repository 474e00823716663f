"""`evaluate` says what spoils its numbers, `compare` compares two runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import permutation_test

from rerank_adapters import InputError, Reranker
from rerank_adapters.cli.collection import read_collection
from rerank_adapters.cli.evaluate import Collection, Report, evaluate, measures
from tests.fakes import LookupScorer
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
    result = run("evaluate", str(data), "--rerank-count", "2", "--json")
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


class _Held:
    """Documents in memory."""

    def __init__(self, texts: dict[str, str]) -> None:
        self._texts = texts

    def texts(self, ids: list[str]) -> list[str]:
        return [self._texts[name] for name in ids]


def _report(helps: bool, *, queries: int = 8, **rules: object) -> Report:
    """Two documents: the model puts the wrong one first, and the first stage the right one by far.

    helps: whether so; else the two are of one mind. By hand: nDCG@10 is 1 / log2(3) or 1.
    """
    names = [f"q{at}" for at in range(queries)]
    table = {(name, "right"): 0.5 if helps else 0.9 for name in names}
    table |= {(name, "wrong"): 0.6 for name in names} | {(name, "third"): 0.0 for name in names}
    collection = Collection(
        {name: name for name in names},
        {name: {"a": 1} for name in names},
        _Held({"a": "right", "b": "wrong", "c": "third"}),  # type: ignore[arg-type]  # all it uses
    )
    found = [("a", 9.0), ("b", 1.0), ("c", 0.5)]
    with Reranker.over(LookupScorer(table), **rules) as reranker:
        return evaluate(
            collection, lambda *_: found, reranker, candidates=3, fusing="fuse" not in rules
        )


def test_fusion_is_tested_on_the_users_data() -> None:
    """Linear: right is 0.5 / 0.6 + 1, wrong 1 + 1/17: it wins on all; p of 8 alike is 2 / 256.

    Reciprocal ranks tie (1 + 2 against 2 + 1), and ties keep the model's order: no change, p = 1.
    """
    report = _report(helps=True)
    rows = {row["method"]: row for row in report.fusion()}
    after = 1 / np.log2(3)
    assert report.mean("after", report.measures[0]) == pytest.approx(after)
    assert rows["linear"]["nDCG@10"] == pytest.approx(1)
    assert rows["linear"]["change"] == pytest.approx(1 - after)
    assert rows["linear"]["p_value"] == pytest.approx(2 / 256)
    assert (rows["rrf"]["change"], rows["rrf"]["p_value"]) == (pytest.approx(0), 1)
    assert report.fusion_verdict() == "fusing with the first stage helps 8 queries: --fuse linear"
    fused = _report(helps=True, fuse="linear")
    assert fused.mean("after", fused.measures[0]) == pytest.approx(1)
    assert fused.fusion() == []


@pytest.mark.parametrize(("helps", "queries"), [(False, 8), (True, 3)])
def test_fusion_inside_the_noise_is_not_recommended(helps: bool, queries: int) -> None:
    """No change at all, or one on three queries, whose p is 2 / 8."""
    verdict = _report(helps, queries=queries).fusion_verdict()
    assert verdict == (
        f"fusing with the first stage changes nDCG@10 of {queries} queries within the noise"
    )


def test_what_is_not_scored_stays_behind_when_fused() -> None:
    """Kept below, it has no score of the model to fuse; on the command line both are said."""
    report = _report(helps=True, rerank_count=2, rest="keep_below")
    rows = {row["method"]: row for row in report.fusion()}
    assert rows["linear"]["nDCG@10"] == pytest.approx(1 / np.log2(3))  # 0 and 1 against 1 and 0
    assert rows["rrf"]["change"] == pytest.approx(0)


def test_the_rest_is_kept_in_the_run_on_the_command_line(data: Path, tmp_path: Path) -> None:
    """--rerank-count 2 scores two; --rest keep_below writes all that BM25 found."""
    (data / "qrels.txt").write_text("q0 0 d0 1")
    (data / "queries.jsonl").write_text('{"_id": "q0", "text": "passage 0"}')
    lines = {}
    for rest in ("drop", "keep_below"):
        output = tmp_path / f"{rest}.trec"
        more = ["--rerank-count", "2", "--rest", rest, "-o", str(output)]
        answer = json.loads(run("evaluate", str(data), *more, "--json").stdout)
        assert [row["method"] for row in answer["fusion"]] == ["rrf", "linear"]
        lines[rest] = [line.split()[2] for line in output.read_text().splitlines()]
    assert len(lines["drop"]) == 2
    assert lines["keep_below"][:2] == lines["drop"]
    assert len(lines["keep_below"]) == 8
    said = run("evaluate", str(data), "--rerank-count", "2").stdout
    assert "--fuse rrf: nDCG@10" in said
    assert "fusing with the first stage changes nDCG@10 of 1 queries within the noise" in said
    assert "fusing" not in run("evaluate", str(data), "--rerank-count", "2", "--fuse", "rrf").stdout
