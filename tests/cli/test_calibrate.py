"""`calibrate`: judged queries in, a file that other commands take out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rerank_adapters import Calibration, InputError, Reliability, Reranker, Threshold
from rerank_adapters.cli.calibrate import Judged, _held_out
from rerank_adapters.cli.corpus import example_folder
from tests.test_cli import run


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four of the example's queries with the documents judged for them, and a run of all pairs."""
    folder, rows = tmp_path / "data", []
    folder.mkdir()
    judged = [
        line.split("\t") for line in (example_folder() / "qrels.tsv").read_text().splitlines()
    ]
    queries = list(dict.fromkeys(row[0] for row in judged[1:]))[:4]
    kept = [row for row in judged[1:] if row[0] in queries]
    wanted = {row[1] for row in kept}
    for name, names in (("corpus", wanted), ("queries", set(queries))):
        lines = (example_folder() / f"{name}.jsonl").read_text("utf-8").splitlines()
        rows = [line for line in lines if json.loads(line)["_id"] in names]
        (folder / f"{name}.jsonl").write_text("\n".join(rows), "utf-8")
    (folder / "qrels.txt").write_text("\n".join(f"{q} 0 {d} {g}" for q, d, g in kept))
    run_lines = [f"{q} Q0 {d} 1 1.0 t" for q in queries for d in sorted(wanted)]
    (tmp_path / "run.trec").write_text("\n".join(run_lines))
    return folder


def test_a_collection_becomes_a_file_that_search_takes(data: Path, tmp_path: Path) -> None:
    """The fit is that of the library's own on the same pairs; the picture and numbers are so."""
    file, picture = tmp_path / "c.json", tmp_path / "c.svg"
    arguments = ["--run", str(tmp_path / "run.trec"), "-o", str(file), "--plot", str(picture)]
    answer = json.loads(run("calibrate", str(data), *arguments, "--json").stdout)
    texts = {
        row["_id"]: f"{row.get('title', '')} {row['text']}".strip()
        for name in ("corpus", "queries")
        for row in map(json.loads, (data / f"{name}.jsonl").read_text("utf-8").splitlines())
    }
    grades = {
        tuple(line.split()[:3:2]): int(line.split()[3])
        for line in (data / "qrels.txt").read_text().splitlines()
    }
    asked = [tuple(line.split()[:3:2]) for line in (tmp_path / "run.trec").read_text().splitlines()]
    pairs = [(texts[query], texts[document]) for query, document in asked]
    labels = [grades.get(pair, 0) > 0 for pair in asked]
    with Reranker() as reranker:
        wanted = reranker.calibrate(pairs, labels)
        scores = reranker.score_pairs(pairs)
    saved = Calibration.load(file)
    assert saved.weights == wanted.weights != ()
    assert (saved.pairs, saved.relevant) == (wanted.pairs, wanted.relevant)
    assert saved.temperature == pytest.approx(wanted.temperature, rel=1e-6)
    assert saved.bias == pytest.approx(wanted.bias, rel=1e-6)
    before = Reliability.of(scores, labels).expected_calibration_error
    assert answer["expected_calibration_error"]["before"] == pytest.approx(before, abs=1e-6)
    assert picture.read_text().startswith("<?xml")
    assert [row["wanted"] for row in answer["thresholds"]] == [0.5, 0.8, 0.9]
    with Reranker(calibration=file) as reranker:
        bound = Threshold.for_precision(reranker.score_pairs(pairs), labels, 0.8)
    assert answer["thresholds"][1]["score_threshold"] == pytest.approx(bound.score_threshold)
    query, document = pairs[0]
    row = json.loads(run("rerank", query, "--calibration", str(file), stdin=document).stdout)
    with Reranker(calibration=saved) as reranker:
        assert row["relevance_score"] == pytest.approx(float(reranker.score(query, [document])[0]))


def test_the_error_afterwards_is_of_queries_that_were_left_out() -> None:
    """Each fold by hand; with one query nothing is left to fit."""
    generator = np.random.default_rng(3)
    logits = generator.normal(0, 2, 60).astype(np.float32)
    relevant = generator.random(60) < 1 / (1 + np.exp(-logits))
    queries = np.repeat(np.arange(12), 5)
    found = _held_out(Judged(logits, logits, relevant, queries))
    folds = np.random.default_rng(0).permutation(12) % 5
    for query in range(12):
        rest = folds[queries] != folds[query]
        assert not rest[queries == query].any()
        wanted = Calibration.fit(logits[rest], relevant[rest]).scores(logits[queries == query])
        assert found[queries == query].tolist() == wanted.tolist()
    assert _held_out(Judged(logits, logits, relevant, np.zeros(60, np.int64))) is None


def test_judgements_that_fit_nothing_are_an_error(data: Path, tmp_path: Path) -> None:
    """Every scored pair relevant: nothing to tell apart, and no file is left."""
    first = (data / "qrels.txt").read_text().splitlines()[0].split()
    (tmp_path / "run.trec").write_text(f"{first[0]} Q0 {first[2]} 1 1.0 t")
    file = tmp_path / "c.json"
    with pytest.raises(InputError, match="labels must have relevant and other pairs"):
        run("calibrate", str(data), "--run", str(tmp_path / "run.trec"), "-o", str(file))
    assert not file.exists()
