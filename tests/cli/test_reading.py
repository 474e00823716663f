"""Files to passages: each kind says what it holds and where, and what is not read is told."""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path

import docx
import pytest
from pypdf import PdfReader, PdfWriter

from rerank_adapters import InputError
from rerank_adapters.cli import reading
from rerank_adapters.cli.kinds import Part, parts
from rerank_adapters.cli.reading import excerpts
from tests.test_cli import pdf


def told(*paths: Path) -> tuple[dict[str, str], list[str]]:
    """(source, less its folder → text) of the passages, and what was said of the rest."""
    said: list[str] = []
    found = excerpts(paths, skipped=said.append)
    return {it.source.rpartition("/")[2]: it.text for it in found}, said


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_are_an_editors(tmp_path: Path, end: str) -> None:
    """Form feeds, vertical tabs, separators and U+2028 do not end a line."""
    odd = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
    lines = [*(f"{'filler words. ' * 70}{sign}" for sign in odd), "The zebra sleeps here."]
    (tmp_path / "a.txt").write_bytes(end.join(lines).encode())
    found, _ = told(tmp_path)
    (source,) = [source for source, text in found.items() if "zebra" in text]
    assert source == f"a.txt:{len(lines)}"


def test_a_place_costs_a_search_among_the_lines_not_a_walk(tmp_path: Path, monkeypatch) -> None:
    """Four times the passages look up four times the places; nothing counts from the start."""
    looked: list[int] = []
    real = reading.bisect_right
    monkeypatch.setattr(
        reading, "bisect_right", lambda marks, at: looked.append(at) or real(marks, at)
    )
    for times in (1, 4):
        (tmp_path / "a.log").write_text("one more line of a log\n" * 400 * times)
        looked.clear()
        found = excerpts([tmp_path / "a.log"])
        assert len(looked) == len(found)
    lines = [int(it.source.rpartition(":")[2]) for it in found]
    assert lines == sorted(lines)
    assert lines[0] == 1


def test_html_runs_on_inline_and_breaks_at_blocks(tmp_path: Path) -> None:
    """Words across tags stay words, cells and paragraphs part, and lines are the source's."""
    (tmp_path / "a.html").write_text(
        "<html><head><title>Zoo</title><style>p {}</style></head>\n"
        "<body><p>A zeb<b>ra</b> drinks H<sub>2</sub>O<br>and e<em>spe</em>cial&shy;ly&amp;\n"
        "likes <i>it</i>.</p><script>var no = '<p>no</p>';</script>\n"
        "<table><tr><td>one</td><td>two</td></tr></table>\n\n"
        f"<p>{'more of it. ' * 80}</p><p>The last</p></body></html>"
    )
    part = next(parts(tmp_path / "a.html", (tmp_path / "a.html").read_bytes()))
    lines = part.text.splitlines()
    assert lines[:3] == ["Zoo", "A zebra drinks H2O", "and especially& likes it."]
    assert lines[3:5] == ["one", "two"]
    assert lines[-1] == "The last"
    places = zip(part.offsets, part.numbers, strict=True)
    starts = {part.text[at:].splitlines()[0][:6]: number for at, number in places}
    assert [starts[it] for it in ("Zoo", "A zebr", "and es", "likes ", "one", "The la")] == [
        *(1, 2, 2, 3, 4, 6)
    ]
    found, _ = told(tmp_path)
    assert list(found) == ["a.html:1", "a.html:6"]


def test_word_documents_and_notebooks_are_read(tmp_path: Path) -> None:
    """Paragraphs, rows of tables and cells, by number."""
    document = docx.Document()
    document.add_paragraph("Dogs pay half.")
    document.add_paragraph("")
    table = document.add_table(1, 2)
    table.cell(0, 0).text, table.cell(0, 1).text = "fare", "14 pounds"
    document.save(str(tmp_path / "a.docx"))
    cells = [
        {"cell_type": "markdown", "source": ["# Kites\n", "Kites fly."]},
        {"cell_type": "code", "source": "print('kelp')"},
    ]
    (tmp_path / "b.ipynb").write_text(json.dumps({"cells": cells, "nbformat": 4}))
    found, said = told(tmp_path)
    assert found == {
        "a.docx, paragraph 1": "Dogs pay half.\nfare | 14 pounds",
        "b.ipynb, cell 1": "# Kites\nKites fly.",
        "b.ipynb, cell 2": "print('kelp')",
    }
    assert said == []
    part = next(parts(tmp_path / "a.docx", (tmp_path / "a.docx").read_bytes()))
    assert part == Part("Dogs pay half.\nfare | 14 pounds", ", paragraph ", [0, 15], [1, 3])


