"""The command line, in process, with the bundled model and the example collection."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import ir_measures
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from rerank_adapters import InputError, Reranker
from rerank_adapters.cli import evaluate as evaluation
from rerank_adapters.cli import tune as tuning
from rerank_adapters.cli.app import app
from rerank_adapters.cli.corpus import Bm25, example_folder, passages
from rerank_adapters.cli.reading import excerpts
from rerank_adapters.cli.search import moved
from tests.checkpoints import build

CORPUS = example_folder()


def pdf(text: str) -> bytes:
    """The smallest PDF of one page that says *text*."""
    stream = f"BT /F1 12 Tf 20 200 Td ({text}) Tj ET"
    objects = [
        "<</Type/Catalog/Pages 2 0 R>>",
        "<</Type/Pages/Kids[3 0 R]/Count 1>>",
        "<</Type/Page/Parent 2 0 R/MediaBox[0 0 300 300]/Contents 4 0 R/Resources<</Font<</F1 5 0 R"
        + ">>" * 3,
        f"<</Length {len(stream)}>>stream\n{stream}\nendstream",
        "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    body, places = "%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(body))
        body += f"{number} 0 obj{content}endobj\n"
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    count = len(objects) + 1
    end = f"xref\n0 {count}\n0000000000 65535 f \n{table}trailer<</Root 1 0 R/Size {count}>>\n"
    return (body + end + f"startxref\n{len(body)}\n%%EOF").encode()


def run(*arguments: str, stdin: str | None = None) -> Result:
    """The command's result; an error that is not its own is raised here."""
    result = CliRunner().invoke(app, list(arguments), input=stdin, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One file of each kind that is read, and some that are not."""
    (tmp_path / "notes.txt").write_text("The tide gauge is read every ten minutes.\n")
    (tmp_path / "guide.md").write_text(
        "# Guide\n\nFirst lines.\n\n## Kites\n\nKites fly best at noon.\n"
    )
    (tmp_path / "page.html").write_text(
        "<html><body><p>Bees <b>dance</b> to tell.</p></body></html>"
    )
    (tmp_path / "tool.py").write_text("import os\n\n\ndef sharpen(pencil):\n    return pencil\n")
    (tmp_path / "paper.pdf").write_bytes(pdf("The kelp barometer rises at dawn"))
    (tmp_path / ".hidden.txt").write_text("secret kites")
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    return tmp_path


@pytest.mark.parametrize(
    ("query", "place", "piece"),
    [
        ("tide gauge", "notes.txt:1", "every ten minutes"),
        ("when do kites fly", "guide.md:", "Kites fly best at noon"),
        ("bees dance", "page.html:", "dance"),
        ("sharpen pencil", "tool.py:1", "def sharpen"),
        ("kelp barometer", "paper.pdf, page 1", "kelp barometer rises"),
    ],
)
def test_search_reads_every_kind_of_file(folder: Path, query: str, place: str, piece: str) -> None:
    """Text, Markdown, HTML, source code and PDF; the hit names its file and line or page."""
    answer = json.loads(run("search", query, str(folder), "--json").stdout)
    best = answer["results"][0]
    assert place in best["place"]
    assert piece in best["text"]
    assert not any(".hidden" in hit["place"] for hit in answer["results"])


def test_search_shows_what_moved_and_the_best_passage(folder: Path) -> None:
    """The table has old ranks; the panel holds the best passage."""
    shown = run("search", "when do kites fly", str(folder)).stdout
    assert "best passage" in shown
    assert "candidates by BM25, reranked in" in shown
    assert [moved(3, 1), moved(1, 3), moved(2, 2)] == [
        "3 [green]▲2[/green]",
        "1 [red]▼2[/red]",
        "2",
    ]


def test_candidates_and_top_n_bound_the_search(folder: Path) -> None:
    """--candidates limits what is reranked, --top-n what is shown."""
    (folder / "more.txt").write_text("\n\n".join(f"Kites over field {n}. " * 40 for n in range(6)))
    few = json.loads(run("search", "kites", str(folder), "--json", "--candidates", "2").stdout)
    assert few["candidates"] == len(few["results"]) == 2
    one = json.loads(run("search", "kites", str(folder), "--json", "-n", "1").stdout)
    assert one["candidates"] > len(one["results"]) == 1


def test_unreadable_paths_are_named(tmp_path: Path) -> None:
    """A missing path, a damaged PDF and a folder without text."""
    with pytest.raises(InputError, match=r"PATH must be a file or a folder: got '.*none'"):
        excerpts([tmp_path / "none"])
    with pytest.raises(InputError, match="PATH must hold text: found none"):
        excerpts([tmp_path])
    (tmp_path / "broken.pdf").write_bytes(b"not a pdf")
    with pytest.raises(InputError, match=r"PATH must be a readable PDF: got '.*broken\.pdf'"):
        excerpts([tmp_path])


LINES = ["bread and butter", "the tower is 70 m tall", "", "rain"]


def test_rerank_ranks_lines_as_the_library_does() -> None:
    """JSON lines come out, best first, with the library's own scores and the lines' places."""
    rows = [
        json.loads(line)
        for line in run(
            "rerank", "how tall is the tower", stdin="\n".join(LINES)
        ).stdout.splitlines()
    ]
    texts = [line for line in LINES if line]
    with Reranker.from_pretrained() as reranker:
        ranking = reranker.rerank("how tall is the tower", texts)
    assert [row["text"] for row in rows] == ranking.select(texts)
    assert [row["relevance_score"] for row in rows] == [place.score for place in ranking]


def test_rerank_keeps_every_field_of_json_lines() -> None:
    """--text-field picks the text; --top-n and --score-threshold cut."""
    rows = [{"body": text, "id": number} for number, text in enumerate(LINES)]
    stdin = "\n".join(json.dumps(row) for row in rows)
    out = run("rerank", "how tall is the tower", "--text-field", "body", "-n", "1", stdin=stdin)
    (best,) = map(json.loads, out.stdout.splitlines())
    assert {name: best[name] for name in ("body", "id", "index")} == {**rows[1], "index": 1}
    none = run("rerank", "tower", "--text-field", "body", "--score-threshold", "2", stdin=stdin)
    assert none.stdout == ""


def test_errors_are_one_line_and_exit_code_2(tmp_path: Path) -> None:
    """Whatever is wrong: the message on stderr, nothing on stdout, no traceback."""
    cases = [
        (["rerank", "q"], '{"no": "text"}', "line 1 must have a text under 'text'"),
        (["rerank", ""], "a", "query must not be blank"),
        (["info", "/no/such/model"], "", "model must be a folder or a hub id"),
        (["evaluate", str(tmp_path)], "", "DATA must hold corpus.jsonl"),
    ]
    code = "import sys; from rerank_adapters.cli import main; main()"
    for arguments, stdin, message in cases:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.startswith("rerank-adapters: " + message)
        assert len(done.stderr.strip().splitlines()) == 1


def test_evaluate_agrees_with_ir_measures_and_writes_the_run(tmp_path: Path) -> None:
    """Before, after and the written run: the same numbers by ir-measures on the whole."""
    output = tmp_path / "run.trec"
    out = run(
        "evaluate", str(CORPUS), "--json", "--per-query", "--candidates", "20", "-o", str(output)
    )
    answer = json.loads(out.stdout)
    qrels = [
        ir_measures.Qrel(query, name, grade)
        for query, judged in evaluation.read_qrels(CORPUS / "qrels.tsv").items()
        for name, grade in judged.items()
    ]
    written = list(ir_measures.read_trec_run(str(output)))
    measure = ir_measures.nDCG @ 10
    found = ir_measures.calc_aggregate([measure], qrels, written)[measure]
    by_name = {row["measure"]: row for row in answer["measures"]}
    # The run file keeps six decimals, so scores that differ beyond them may swap: 1e-3.
    assert by_name["nDCG@10"]["after"] == pytest.approx(found, abs=1e-3)
    collection = list(passages(CORPUS))
    index = Bm25([passage.full_text for passage in collection])
    texts = {
        row["_id"]: row["text"]
        for row in map(json.loads, (CORPUS / "queries.jsonl").read_text().splitlines())
    }
    bm25 = [
        ir_measures.ScoredDoc(query, collection[place].id, score)
        for query, text in texts.items()
        for place, score in index.search(text, 20)
    ]
    expected = ir_measures.calc_aggregate([measure], qrels, bm25)[measure]
    assert by_name["nDCG@10"]["before"] == pytest.approx(expected, abs=1e-6)
    assert by_name["nDCG@10"]["after"] > by_name["nDCG@10"]["before"] + 0.05
    assert by_name["R@20"]["after"] == by_name["R@20"]["before"], "reranking loses nothing"
    assert len(answer["per_query"]) == answer["queries"] == 45
    again = json.loads(
        run("evaluate", str(CORPUS), "--json", "--run", str(output), "--candidates", "20").stdout
    )
    assert again["measures"][0]["before"] == pytest.approx(found, abs=1e-6)


def test_a_failed_evaluation_leaves_no_run_behind(tmp_path: Path) -> None:
    """The output appears whole or not at all, and an old one stays."""
    run_file, output = tmp_path / "in.trec", tmp_path / "out.trec"
    run_file.write_text("q-01 Q0 doc-001 1 1.0 x\nq-02 Q0 no-such-doc 1 1.0 x\n")
    output.write_text("old")
    result = CliRunner().invoke(
        app, ["evaluate", str(CORPUS), "--run", str(run_file), "-o", str(output)]
    )
    assert isinstance(result.exception, InputError)
    assert "no-such-doc" in str(result.exception)
    assert output.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.trec", "out.trec"]


def test_documents_are_read_from_disk_when_asked(tmp_path: Path) -> None:
    """A corpus of 20 MB costs a small share of it in memory."""
    file = tmp_path / "corpus.jsonl"
    with file.open("w") as out:
        for number in range(2000):
            out.write(json.dumps({"_id": str(number), "text": f"{number} " * 2000}) + "\n")
    tracemalloc.start()
    documents = evaluation.Documents(file)
    assert documents.texts(["1999", "0"]) == [("1999 " * 2000).strip(), ("0 " * 2000).strip()]
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 0.1 * file.stat().st_size


def test_qrels_come_in_beir_and_trec_form(tmp_path: Path) -> None:
    """Three columns with a header, or four without."""
    (tmp_path / "beir.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\n")
    (tmp_path / "trec.txt").write_text("q1 0 d1 2\nq1 0 d2 0\n")
    for name in ("beir.tsv", "trec.txt"):
        assert evaluation.read_qrels(tmp_path / name) == {"q1": {"d1": 2, "d2": 0}}
    (tmp_path / "bad.txt").write_text("q1 0 d1 2\nq1 0 d2 high\n")
    with pytest.raises(InputError, match=r"bad\.txt:2 must be a judgement"):
        evaluation.read_qrels(tmp_path / "bad.txt")


@pytest.mark.parametrize(("deltas", "expected"), [([0.5, 0.5, 0.5], 2 / 8), ([0.1, -0.1], 1.0)])
def test_significance_is_the_randomisation_test(deltas: list[float], expected: float) -> None:
    """Worked by hand: of 2^n sign patterns, those as extreme as the one seen."""
    measure = ir_measures.nDCG @ 10
    report = evaluation.Report((measure,))
    for number, delta in enumerate(deltas):
        report.before[str(number)] = {str(measure): 0.0}
        report.after[str(number)] = {str(measure): delta}
    # 10,000 draws: three standard errors of the share are 0.013
    assert report.p_value(measure) == pytest.approx(expected, abs=0.013)


def test_tune_measures_every_setting_and_names_the_best() -> None:
    """Each backend × dtype × candidates × length, with quality; refused ones say why."""
    arguments = ["--candidates", "5", "--candidates", "10", "--max-length", "64", "--queries", "3"]
    answer = json.loads(run("tune", str(CORPUS), *arguments, "--budget-ms", "1e6", "--json").stdout)
    kinds = {(one["backend"], one["dtype"]) for one in answer["settings"] + answer["refused"]}
    assert kinds == set(tuning.TRIED)
    assert {one["candidates"] for one in answer["settings"]} == {5, 10}
    assert answer["best"]["ndcg10"] == max(one["ndcg10"] for one in answer["settings"])
    plain = json.loads(run("tune", *arguments, "--json").stdout)
    assert {one["ndcg10"] for one in plain["settings"]} == {None}
    assert plain["best"] is None


def test_the_best_setting_fits_the_budget() -> None:
    """Quality first; without quality more candidates; ties to the faster; None where none fits."""

    def setting(p95: float, quality: float | None, *, candidates: int = 10, p50: float = 1.0):
        return tuning.Setting("onnx", "int8", candidates, 512, p50, p95, quality)

    slow, good, fast = setting(90, 0.9), setting(40, 0.8, p50=9), setting(40, 0.8, p50=2)
    assert tuning.best([slow, good, fast], 100) is slow
    assert tuning.best([slow, good, fast], 50) is fast
    assert tuning.best([slow, good, fast], 10) is None
    few, many = setting(5, None, candidates=20), setting(9, None, candidates=50)
    assert tuning.best([few, many], 10) is many


def test_export_writes_a_checked_file(tmp_path: Path) -> None:
    """The int8 file loads and scores; the report names it."""
    out = run("export", str(build("bert")), str(tmp_path / "onnx"), "--dtype", "int8", "--json")
    facts = json.loads(out.stdout)
    assert Path(facts["file"]).name == "model_int8.onnx"
    with Reranker.from_pretrained(str(tmp_path / "onnx"), dtype="int8") as reranker:
        assert np.isfinite(reranker.score("a query", ["a text"])).all()


def test_info_tells_of_a_model_and_of_the_machine() -> None:
    """With a model what runs and why; without, families and what is here."""
    facts = json.loads(run("info", "default", "--json").stdout)
    assert (facts["backend"], facts["dtype"]) == ("onnx", "int8")
    machine = json.loads(run("info", "--json").stdout)
    assert "default (bundled)" in machine["models here"]
    assert any("ModernBERT" in family for family in machine["families tested"])


def test_demo_runs_both_frameworks_offline() -> None:
    """Both tables, scores and milliseconds; any socket would have raised."""
    shown = run("demo").stdout
    for piece in ("Sockets are blocked", "LangChain chain", "LlamaIndex query engine", " ms."):
        assert piece in shown
