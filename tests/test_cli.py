"""The command line, in process, with the bundled model and the example collection."""

from __future__ import annotations

import io
import json
import math
import os
import re
import shlex
import socket
import stat
import subprocess
import sys
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import ir_measures
import numpy as np
import pytest
import typer
from scipy.stats import permutation_test
from typer.testing import CliRunner, Result

import rerank_adapters
from rerank_adapters import ConfigError, EarlyExit, InputError, Reranker, RerankerConfig, Windows
from rerank_adapters.clean import cells
from rerank_adapters.cli import evaluate as evaluation
from rerank_adapters.cli import main
from rerank_adapters.cli import tune as tuning
from rerank_adapters.cli.app import app
from rerank_adapters.cli.collection import Documents, read_collection
from rerank_adapters.cli.console import progress, say, table
from rerank_adapters.cli.corpus import Bm25, example_folder, passages
from rerank_adapters.cli.demo import no_network
from rerank_adapters.cli.options import DEFAULTS, mapping
from rerank_adapters.cli.reading import excerpts
from rerank_adapters.cli.search import moved
from rerank_adapters.config import OPTIONS
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
    body, offsets = "%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        offsets.append(len(body))
        body += f"{number} 0 obj{content}endobj\n"
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
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
    ("query", "source", "piece"),
    [
        ("tide gauge", "notes.txt:1", "every ten minutes"),
        ("when do kites fly", "guide.md:", "Kites fly best at noon"),
        ("bees dance", "page.html:", "dance"),
        ("sharpen pencil", "tool.py:1", "def sharpen"),
        ("kelp barometer", "paper.pdf, page 1", "kelp barometer rises"),
    ],
)
def test_search_reads_every_kind_of_file(folder: Path, query: str, source: str, piece: str) -> None:
    """Text, Markdown, HTML, source code and PDF; the hit names its file and line or page."""
    answer = json.loads(run("search", query, str(folder), "--json").stdout)
    best = answer["results"][0]
    assert source in best["source"]
    assert piece in best["text"]
    assert not any(".hidden" in hit["source"] for hit in answer["results"])


def test_search_shows_what_moved_and_the_best_passage(folder: Path) -> None:
    """The table has old ranks; the panel holds the best passage."""
    shown = run("search", "when do kites fly", str(folder)).stdout
    assert "best passage" in shown
    assert "▶1" in shown
    assert " by BM25), reranked in" in shown
    texts = [moved(3, 1), moved(1, 3), moved(2, 2), moved(None, 4)]
    assert [text.plain for text in texts] == ["3 ▲2", "1 ▼2", "2", "new"]
    assert [str(text.spans[0].style) for text in texts[:2]] == ["green", "red"]


def test_candidates_and_top_n_bound_the_search(folder: Path) -> None:
    """--rerank-count limits what is reranked, --top-n what is shown."""
    (folder / "more.txt").write_text("\n\n".join(f"Kites over field {n}. " * 40 for n in range(6)))
    few = json.loads(run("search", "kites", str(folder), "--json", "--rerank-count", "2").stdout)
    assert few["candidates"] == len(few["results"]) == 2
    one = json.loads(run("search", "kites", str(folder), "--json", "-n", "1").stdout)
    assert one["candidates"] > len(one["results"]) == 1


def test_unreadable_files_are_named_or_passed_over(folder: Path) -> None:
    """Named outright they are an error; in a folder the rest is read, and the loss is told."""
    with pytest.raises(InputError, match=r"PATH must be a file or a folder: got '.*none'"):
        excerpts([folder / "none"])
    (folder / "empty").mkdir()
    with pytest.raises(InputError, match="PATH must hold text: found none"):
        excerpts([folder / "empty"])
    whole = excerpts([folder])
    (folder / "broken.pdf").write_bytes(b"not a pdf")
    (folder / "binary.txt").write_bytes(b"\x00\x01")
    skipped: list[str] = []
    assert excerpts([folder], skipped=skipped.append) == whole
    named = [line for line in skipped if line.startswith("passed over")]
    assert [Path(line.split("'")[1]).name for line in named] == ["binary.txt", "broken.pdf"]
    with pytest.raises(InputError, match=r"PATH must be a readable PDF: got '.*broken\.pdf'"):
        excerpts([folder / "broken.pdf"])
    with pytest.raises(InputError, match=r"PATH must be text: got '.*binary\.txt'"):
        excerpts([folder / "binary.txt"])


def test_a_file_named_twice_is_read_once(folder: Path) -> None:
    """By its folder and by itself."""
    assert excerpts([folder, folder / "notes.txt"]) == excerpts([folder])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_text_is_decoded(tmp_path: Path, encoding: str) -> None:
    """UTF-8 with and without its mark, UTF-16 with its mark, and Windows' letters."""
    (tmp_path / "a.txt").write_bytes("naïve café".encode(encoding))
    assert [it.text for it in excerpts([tmp_path])] == ["naïve café"]


