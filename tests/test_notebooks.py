"""The notebooks run offline in clean kernels, print what they are kept with, and that is true."""

from __future__ import annotations

import functools
import getpass
import json
import re
import socket
import sys
import tomllib
from collections import defaultdict
from collections.abc import Callable, Sequence
from importlib.metadata import packages_distributions
from pathlib import Path

import bm25s
import ir_measures
import nbformat
import numpy as np
import pytest
from ir_measures import RR, Measure, Qrel, R, ScoredDoc, nDCG
from llama_index.core.schema import TextNode
from llama_index.retrievers.bm25 import BM25Retriever

from rerank_adapters import Reranker
from tests.notebooks import FOLDER, NOTEBOOKS, execute, read

DECIMAL = re.compile(r"\d+\.(\d+)")
STORIES = [
    *("quickstart", "langchain_rag", "llama_index", "speed", "quality", "your_own_model"),
    *("long_documents", "phases", "from_a_pdf", "race"),
]
EACH = [  # the first alone where tests are to be quick
    pytest.param(path, id=path.stem, marks=[pytest.mark.long("notebooks")] if index else [])
    for index, path in enumerate(NOTEBOOKS)
]


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(output: nbformat.NotebookNode) -> dict[str, str]:
    """What an output says, by kind; of pictures, that there is one."""
    if output.output_type == "stream":
        return {output.name: output.text}
    return {kind: "" if "image" in kind else text for kind, text in output.data.items()}


def alike(fresh: str, kept: str) -> bool:
    """Equal, but for one unit in the last place of a decimal fraction.

    Another processor may add float32 numbers in another order, and so round a digit the other way.
    """
    pairs = zip(DECIMAL.finditer(fresh), DECIMAL.finditer(kept), strict=False)
    return DECIMAL.sub("#", fresh) == DECIMAL.sub("#", kept) and all(
        abs(float(one[0]) - float(other[0])) <= 1.01 * 10.0 ** -len(other[1])
        for one, other in pairs
    )


@pytest.mark.parametrize("path", EACH)
def test_it_runs_and_prints_what_it_is_kept_with(path: Path) -> None:
    """Cells tagged "timing" print other milliseconds each time; of them, that they print at all."""
    kept, fresh = code_cells(read(path)), code_cells(execute(read(path)))
    for index, (cell, other) in enumerate(zip(fresh, kept, strict=True)):
        outputs, expected = [list(map(shown, one.outputs)) for one in (cell, other)]
        assert [out.keys() for out in outputs] == [out.keys() for out in expected], cell.source
        assert not any("stderr" in out for out in outputs), outputs
        assert other.execution_count == index + 1, "kept from a run that was not top to bottom"
        if "timing" in cell.metadata.get("tags", []):
            continue
        for out, before in zip(outputs, expected, strict=True):
            for kind, text in out.items():
                assert alike(text, before[kind]), f"{text}\n— kept —\n{before[kind]}"


def test_all_eight_are_there() -> None:
    """The checks above cannot pass by finding nothing."""
    assert [path.stem.partition("_")[2] for path in NOTEBOOKS] == STORIES
    assert all(any(cell.outputs for cell in code_cells(read(path))) for path in NOTEBOOKS)


def test_a_changed_word_or_number_is_seen() -> None:
    """`alike` lets the last digit tip, and nothing else."""
    assert alike("nDCG 0.655, 3 of 4", "nDCG 0.654, 3 of 4")
    assert not alike("nDCG 0.656, 3 of 4", "nDCG 0.654, 3 of 4")
    assert not alike("nDCG 0.655, 2 of 4", "nDCG 0.655, 3 of 4")
    assert not alike("better 0.655", "worse 0.655")
    assert not alike("0.655 0.2", "0.655")


def test_a_kernel_cannot_leave_the_machine() -> None:
    """Connections, datagrams and names beyond it are refused; the loopback is not."""
    code = """
import socket, urllib.request
beyond = ("192.0.2.1", 80)
tries = [
    lambda: socket.create_connection(beyond, 1),
    lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", beyond),
    lambda: urllib.request.urlopen("http://example.org"),
]
for one in tries:
    try:
        one()
    except OSError as error:
        print("offline" in str(error))
with socket.create_server(("127.0.0.1", 0)) as server:
    socket.create_connection(server.getsockname()).close()
print("loopback")
"""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    outputs = execute(notebook).cells[0].outputs
    assert [out.text for out in outputs if out.name == "stdout"] == ["True\nTrue\nTrue\nloopback\n"]