def test_a_pdf_of_an_empty_password_is_read(tmp_path: Path) -> None:
    """AES, as print-restricted reports have it; a password that is none is told."""
    for name, password in (("open.pdf", ""), ("shut.pdf", "secret")):
        writer = PdfWriter(clone_from=PdfReader(io.BytesIO(pdf("kelp barometer rises"))))
        writer.encrypt(user_password=password, owner_password="owner", algorithm="AES-256")
        writer.write(tmp_path / name)
    found, said = told(tmp_path)
    assert found == {"open.pdf, page 1": "kelp barometer rises"}
    assert len(said) == 1
    assert re.search(r"passed over: PATH must be a readable PDF: got .*shut\.pdf", said[0])


def test_what_is_not_read_is_counted_by_kind(tmp_path: Path) -> None:
    """Unknown kinds, scans, links, closed folders, ignored and other people's: one line."""
    (tmp_path / "a.md").write_text("The café opens at nine.")
    (tmp_path / "README").write_text("Dogs travel free.")
    for name in ("x.pptx", "y.pptx", "z.epub"):
        (tmp_path / name).write_bytes(b"PK\x03\x04")
    (tmp_path / "scan.pdf").write_bytes(pdf(""))
    (tmp_path / ".gitignore").write_text("*.log\n!keep.log\nbuilt/\n")
    (tmp_path / "no.log").write_text("ignored")
    (tmp_path / "keep.log").write_text("kept")
    for name in ("node_modules", "built", "inner", "env"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "c.txt").write_text(name)
    (tmp_path / "inner" / ".gitignore").write_text("c.txt\n")
    (tmp_path / "env" / "pyvenv.cfg").write_text("")
    (tmp_path / "linked").symlink_to(tmp_path / "inner")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    found, said = told(tmp_path)
    assert set(found) == {"a.md:1", "README:1", "keep.log:1"}
    (line,) = said
    assert set(line.removeprefix("not read: ").split(", ")) == {
        *("2 .pptx", "1 .epub", "1 without text (scanned?)", "2 ignored by .gitignore"),
        *("1 folder ignored by .gitignore", "1 folder called node_modules", "1 linked folder"),
        *("1 folder of Python environments", "1 that are no plain files"),
    }
    assert {*told(tmp_path / "node_modules")[0]} == {"c.txt:1"}  # named outright, it is read


def test_a_closed_folder_is_counted(tmp_path: Path, monkeypatch) -> None:
    """What may not be listed is told, not lost."""
    (tmp_path / "a.md").write_text("The café opens at nine.")
    (tmp_path / "closed").mkdir()
    listed = os.scandir

    def scandir(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert told(tmp_path)[1] == ["not read: 1 closed folder"]


def test_a_repository_s_rules_reach_a_folder_in_it(tmp_path: Path) -> None:
    """As git reads them: from its root down, the nearest first."""
    (tmp_path / ".git").mkdir()
    (tmp_path / ".gitignore").write_text("drafts/\n")
    for name in ("docs/drafts", "docs"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / name / "a.txt").write_text("text")
    assert told(tmp_path / "docs") == (
        {"a.txt:1": "text"},
        ["not read: 1 folder ignored by .gitignore"],
    )


def test_of_several_files_the_unreadable_are_passed_over(tmp_path: Path) -> None:
    """As a shell's `docs/*` names them; alone, such a file is an error."""
    (tmp_path / "a.md").write_text("A return ticket costs 14 pounds.")
    photos = [tmp_path / f"{number}.png" for number in range(8)]
    for photo in photos:
        photo.write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    found, said = told(tmp_path / "a.md", *photos)
    assert list(found) == ["a.md:1"]
    assert len(said) == 6
    assert said[-1] == "passed over: 3 more files that cannot be read"
    with pytest.raises(InputError, match="which is binary"):
        excerpts(photos[:1])
    with pytest.raises(InputError, match="PATH must hold text: found none"):
        excerpts(photos)


def test_standard_input_is_a_file_called_minus(monkeypatch) -> None:
    """Its lines are counted as a file's; closed, it is an error."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"one\n\ntwo")))
    assert told(Path("-"))[0] == {"-:1": "one\n\ntwo"}
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(InputError, match="standard input must be open"):
        excerpts([Path("-")])