def test_places_name_the_lines_of_the_file(tmp_path: Path) -> None:
    """Windows newlines split like others; HTML counts its own lines; scripts are not text."""
    (tmp_path / "a.txt").write_bytes(b"\r\n".join([b"one " * 200, b"", b"two " * 200]))
    assert [it.source.rpartition(":")[2] for it in excerpts([tmp_path / "a.txt"])] == ["1", "3"]
    page = "<html>\n<script>var x;</script>\n<!-- no -->\n<p>Bees\ndance</p></html>"
    (tmp_path / "b.html").write_text(page)
    (found,) = excerpts([tmp_path / "b.html"])
    assert (found.source.rpartition(":")[2], found.text) == ("4", "Bees dance")


@pytest.mark.parametrize("query", ["zzz", "the", "..."])
def test_a_query_that_shares_no_word_is_still_answered(folder: Path, query: str) -> None:
    """BM25 has nothing to hand on, so all passages are ranked, and a note says so."""
    found = run("search", query, str(folder), "--json", "--rerank-count", "3")
    answer = json.loads(found.stdout)
    assert answer["candidates"] == answer["passages"] > 3
    assert {hit["bm25_rank"] for hit in answer["results"]} == {None}
    assert "no passage shares a word with the query: all " in found.stderr


def test_text_without_a_word_is_searched(tmp_path: Path) -> None:
    """bm25s cannot index it; nothing is printed about that."""
    (tmp_path / "a.txt").write_text("... !!!")
    answer = json.loads(run("search", "kites", str(tmp_path), "--json").stdout)
    assert answer["results"][0]["text"] == "... !!!"


LINES = ["bread and butter", "the tower is 70 m tall", "", "rain"]


def test_rerank_ranks_lines_as_the_library_does() -> None:
    """JSON lines come out, best first, with the library's own scores and the lines' indices."""
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
    assert [row["relevance_score"] for row in rows] == [document.score for document in ranking]


def test_rerank_keeps_every_field_of_json_lines() -> None:
    """--text-field picks the text; --top-n and --score-threshold cut."""
    rows = [{"body": text, "id": number} for number, text in enumerate(LINES)]
    stdin = "\n".join(json.dumps(row) for row in rows)
    out = run("rerank", "how tall is the tower", "--text-field", "body", "-n", "1", stdin=stdin)
    (best,) = map(json.loads, out.stdout.splitlines())
    assert {name: best[name] for name in ("body", "id", "index")} == {**rows[1], "index": 1}
    none = run("rerank", "tower", "--text-field", "body", "--score-threshold", "2", stdin=stdin)
    assert none.stdout == ""