def test_they_are_small_and_name_no_machine() -> None:
    """Under 300 kB each and 1.5 MB together; no path, host or account in source or output."""
    sizes = [path.stat().st_size for path in NOTEBOOKS]
    assert max(sizes) < 300_000
    assert sum(sizes) < 1_500_000
    secrets = r"/(home|root|tmp|var|Users|usr|opt|work)/|[A-Z]:\\\\|Traceback"
    names = {socket.gethostname(), getpass.getuser()} - {"localhost", "root"}
    for path in NOTEBOOKS:
        for cell in read(path).cells:
            said = [text for out in cell.get("outputs", []) for text in shown(out).values()]
            for text in [cell.source, *said]:
                assert not re.search(secrets, text), f"{path.name}: {text}"
                assert not any(name in text for name in names), f"{path.name}: {text}"


def test_they_are_kept_without_noise() -> None:
    """No times of execution, widget states or kernel versions: a second run changes no line."""
    for path in NOTEBOOKS:
        notebook = read(path)
        assert set(notebook.metadata) == {"kernelspec", "language_info"}
        assert notebook.metadata.language_info == {"name": "python"}
        assert all(set(cell.metadata) <= {"tags"} for cell in notebook.cells)


# ---------------------------------------------------------------- what they print is the truth


def rows(name: str) -> list[dict[str, str]]:
    lines = (FOLDER / "corpus" / name).read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


PASSAGES, QUESTIONS = rows("corpus.jsonl"), rows("queries.jsonl")
JUDGED = [
    line.split() for line in (FOLDER / "corpus/qrels.tsv").read_text("utf-8").splitlines()[1:]
]
GRADES: dict[str, dict[str, int]] = defaultdict(dict)
for _query, _passage, _grade in JUDGED:
    GRADES[_query][_passage] = int(_grade)


def printed(story: str) -> str:
    """All that the notebook prints, as it is kept."""
    notebook = read(NOTEBOOKS[STORIES.index(story)])
    return "\n".join(
        out.text for cell in code_cells(notebook) for out in cell.outputs if "text" in out
    )


def numbers(story: str, label: str) -> list[float]:
    """The numbers in the line that begins with *label*."""
    line = next(one for one in printed(story).splitlines() if one.strip().startswith(label))
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", line.partition(label)[2])]


@functools.cache
def first_stage(count: int) -> list[list[str]]:
    """BM25's best ids for each question, by bm25s as the collection's README describes it."""
    tokens = functools.partial(bm25s.tokenize, stopwords="en", show_progress=False)
    index = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    index.index(tokens([f"{row['title']} {row['text']}" for row in PASSAGES]), show_progress=False)
    asked = tokens([row["text"] for row in QUESTIONS])
    found, _ = index.retrieve(asked, k=count, show_progress=False)
    return [[PASSAGES[row]["_id"] for row in line] for line in found]


def reranked(
    lists: Sequence[Sequence[str]], text: Callable[[dict[str, str]], str]
) -> list[list[str]]:
    """Each list of ids in the order of the model's scores, one pair at a time."""
    by_id = {row["_id"]: text(row) for row in PASSAGES}
    orders = []
    with Reranker.from_pretrained() as reranker:
        for question, ids in zip(QUESTIONS, lists, strict=True):
            scores = reranker.score(question["text"], [by_id[name] for name in ids])
            orders.append([ids[index] for index in np.argsort(-scores, kind="stable")])
    return orders


def measure(
    measures: list[Measure], lists: Sequence[Sequence[str]], *, graded: bool
) -> list[float]:
    """ir-measures' means over all questions; not graded, a passage is relevant or it is not."""
    qrels = [Qrel(q, d, int(grade) if graded else 1) for q, d, grade in JUDGED]
    run = [
        ScoredDoc(question["_id"], name, -float(rank))
        for question, ids in zip(QUESTIONS, lists, strict=True)
        for rank, name in enumerate(ids)
    ]
    means = ir_measures.calc_aggregate(measures, qrels, run)
    return [means[one] for one in measures]


def titled(row: dict[str, str]) -> str:
    return f"{row['title']}. {row['text']}"


@pytest.mark.long("measures of notebooks")
def test_quality_prints_what_ir_measures_says() -> None:
    """nDCG@10, RR@10 and R@30 before and after, and that the first two rise."""
    measures, lists = [nDCG @ 10, RR @ 10, R @ 30], first_stage(30)
    before, after = (
        measure(measures, order, graded=True) for order in (lists, reranked(lists, titled))
    )
    # Half a unit of the three digits printed, and as much for a digit that tips.
    assert numbers("quality", "BM25") == pytest.approx(before, abs=1e-3)
    assert numbers("quality", "reranked") == pytest.approx(after, abs=1e-3)
    assert after[0] > before[0]
    assert after[1] > before[1]
    assert after[2] == before[2]


