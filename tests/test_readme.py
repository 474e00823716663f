"""Every code block of the README runs, offline, and prints what the README says it prints."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"```python\n(?P<code>.*?)```(?:\n+```text\n(?P<printed>.*?)```)?", re.DOTALL)
BLOCKS = list(BLOCK.finditer(README))

OFFLINE = """
import socket
def refuse(*_): raise OSError("the README's code reached for the network")
socket.socket.connect = refuse
"""


@pytest.mark.parametrize(
    "block", BLOCKS, ids=lambda block: f"line {README.count(chr(10), 0, block.start()) + 1}"
)
def test_a_block_runs_and_prints_what_it_says(block: re.Match[str]) -> None:
    """In a process of its own, with sockets blocked; scores equal to the digits printed."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", OFFLINE + block["code"]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    if block["printed"] is not None:
        assert done.stdout.strip() == block["printed"].strip()


def test_the_readme_has_blocks_and_the_two_commands() -> None:
    """The check above cannot pass by finding nothing."""
    assert len(BLOCKS) >= 3
    assert sum(block["printed"] is not None for block in BLOCKS) >= 2
    assert "make demo" in README
    assert "make test" in README
    assert len(README.splitlines()) <= 220


def test_the_picture_is_what_its_script_draws(tmp_path: Path) -> None:
    """The labels, which the drawing keeps as comments: names, ranks and scores, to 0.002."""
    code = f"import pictures, pathlib; pictures.draw(pathlib.Path({str(tmp_path / 'new.svg')!r}))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT / ".docs", check=True, timeout=300)
    kept, drawn = (
        re.findall(r"<!-- (.*?) -->", file.read_text("utf-8"))
        for file in (ROOT / ".docs" / "before_after.svg", tmp_path / "new.svg")
    )
    number = re.compile(r"\d\.\d+")
    assert [number.sub("#", it) for it in drawn] == [number.sub("#", it) for it in kept]
    scores = [[float(it) for it in number.findall(" ".join(labels))] for labels in (drawn, kept)]
    assert len(scores[0]) == 16
    assert scores[0] == pytest.approx(scores[1], abs=2e-3)  # another CPU may round another way
