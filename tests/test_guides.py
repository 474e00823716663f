"""The guides: their code runs as it stands, offline, and prints what they say it prints."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from .test_readme import BLOCK, OFFLINE, README, ROOT

GUIDES = sorted(
    file
    for file in (ROOT / ".docs").glob("*.md")
    if not file.name.startswith("migration-")  # their rows are run by tests of their own
    and "```python\n" in file.read_text("utf-8")
)


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.stem)
def test_a_guide_runs_and_prints_what_it_says(guide: Path, tmp_path: Path) -> None:
    """All its blocks, one after the other, in one process with sockets blocked."""
    blocks = list(BLOCK.finditer(guide.read_text("utf-8")))
    code = "\n".join(block["code"] for block in blocks)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", OFFLINE + code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    printed = "".join(block["printed"] for block in blocks if block["printed"])
    if printed:
        assert done.stdout == printed


def test_every_guide_is_linked_from_the_readme() -> None:
    """A page that nobody finds is none; a link leads to a page."""
    linked = set(re.findall(r"\]\((\.docs/[\w-]+\.md)\)", README))
    assert {f".docs/{file.name}" for file in (ROOT / ".docs").glob("*.md")} == linked