def test_quickstart_counts_first_answers_rightly() -> None:
    """Questions whose full answer is first, in the first three, and in the first ten."""

    def counts(lists: Sequence[Sequence[str]]) -> list[int]:
        grades = [
            [GRADES[question["_id"]].get(name, 0) for name in ids]
            for question, ids in zip(QUESTIONS, lists, strict=True)
        ]
        return [sum(2 in line[:depth] for line in grades) for depth in (1, 3, 10)]

    before, after = counts(first_stage(10)), counts(reranked(first_stage(10), titled))
    assert numbers("quickstart", "BM25:") == [*before, len(QUESTIONS)]
    assert numbers("quickstart", "reranked:") == [*after, len(QUESTIONS)]
    assert after[0] > before[0]
    assert after[1] > before[1]
    assert after[2] == before[2]


@pytest.mark.long("measures of notebooks")
def test_llama_index_prints_what_ir_measures_says() -> None:
    """LlamaIndex's own evaluator and ir-measures agree, and all three measures rise, as is said."""
    nodes = [
        TextNode(id_=row["_id"], text=row["text"], metadata={"title": row["title"]})
        for row in PASSAGES
    ]
    retriever = BM25Retriever.from_defaults(nodes=nodes, similarity_top_k=20)
    lists = [[node.node_id for node in retriever.retrieve(row["text"])] for row in QUESTIONS]
    order = reranked(lists, lambda row: f"title: {row['title']}\n\n{row['text']}")
    before, after = (
        measure([nDCG @ 10, RR @ 10, R @ 10], one, graded=False) for one in (lists, order)
    )
    assert numbers("llama_index", "BM25 ") == pytest.approx(before, abs=1e-3)
    assert numbers("llama_index", "reranked ") == pytest.approx(after, abs=1e-3)
    assert all(new > old for new, old in zip(after, before, strict=True))


def grade(question: str, name: str) -> int:
    asked = next(row["_id"] for row in QUESTIONS if row["text"] == question)
    return GRADES[asked].get(name, 0)


def test_langchain_tells_a_true_story() -> None:
    """Reranking brings the judged answer, which BM25 had not among its three, to the front."""
    text = printed("langchain_rag")
    asked = re.search(r"Question: (.*)", text)[1]
    listed = re.findall(r"^(doc-\d+)  ", text, re.MULTILINE)
    plain, better = listed[:3], listed[3:6]
    assert [grade(asked, name) == 2 for name in plain] == [False] * 3
    assert grade(asked, better[0]) == 2
    agent = (
        "When can we stroll over to the Rock on foot, and what do we do if the sea has cut us off?"
    )
    read_plain, read_better = (
        re.findall(r"^    (doc-\d+)", text, re.MULTILINE)[at:][:3] for at in (0, 3)
    )
    assert [grade(agent, name) == 2 for name in read_plain] == [False] * 3
    assert grade(agent, read_better[0]) == 2
    alone, pooled = numbers("langchain_rag", "one by one:")
    assert pooled < alone
    assert "same documents: True" in text
    assert "0 passages for: Who won" in text


def test_speed_counts_passes_that_can_be() -> None:
    """A larger budget needs fewer passes, and no fewer than its tokens fill; callers share them."""
    text = printed("speed")
    table = re.findall(r"^ +(\d+) +(\d+) +([\d.]+)%$", text, re.MULTILINE)
    budgets, passes = ([int(row[at]) for row in table] for at in (0, 1))
    assert budgets == [512, 1024, 2048, 4096, 8192]
    assert passes == sorted(passes, reverse=True)
    assert passes[0] > passes[-1]
    with Reranker.from_pretrained() as reranker:
        by_id = {row["_id"]: titled(row) for row in PASSAGES}
        texts = [by_id[name] for ids in first_stage(20)[:2] for name in ids]
        limit = reranker.info().max_length
        least = sum(min(count, limit - 3) for count in reranker.count_tokens(texts))
    assert all(count >= least / budget for budget, count in zip(budgets, passes, strict=True))
    assert all(float(row[2]) < 10 for row in table)
    turn, once = (
        numbers("speed", f"32 callers, {how}:")[0] for how in ("one after the other", "all at once")
    )
    assert once < turn
    assert text.count("True") == 3


def test_your_own_model_scores_as_the_oracle() -> None:
    """float32 on both backends within 1e-4 of sentence-transformers; int8 near, and unmoved."""
    text = printed("your_own_model")
    for way in ("torch float32", "onnx float32"):
        assert re.search(rf"^{way} +differs by at most 0.0001; .* 1\.00 of", text, re.MULTILINE)
    drift, same = numbers("your_own_model", "onnx int8")
    assert 0 < drift < 0.1
    assert same >= 0.9
    assert "bit for bit: True" in text
    cut = int(re.search(r"60 pairs, (\d+) of them cut", text)[1])
    assert cut > 0
    assert "1 or 2 labels: got 3" in text