def command(
    *arguments: str, stdin: bytes = b"", **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """The command line as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "rerank_adapters", *arguments],
        input=stdin,
        capture_output=True,
        env=os.environ | environment,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        (["rerank", "q"], '{"no": "text"}', "line 1 must have a text under 'text'"),
        (["rerank", "q"], '["a", 3]', "item 2 must have a text under 'text'"),
        (["rerank", "q", "--jsonl"], '{"text": "a"}\n\n{bad', "line 3 must be a JSON object"),
        (["rerank", "q", "--jsonl"], '{"text": "a"}\n{}', "line 2 must have a text under 'text'"),
        (["rerank", "q", "--jsonl", "--text"], "a", "--text and --jsonl must not be given both"),
        (["rerank", ""], "a", "query must not be blank"),
        (["rerank", "q", "--top-n", "0"], "a", "Invalid value for '--top-n'"),
        (["search"], "", "Missing argument 'QUERY' (see rerank-adapters search --help)"),
        (["serch"], "", "No such command 'serch'"),
        (["info", "--nope"], "", "No such option: --nope"),
        (["info", "/no/such/model"], "", "model must be a folder or a hub id"),
        (["evaluate", "/no/such/folder"], "", "DATA must hold judgements"),
        (["evaluate", str(CORPUS), "--run", "/no/run"], "", "Invalid value for '--run'"),
        (["evaluate", str(CORPUS), "-o", "/no/folder/x"], "", "--output must be a file in"),
        (["tune", "--model", "/no/such/model"], "", "no setting runs here: model must be"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(capsys, monkeypatch, arguments, stdin, message):
    """Whatever is wrong: the message on stderr, nothing on stdout, no traceback."""
    data = stdin if isinstance(stdin, bytes) else stdin.encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    out, err = capsys.readouterr()
    assert stopped.value.code == 2
    assert out == ""
    assert err.startswith("rerank-adapters: " + message)
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("module", "argument", "extra"),
    [("typer", "info", "cli"), ("llama_index", "demo", "langchain,llama-index")],
)
def test_without_the_extra_the_error_names_it(module: str, argument: str, extra: str) -> None:
    """The command is installed with the package, its libraries are not."""
    code = f"import sys; sys.modules[{module!r}] = None\n"
    code += f"from rerank_adapters.cli import main; main([{argument!r}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    cure = f"pip install 'rerank-adapters[{extra}]'"
    assert done.stderr == f"rerank-adapters: `{module}` is not installed: {cure}\n"


def test_table_cells_and_lines_are_not_markup(capsys) -> None:
    """Query ids, paths and the extras in a cure keep their brackets."""
    table(["query", "score"], [["[red]q1[/red]", "1"]])
    say("pip install 'rerank-adapters[torch]'")
    shown = capsys.readouterr().out
    assert "[red]q1[/red]" in shown
    assert "rerank-adapters[torch]" in shown


def test_version_and_help() -> None:
    """`--version`; the help alone; every command takes --json."""
    assert run("--version").stdout == f"rerank-adapters {rerank_adapters.__version__}\n"
    assert "Commands" in run().stdout
    for name in ("search", "rerank", "evaluate", "tune", "export", "info", "demo"):
        assert "--json" in run(name, "--help").stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a POSIX shell and /dev/full")
def test_a_reader_that_leaves_and_a_full_disk_end_it_quietly() -> None:
    """`| head -1` gets its line; /dev/full is one line of error. No traceback from either."""
    # more output than a pipe holds, so that writing goes on after head has left
    lines = "\n".join(f"line {number} " + "x" * 900 for number in range(200)).encode()
    code = f"{sys.executable} -m rerank_adapters rerank q --max-length 8"
    head = subprocess.run(
        ["bash", "-c", f"{code} | head -1"], input=lines, capture_output=True, check=False
    )
    assert len(head.stdout.splitlines()) == 1
    assert head.stderr == b""
    full = subprocess.run(
        ["bash", "-c", f"{code} > /dev/full"], input=lines, capture_output=True, check=False
    )
    assert full.returncode == 2
    assert full.stderr == b"rerank-adapters: No space left on device\n"


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")
def test_ctrl_c_ends_it_in_one_line() -> None:
    """Whatever it was doing: exit code 130, no traceback."""
    code = """
import os, signal
from rerank_adapters.cli import main, search
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
def interrupted(*_, **__):
    os.kill(os.getpid(), signal.SIGINT)
search.rerank = interrupted
main(["rerank", "q"])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], input=b"a", capture_output=True, check=False
    )
    assert (done.returncode, done.stdout) == (130, b"")
    assert done.stderr == b"rerank-adapters: interrupted\n"


