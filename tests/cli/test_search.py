"""`search`: what BM25 hands on, what is ranked where it finds nothing, what a terminal shows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rerank_adapters.cli import search as searching
from rerank_adapters.cli.console import panel
from rerank_adapters.cli.corpus import Bm25, words
from rerank_adapters.cli.search import Hit, show
from tests.test_cli import command, pdf, run


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("The ferry leaves at nine.", "ferries leaving"),
        ("Children travel at half price.", "a child's travels"),
        ("東京タワーは東京都港区にある。", "東京の塔"),
        ("ร้านเปิดเก้าโมงเช้า", "ร้านเปิดเมื่อไหร่"),
        ("서울에서 부산까지 세 시간", "부산으로"),
        ("हिन्दी में लिखा", "हिन्दी"),
        ("Crème brûlée for two", "CRÈME"),
        ("Vitamin C is sour", "vitamin c"),
    ],
)
def test_bm25_finds_words_in_other_forms_and_scripts(text: str, query: str) -> None:
    """Stems in English, pairs of characters where there are no blanks, marks with their letter."""
    index = Bm25(["Bread is sold here.", text, "雨が降る。", "Nothing."])
    assert [at for at, _ in index.search(query, 4)] == [1]


def test_the_words_of_a_text() -> None:
    """As the docstring states them; stop words and stems are bm25s' part."""
    assert words("John's H₂O-pump: 3,5 €").split() == ["John", "H₂O", "pump", "3", "5"]
    assert words("東京都 x塔y").split() == ["東京", "京都", "x", "塔", "y"]
    assert words("हिन्दी!").split() == ["हिन्दी"]


def test_a_folder_without_the_word_is_ranked_whole(tmp_path: Path) -> None:
    """More than --rerank-count, and the note says that nothing matched; the last file is found."""
    for row in range(60):
        (tmp_path / f"a{row:02}.txt").write_text(f"Meeting minutes {row} about budgets.")
    (tmp_path / "z.txt").write_text("The tower stands 70 metres high.")
    found = run("search", "how tall?", str(tmp_path), "--json", "--rerank-count", "5")
    assert json.loads(found.stdout)["results"][0]["source"] == f"{tmp_path / 'z.txt'}:1"
    assert "no passage shares a word with the query: all 61 passages" in found.stderr


def test_what_does_not_fit_is_spread_over_the_folder(monkeypatch) -> None:
    """Never the first files: every n-th passage, and those that match before them."""
    monkeypatch.setattr(searching, "UNMATCHED", 5)
    assert [at for at, _ in searching._filled([], 100, 3)] == [0, 20, 40, 60, 80]
    assert searching._filled([(7, 1.5)], 9, 3) == [(7, 1.5), (0, 0.0), (4, 0.0)]
    assert searching._filled([], 2, 3) == [(0, 0.0), (1, 0.0)]


def hit(rank: int, file: str, text: str) -> Hit:
    """A passage of *file* at *rank*."""
    return Hit(rank, 1 / rank, rank, 1.0, file, f"{file}:{rank}", text, False)


def test_passages_of_a_file_stand_together(capsys) -> None:
    """In the order of each file's best; later ones name the line alone."""
    show([hit(1, "a.txt", "one"), hit(2, "b.txt", "two"), hit(3, "a.txt", "three")])
    shown = capsys.readouterr().out
    order = [shown.index(text) for text in ("a.txt:1", "one", "  :3", "three", "b.txt:2", "two")]
    assert order == sorted(order)
    assert shown.count("a.txt") == 2  # in the table, and over the best passage


@pytest.mark.parametrize("height", [12, 24, 60])
def test_the_answer_stays_on_the_screen(height: int, capsys, monkeypatch) -> None:
    """Shorter excerpts, then fewer rows with a word about the rest; a pipe gets everything."""
    hits = [hit(rank, f"{rank}.txt", "word " * 180) for rank in range(1, 11)]
    show(hits)
    whole = capsys.readouterr().out
    assert len(whole.splitlines()) > 40
    monkeypatch.setattr(searching, "room", lambda: height)
    show(hits)
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) <= height
    assert "best passage: 1.txt:1" in shown
    assert ("more: --top-n fewer" in shown) == (height < 30)


def test_a_bound_of_scores_may_leave_nothing(tmp_path: Path) -> None:
    """--score-threshold above every score: that nothing answers, and the summary."""
    (tmp_path / "a.txt").write_text("The café opens at nine.")
    found = run("search", "café", str(tmp_path), "--score-threshold", "2")
    said, summary = found.stdout.splitlines()
    assert said.startswith("nothing here answers that: the one document scores")
    assert summary.startswith("1 passage, 1 candidate (1 by BM25)")


def test_minus_is_standard_input() -> None:
    """Searched as a file is."""
    found = run("search", "tower", "-", "--json", stdin="bread\n\nThe tower is 70 m tall.\n")
    assert json.loads(found.stdout)["results"][0]["source"] == "-:1"


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [
        ("<&-", 2, "standard input must be open"),
        (">&-", 2, "standard output must be open"),
        ("2>&-", 0, ""),
        ("<&- >&- 2>&-", 2, ""),
    ],
)
def test_closed_streams_are_one_line(how: str, code: int, said: str) -> None:
    """Under cron or `<&-`: no traceback, and no model's file takes the stream's number."""
    done = subprocess.run(
        ["sh", "-c", f"echo dogs | {sys.executable} -m rerank_adapters rerank dogs {how}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == bool(said)
    assert ("dogs" in done.stdout) == (code == 0)


def test_no_bar_in_a_pipe_whatever_force_color_says() -> None:
    """Standard error is read by programs too."""
    done = command("rerank", "dogs", stdin=b"dogs\ncats", FORCE_COLOR="1", TTY_COMPATIBLE="1")
    assert done.stderr == b""


def test_a_damaged_pdf_is_one_note(tmp_path: Path) -> None:
    """Without the reader's own log on the terminal."""
    (tmp_path / "dogs.txt").write_text("Dogs bark at night.")
    (tmp_path / "broken.pdf").write_bytes(pdf("Dogs bark")[:-30])
    (tmp_path / "none.pdf").write_bytes(b"not a pdf")
    done = command("search", "what barks?", str(tmp_path))
    assert done.returncode == 0
    lines = done.stderr.decode().splitlines()
    assert lines
    assert all("passed over" in line or "note" in line.casefold() for line in lines), lines


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal of its own")
def test_on_a_terminal_a_bar_counts() -> None:
    """Documents done of all of them, on standard error alone."""
    import pty

    reader, writer = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "rerank_adapters", "rerank", "dogs"],
        input=b"dogs\ncats\nbirds",
        stdout=subprocess.PIPE,
        stderr=writer,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "100"},
        check=False,
    )
    os.close(writer)
    seen = b""
    while b"3/3" not in seen:
        try:
            seen += os.read(reader, 65536)
        except OSError:  # all was read
            break
    os.close(reader)
    assert b"reranking" in seen
    assert b"3/3" in seen
    assert b"reranking" not in done.stdout


def test_a_panel_is_cut_to_its_lines(capsys) -> None:
    """With a mark, and no line more than was allowed, its frame counted."""
    panel("word " * 500, "title", most=4)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 6
    assert "…" in lines[-2]