def test_long_documents_finds_the_answer_where_it_stands() -> None:
    """The span in the handbook holds the number asked for; what is known costs no pass."""
    text = printed("long_documents")
    said = re.search(r"characters ([\d,]+) to ([\d,]+) of document (\d)", text)
    start, end, index = (int(it.replace(",", "")) for it in said.groups())
    part = rows("corpus.jsonl")[24 * index : 24 * index + 24]
    assert "15 m/s" in "\n\n".join(row["text"] for row in part)[start:end]
    assert "and when asked again: 0" in text
    assert text.count("True") == 2
    assert "documents read anew: 0" in text


def test_phases_says_what_it_measured() -> None:
    """More candidates are read, calibration errs less, and one of two questions has no answer."""
    text = printed("phases")
    quality = dict(re.findall(r"^(first 5|all 20|cascade) +(0\.\d+)$", text, re.MULTILINE))
    assert float(quality["all 20"]) > float(quality["first 5"])
    fitted, relevant = map(int, re.search(r"fitted to (\d+) pairs, (\d+) relevant", text).groups())
    assert 0 < relevant < fitted == 23 * 8
    before, after = map(float, re.search(r"others: ([\d.]+) before, ([\d.]+) after", text).groups())
    assert after < before
    answered, unanswered = text.split("How do I renew a passport?")
    assert "Alder" in answered.splitlines()[-3]
    assert unanswered.strip().startswith("nothing here answers that: the best of")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_first_cell_says_what_to_install(path: Path) -> None:
    """Every import comes with Python, with the extras named there, or with another named there.

    Never with `all`, which brings torch to those who need none; and a checkout has the same extras.
    """
    notebook = read(path)
    said = re.search(r"pip install (.+)", notebook.cells[0].source)
    assert said, "no pip install in the first cell"
    named = {re.split(r"[\[\"]", it.strip('"'))[0] for it in said[1].split()}
    code = "\n".join(cell.source for cell in code_cells(notebook))
    imported = re.findall(r"^\s*(?:from|import) ([\w.]+)", code, re.MULTILINE)
    names = {name.partition(".")[0] for name in imported}
    chosen = re.search(r"rerank-adapters\[([\w,-]+)\]", said[1])
    assert chosen, "no extra is named"
    declared = _brought(chosen[1].split(",")) | named
    brings = packages_distributions()
    for name in names - sys.stdlib_module_names - {"rerank_adapters", "IPython"}:  # runs it
        found = {_canonical(it) for it in brings.get(name, [name])}  # absent: a neighbour
        assert found & declared, f"{name} comes with {found}"
    assert f"pip install '.[{chosen[1]}]'" in notebook.cells[0].source
    needs_torch = "sentence-transformers" in declared
    assert needs_torch == bool(re.search(r"backend=\"torch|\"torch\"|export_onnx", code))
    assert needs_torch == ("torch==" in notebook.cells[0].source)
    retrievers = "llama_index.retrievers.bm25" in code
    assert retrievers == ("llama-index-retrievers-bm25" in named)


def _brought(extras: Sequence[str]) -> set[str]:
    """What pyproject.toml brings with the base install and *extras*, each extra's own included."""
    project = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text("utf-8"))["project"]
    brought = {_canonical(it) for it in project["dependencies"]}
    for extra in extras:
        for requirement in project["optional-dependencies"][extra]:
            inner = re.match(r"rerank-adapters\[([\w,-]+)\]", requirement)
            brought |= _brought(inner[1].split(",")) if inner else {_canonical(requirement)}
    return brought


def test_a_first_place_that_does_not_answer_is_explained() -> None:
    """The third notebook's showcase: what stands second answers, and the next cell says so."""
    question = next(row["text"] for row in QUESTIONS if "weak brown tea" in row["text"])
    notebook = read(NOTEBOOKS[STORIES.index("llama_index")])
    cells = [cell.source for cell in notebook.cells]
    at = next(index for index, source in enumerate(cells) if "engine.query(question)" in source)
    lines = notebook.cells[at].outputs[0].text.splitlines()
    assert [grade(question, line.split()[0]) for line in lines[:2]] == [0, 2]
    assert "the node in front does not answer" in cells[at + 1]
    first_three = cells[:at].index(next(it for it in cells[:at] if "[:3]" in it))
    assert lines[1].split()[0] not in notebook.cells[first_three].outputs[0].text


def _canonical(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement)[0]).lower()