def test_nothing_but_the_answer_is_on_standard_output(folder: Path) -> None:
    """A pipe that knows ASCII alone gets JSON with escapes; no colour, no progress, 80 columns."""
    (folder / "naïve.txt").write_text("Kites fly over the café.\n", encoding="utf-8")
    arguments = ("search", "kites café", str(folder))
    done = command(*arguments, "--json", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.stderr.decode().splitlines() == ["rerank-adapters: not read: 1 .png"]
    assert done.stdout.isascii()
    assert "Kites fly over the café." in {hit["text"] for hit in json.loads(done.stdout)["results"]}
    plain = command(*arguments, PYTHONIOENCODING="utf-8", COLUMNS="80")
    assert b"\x1b" not in plain.stdout
    hits = plain.stdout.decode().partition("passages,")[0]
    assert max(map(cells, hits.splitlines())) <= 80


def test_names_and_texts_are_not_markup(tmp_path: Path) -> None:
    """Brackets stay; escape sequences in a file cannot reach the terminal."""
    (tmp_path / "[red].txt").write_text("kites [bold]fly[/bold] \x1b[2J now")
    shown = run("search", "kites", str(tmp_path / "[red].txt")).stdout
    assert "[red].txt:1" in shown.replace("\n", "").replace(" ", "")
    assert "[bold]fly[/bold]" in shown
    assert "\x1b" not in shown


def test_evaluate_agrees_with_ir_measures_and_writes_the_run(tmp_path: Path) -> None:
    """Before, after and the written run: the same numbers by ir-measures on the whole."""
    output = tmp_path / "run.trec"
    out = run(
        "evaluate", str(CORPUS), "--json", "--per-query", "--rerank-count", "20", "-o", str(output)
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
    # Nine digits keep every score apart; only exact ties could be read in another order.
    assert by_name["nDCG@10"]["after"] == pytest.approx(found, abs=1e-6)
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(output.stat().st_mode) == 0o666 & ~mask, "an ordinary file"
    collection = list(passages(CORPUS))
    retriever = Bm25([passage.full_text for passage in collection])
    texts = {
        row["_id"]: row["text"]
        for row in map(json.loads, (CORPUS / "queries.jsonl").read_text().splitlines())
    }
    bm25 = [
        ir_measures.ScoredDoc(query, collection[index].id, score)
        for query, text in texts.items()
        for index, score in retriever.search(text, 20)
    ]
    expected = ir_measures.calc_aggregate([measure], qrels, bm25)[measure]
    assert by_name["nDCG@10"]["before"] == pytest.approx(expected, abs=1e-6)
    assert by_name["nDCG@10"]["after"] > by_name["nDCG@10"]["before"] + 0.05
    assert list(by_name) == ["nDCG@10", "RR@10", "R@5", "R@10"], "what another order can change"
    ceiling = ir_measures.R @ 20
    assert answer["R@20"] == pytest.approx(
        ir_measures.calc_aggregate([ceiling], qrels, bm25)[ceiling]
    )
    assert len(answer["per_query"]) == answer["queries"] == 45
    again = json.loads(
        run("evaluate", str(CORPUS), "--json", "--run", str(output), "--rerank-count", "20").stdout
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
    documents = Documents(file)
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


CORPORA = {
    "corpus.jsonl": '{"_id": "d1", "title": "A", "text": "one"}\r\n{"id": "d2", "text": "two"}',
    "collection.tsv": "d1\tA\tone\nd2\ttwo\n",
    "corpus.trec": "<DOC>\n<DOCNO> d1 </DOCNO>\n<TITLE>A</TITLE>\n<TEXT>\none\n</TEXT>\n</DOC>\n"
    "<DOC><DOCNO>d2</DOCNO><TEXT>two</TEXT></DOC>\n",
}
QUERIES = {
    "queries.jsonl": '\ufeff{"_id": "q1", "text": "who?"}\n{"_id": "q2", "text": "unjudged"}\n',
    "queries.tsv": "q1\twho?\nq2\tunjudged",
    "topics.trec": "<top>\n<num> Number: q1\n<title> who?\n<desc> Description:\nwhy\n</top>\n"
    "<top>\n<num>q2</num><title>unjudged</title>\n</top>\n",
}


@pytest.mark.parametrize("corpus", CORPORA)
@pytest.mark.parametrize("queries", QUERIES)
def test_collections_come_in_beir_and_trec_form(tmp_path: Path, corpus: str, queries: str) -> None:
    """JSONL, tab-separated and SGML say the same; only judged queries are kept."""
    (tmp_path / corpus).write_text(CORPORA[corpus], newline="")
    (tmp_path / queries).write_text(QUERIES[queries], encoding="utf-8")
    (tmp_path / "qrels.txt").write_text("q1 0 d2 1\n")
    found = evaluation.read_collection(tmp_path)
    assert found.queries == {"q1": "who?"}
    assert found.qrels == {"q1": {"d2": 1}}
    assert found.documents.ids == ["d1", "d2"]
    assert found.documents.texts(["d2", "d1"]) == ["two", "A one"]
    assert list(found.documents.stream()) == ["A one", "two"]


BROKEN = [
    ("corpus.jsonl", '{"_id": "d1", "text": "one"}\n{"text": "two"}', r"jsonl:2 must be a JSON"),
    ("corpus.jsonl", '{"_id": "d1", "text": "one"}\n\n[1]', r"jsonl:3 must be a JSON object"),
    ("corpus.jsonl", '{"_id": "d1"}\n{"_id": "d1"}', "each document once: got 'd1' twice"),
    ("queries.jsonl", '{"_id": "q1", "text": " "}', "a text for every query: 'q1' has none"),
    ("qrels.tsv", "q1\td1\t1\nq1\td1\thigh", r"qrels\.tsv:2 must be a judgement"),
    ("qrels.tsv", "q1\t0\t0\td1\t1", r"qrels\.tsv:1 must have 3 or 4 columns"),
    ("qrels.tsv", "q9\td1\t1", "qrels must judge some of the queries"),
    ("qrels.tsv", "q1\td9\t1", "qrels must judge some of the documents"),
    ("run.trec", "q1 Q0 d1 1 high x", r"run\.trec:1 must be `query Q0"),
    ("run.trec", "\nq1 Q0 d1 1 nan x", r"run\.trec:2 must have a finite score: got nan"),
    ("run.trec", "q1 Q0 d1 1 2 x\nq1 Q0 d1 2 1 x", r"trec:2 must not repeat 'd1' for query 'q1'"),
    ("run.trec", "q9 Q0 d1 1 2 x", "run must hold some of the judged queries"),
]


@pytest.mark.parametrize(("name", "text", "message"), BROKEN)
def test_broken_collections_are_named_by_file_and_line(tmp_path, name, text, message) -> None:
    """What is wrong, where, and with which value; also ids that match nothing."""
    files = {
        "corpus.jsonl": '{"_id": "d1", "text": "one"}',
        "queries.jsonl": '{"_id": "q1", "text": "who?"}',
        "qrels.tsv": "q1\td1\t1",
        "run.trec": "q1 Q0 d1 1 2.0 x",
    }
    for file, content in (files | {name: text}).items():
        (tmp_path / file).write_text(content)
    with pytest.raises(InputError, match=message):
        evaluation.retriever(evaluation.read_collection(tmp_path), tmp_path / "run.trec", 10)


def test_a_split_picks_its_judgements(tmp_path: Path) -> None:
    """--split dev reads qrels/dev.tsv even beside qrels.tsv, and fails where there is none."""
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_text('{"_id": "d1", "text": "one"}')
    (tmp_path / "queries.jsonl").write_text('{"_id": "q1", "text": "who?"}')
    (tmp_path / "qrels.tsv").write_text("q1\td1\t1")
    (tmp_path / "qrels" / "dev.tsv").write_text("q1\td1\t2")
    grades = [
        evaluation.read_collection(tmp_path, **options).qrels["q1"]["d1"]
        for options in ({}, {"split": "dev"}, {"qrels": tmp_path / "qrels" / "dev.tsv"})
    ]
    assert grades == [1, 2, 2]
    with pytest.raises(InputError, match=r"judgements \(qrels/train\.tsv"):
        evaluation.read_collection(tmp_path, split="train")


def test_measures_are_those_worked_by_hand(tmp_path: Path) -> None:
    """One query; of two good documents one is retrieved, third before and first after."""
    texts = ["bread and butter", "a red boat", "The tower is 70 metres tall."]
    rows = [{"_id": f"d{number}", "text": text} for number, text in enumerate(texts, 1)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "queries.jsonl").write_text('{"_id": "q1", "text": "how tall is the tower?"}')
    (tmp_path / "qrels.tsv").write_text("q1\td3\t1\nq1\tmissing\t1")
    run_file = tmp_path / "run.trec"
    run_file.write_text("q1 Q0 d1 1 3 x\nq1 Q0 d2 2 2 x\nq1 Q0 d3 3 1 x\n")
    answer = json.loads(run("evaluate", str(tmp_path), "--run", str(run_file), "--json").stdout)
    found = {row["measure"]: row for row in answer["measures"]}
    ideal = 1 + 1 / math.log2(3)
    assert found["RR@10"]["before"] == pytest.approx(1 / 3)
    assert found["nDCG@10"]["before"] == pytest.approx((1 / 2) / ideal)
    assert found["nDCG@10"]["after"] == pytest.approx(1 / ideal)
    assert found["RR@10"]["after"] == 1
    assert answer["R@100"] == 1 / 2, "what was found, whatever its order"
    assert found["R@5"]["before"] == found["R@5"]["after"] == 1 / 2
    # one query has two sign patterns, both as extreme as the one seen
    assert [row["p_value"] for row in answer["measures"]] == [1] * 5


def test_bm25_keeps_no_text() -> None:
    """Each text is freed before the next but one is read: the index takes a stream."""

    class Watched(str):
        __slots__ = ("__weakref__",)

    alive: weakref.WeakSet[str] = weakref.WeakSet()
    most = 0

    def stream() -> Iterator[str]:
        nonlocal most
        for number in range(50):
            text = Watched(f"word{number} common")
            alive.add(text)
            most = max(most, len(alive))
            yield text

    index = Bm25(stream())
    assert most <= 2
    assert not alive
    assert index.search("word7", 3)[0][0] == 7


def test_a_long_run_is_cut_while_it_is_read(tmp_path: Path) -> None:
    """The best come through whatever their order; equal scores keep theirs."""
    file = tmp_path / "run.trec"
    names = [(number * 37) % 100 for number in range(100)]
    file.write_text("".join(f"q1 Q0 d{name} 1 {name // 2} x\n" for name in names))
    expected = sorted(names, key=lambda name: -(name // 2))[:7]
    assert [name for name, _ in evaluation.read_run(file, 7)["q1"]] == [f"d{it}" for it in expected]


@pytest.mark.skipif(sys.platform == "win32", reason="links and devices are POSIX's")
def test_output_writes_through_links_and_devices(tmp_path: Path) -> None:
    """A link stays a link, a device stays a device, and an id with white space leaves nothing."""
    real, link = tmp_path / "real.trec", tmp_path / "link.trec"
    real.write_text("old")
    link.symlink_to("real.trec")
    with evaluation.trec_writer(link) as write:
        write("q1", [("d1", 0.1)])
        assert real.read_text() == "old", "whole at the end"
    assert link.is_symlink()
    assert real.read_text() == "q1 Q0 d1 1 0.1 rerank-adapters\n"
    with evaluation.trec_writer(Path(os.devnull)) as write:
        write("q1", [("d1", 0.1)])
    assert not Path(os.devnull).is_file()
    with (
        pytest.raises(InputError, match="no white space in a TREC run: got 'd 1'"),
        evaluation.trec_writer(tmp_path / "new.trec") as write,
    ):
        write("q1", [("d 1", 0.1)])
    assert set(tmp_path.iterdir()) == {real, link}


@pytest.mark.parametrize(
    ("deltas", "expected"),
    [([0.5, 0.5, 0.5], 2 / 8), ([0.1, -0.1], 1.0), ([0.3, 0.1, 0.0], 4 / 8), ([1.0], 1.0)],
)
def test_significance_is_the_randomisation_test(deltas: list[float], expected: float) -> None:
    """Worked by hand: of 2^n sign patterns, those as extreme as the one seen."""
    assert evaluation.randomisation_test(deltas) == expected


@pytest.mark.parametrize("count", [12, 40])
def test_significance_agrees_with_scipy(count: int) -> None:
    """Scipy's permutation test over paired samples: exact for few queries, drawn for many."""
    generator = np.random.default_rng(1)
    before, change = generator.random(count), generator.normal(0.1, 0.4, count)
    expected = permutation_test(
        (before + change, before),
        lambda after, before, axis: np.mean(after - before, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=9999,
        rng=generator,
    ).pvalue
    # exact, or two drawn shares: four standard errors of their difference are 0.03 at most
    tolerance = 1e-12 if count == 12 else 0.03
    assert evaluation.randomisation_test(list(change)) == pytest.approx(expected, abs=tolerance)


def test_tune_measures_every_setting_and_names_the_best() -> None:
    """Each backend × dtype × candidates × length, with quality; refused ones say why."""
    arguments = [
        "--rerank-count",
        "5",
        "--rerank-count",
        "10",
        "--max-length",
        "64",
        "--queries",
        "3",
    ]
    answer = json.loads(run("tune", str(CORPUS), *arguments, "--budget-ms", "1e6", "--json").stdout)
    kinds = {(one["backend"], one["dtype"]) for one in answer["settings"] + answer["refused"]}
    assert kinds == set(tuning.TRIED)
    assert {one["rerank_count"] for one in answer["settings"]} == {5, 10}
    top = max(one["ndcg10"] for one in answer["settings"])
    assert answer["best"] == answer["even"][0]
    assert top in [one["ndcg10"] for one in answer["even"]]
    assert [row["method"] for row in answer["fusion"]] == ["rrf", "linear"]
    plain = json.loads(run("tune", *arguments, "--json").stdout)
    assert {one["ndcg10"] for one in plain["settings"]} == {None}
    assert plain["best"] is None


def _setting(
    p95: float,
    quality: list[float] | None,
    *,
    count: int = 10,
    p50: float = 1.0,
    windows: Windows | None = None,
    early_exit: EarlyExit | None = None,
) -> tuning.Setting:
    """A setting whose nDCG@10 is *quality*, query by query."""
    report = evaluation.Report((ir_measures.nDCG @ 10,))
    report.after = {f"q{at}": {"nDCG@10": it} for at, it in enumerate(quality or [])}
    mean, half = tuning._mean(report) if quality else (None, None)
    took = (p50, p95, mean, half, report)
    return tuning.Setting("onnx", "int8", count, 512, windows, early_exit, *took)


def test_no_winner_is_named_inside_the_noise() -> None:
    """A difference on every query is one; the same mean by chance is none: the fastest is first.

    Ten queries that all gain 0.1 have p = 2 / 1024; one that gains 1.0 has p = 1.
    """
    low = [0.5] * 10
    best, even = [0.6] * 10, [1.5, *low[1:]]
    slow, other, fast = _setting(90, best, p50=9), _setting(40, even, p50=5), _setting(40, low)
    assert tuning.best([slow, fast]) == [slow]
    assert tuning.best([other, fast]) == [fast, other]
    assert tuning.best([slow, other, fast], 50) == [fast, other]
    assert tuning.best([slow, other, fast], 10) == []
    few, many = _setting(5, None, count=20), _setting(9, None, count=50)
    assert tuning.best([few, many], 10) == [many]
    assert tuning.best([_setting(2, None, count=50, early_exit=EarlyExit(3, 15)), many]) == [many]
    assert slow.half_width == pytest.approx(0)
    deviation = np.std(even, ddof=1)
    assert other.half_width == pytest.approx(1.96 * deviation / math.sqrt(10))


def test_tune_prints_lines_to_paste(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of Python and of the command line, which are read again as the setting; and error bars."""
    monkeypatch.setenv("COLUMNS", "120")
    even = [_setting(9, [0.4, 0.6], p50=3), _setting(9, [0.6, 0.4], windows=Windows(64, 32))]
    tuning.show(even, budget_ms=None, as_json=False)
    shown = capsys.readouterr().out
    assert "no winner: 2 of 2 settings differ by no more than noise on 2 queries" in shown
    assert "0.5000 ± 0.1960" in shown  # 1.96 · 0.1414 / sqrt(2)
    python, line = (it.strip() for it in shown.splitlines() if it.startswith("  "))
    made = eval(python.replace("Reranker(", "RerankerConfig("), {"RerankerConfig": RerankerConfig})
    assert made == RerankerConfig(
        backend="onnx", dtype="int8", max_length=512, rerank_count=10, windows=Windows(64, 32)
    )
    flags = line.removeprefix("rerank-adapters search ").split()
    at = flags.index("--windows")
    assert Windows.of(mapping("windows", flags[at + 1])) == made.windows
    assert flags[flags.index("--rerank-count") + 1] == "10"
    tuning.show([_setting(9, None)], budget_ms=5, as_json=False)
    assert "nothing fits 5 ms" in capsys.readouterr().out


def test_tune_tries_windows_and_counts_every_step() -> None:
    """The total of the bar is what is measured or refused, by number."""
    data = read_collection(CORPUS)
    tried = tuning.tune(
        RerankerConfig(),
        data,
        rerank_counts=[2, 3],
        max_lengths=[64],
        windows=[None, Windows(16, 8)],
        num_queries=2,
    )
    found = list(tried)
    settings = [it for it in found if isinstance(it, tuning.Setting)]
    assert {it.windows for it in settings} == {None, Windows(16, 8)}
    steps = [1 if isinstance(it, tuning.Setting) else 2 for it in found]
    assert sum(steps) == len(tuning.TRIED) * 2 * 2
    cut = {it.windows: it.quality for it in settings if it.dtype == "int8" and it.rerank_count == 3}
    assert set(cut) == {None, Windows(16, 8)}


def test_a_bar_tells_what_is_done_of_how_much_and_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal alone, where hours of `tune` are waited for."""
    for terminal in (False, True):
        monkeypatch.setattr(sys.stderr, "isatty", lambda answer=terminal: answer)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "100")
        with progress("measuring", 4) as advance:
            advance(1)
            advance(2)
        shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
        if terminal:
            assert re.search(r"measuring .* 75% (\d:\d\d:\d\d|-:--:--) 3/4", shown)
        else:
            assert shown == ""


class Counted(Reranker):
    """Writes down how many tokens its engine ran, of both parts, when it is closed."""

    tokens: ClassVar[list[int]] = []

    def close(self) -> None:
        self.tokens.append(self.stats()["batch_tokens"])
        super().close()


def test_tune_tries_early_exits_which_run_fewer_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every layer that has a head, in the table and the total; layer-tokens as the engine counts.

    2 of 8 documents go on; all of them run the first layers, as without an exit.
    """
    steps: list[int] = []

    @contextmanager
    def counting(title: str, total: int) -> Iterator[Callable[[int], None]]:
        steps.append(-total)
        yield steps.append

    monkeypatch.setattr(sys.modules["rerank_adapters.cli.app"], "progress", counting)
    monkeypatch.setattr(tuning, "TRIED", (("onnx", "int8"),))
    monkeypatch.setattr(tuning, "Reranker", Counted)
    monkeypatch.setattr(Counted, "tokens", [])
    monkeypatch.setenv("COLUMNS", "140")
    sizes = ["--rerank-count", "8", "--max-length", "64", "--queries", "2"]
    shown = run(
        "tune", str(CORPUS), *sizes, "--early-exit", "none", "--early-exit", "keep=2"
    ).stdout
    assert [f" {layer}/2 " in shown for layer in range(1, 6)] == [False, True, True, True, False]
    assert steps[0] == -4
    assert sum(steps) == 0
    whole, *others = Counted.tokens
    for layer, both in zip((2, 3, 4), others, strict=True):
        assert 0 < both - whole < whole / 2
        assert layer * whole + (6 - layer) * (both - whole) < 6 * whole


def test_a_tuned_early_exit_is_pasted_as_it_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both lines run: the one in Python and the one in a shell, with the model they are of."""
    text = tmp_path / "my notes"
    text.mkdir()
    (text / "a.txt").write_text("\n\n".join(f"Tower {at} is {at} m tall. " * 30 for at in range(4)))
    setting = _setting(9, [0.4, 0.6], early_exit=EarlyExit(3, 2))
    options = {**DEFAULTS, "device": "cpu", "token": "hf_secret"}
    tuning.show([setting], budget_ms=None, as_json=True, options=options)
    answer = json.loads(capsys.readouterr().out)
    assert answer["best"]["early_exit"] == {"layer": 3, "keep": 2, "heads": None}
    assert answer["best"]["windows"] is None
    python, line = answer["paste"]
    assert "secret" not in python + line
    made = eval(python.replace("Reranker(", "RerankerConfig("), {"RerankerConfig": RerankerConfig})
    assert made.early_exit == EarlyExit(3, 2)
    assert made.device == "cpu"
    words = shlex.split(line)[1:]
    words[words.index("QUESTION")] = "how tall is tower 2"
    words[words.index("FOLDER")] = str(text)
    results = json.loads(run(*words, "--json").stdout)["results"]
    assert len(results) == 4
    assert tuning._paste(setting, {"model": "my models/one"})[1].startswith(
        "rerank-adapters search --model 'my models/one' --backend onnx"
    )


def test_tune_takes_early_exits_that_the_model_has_heads_for() -> None:
    """Each once; without heads there is nothing to try, and the cure is named."""
    stops = tuning.early_exits(RerankerConfig(), ["none", "keep=2", "layer=3,keep=2"])
    assert stops == [None, *(EarlyExit(layer, 2) for layer in (2, 3, 4))]
    with pytest.raises(ConfigError, match="rerank-adapters exits train"):
        tuning.early_exits(RerankerConfig(model=str(build("bert"))), ["keep=2"])
    with pytest.raises(ConfigError, match="early_exit must have layer and keep"):
        tuning.early_exits(RerankerConfig(), ["layer=3"])
    with pytest.raises(ConfigError, match="early_exit must have layer and keep"):
        tuning.early_exits(RerankerConfig(), ["kept=3"])


def test_export_writes_a_checked_file(tmp_path: Path) -> None:
    """The int8 file loads and scores; the report names it, the folder holds what was said."""
    said = ("--dtype", "int8", "--special-tokens", "as_text", "--json")
    out = run("export", str(build("bert")), str(tmp_path / "onnx"), *said)
    facts = json.loads(out.stdout)
    stated = json.loads((tmp_path / "onnx" / "rerank_adapters.json").read_text())
    assert stated["special_tokens"] == "as_text"
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


def test_models_shows_what_is_published() -> None:
    """A row for each known reranker, in hundredths as published; sources in JSON."""
    facts = {row["id"]: row for row in json.loads(run("models", "--json").stdout)}
    small = facts["cross-encoder/ms-marco-MiniLM-L6-v2"]
    assert (small["ndcg10"], small["mrr10"], small["licence"]) == (74.3, 39.01, "apache-2.0")
    assert "sbert.net" in small["sources"][0]
    assert facts["BAAI/bge-reranker-base"]["mrr10"] is None
    shown = run("models").stdout
    assert "74.30" in shown
    assert "cc-by-nc-4.0" in shown


def test_demo_runs_both_frameworks_offline() -> None:
    """Both tables, scores and milliseconds; any socket would have raised."""
    shown = run("demo").stdout
    for piece in ("Sockets are blocked", "LangChain chain", "LlamaIndex query engine", " ms."):
        assert piece in shown
    answer = json.loads(run("demo", "--json").stdout)
    assert [len(one["reranked"]) for one in answer["runs"]] == [3, 3]
    for one in answer["runs"]:
        scores = [score for _, score in one["reranked"]]
        assert scores == sorted(scores, reverse=True)
        assert [title for title, _ in one["retrieved"]] != [title for title, _ in one["reranked"]]


def test_the_demos_block_holds_and_ends() -> None:
    """Connecting, sending and looking up a name raise inside, and are themselves again after."""
    saved = {name: getattr(socket.socket, name) for name in ("connect", "connect_ex", "sendto")}
    address = ("127.0.0.1", 9)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one, no_network():
        for reach in (
            lambda: one.connect(address),
            lambda: one.connect_ex(address),
            lambda: one.sendto(b"x", address),
            lambda: socket.getaddrinfo("localhost", 80),
        ):
            with pytest.raises(OSError, match="reached for the network"):
                reach()
    assert {name: getattr(socket.socket, name) for name in saved} == saved


def test_every_option_of_every_command_is_explained() -> None:
    """What `--help` shows of each: a text, the library's own where the library has the option."""
    group = typer.main.get_command(app)
    for name, command in group.commands.items():
        assert command.help, name
        for parameter in command.params:
            assert (parameter.help or "").strip(), (name, parameter.name)
            own = OPTIONS.get(parameter.name)
            # What export and tune ask for is another thing, or several to try; rerank_count has a
            # default of each command's own.
            others = name == "tune" or parameter.name in ("model", "dtype", "rerank_count")
            assert own is None or others or parameter.help == own.text, (name, parameter.name)
