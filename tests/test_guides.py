"""The guides: their code runs as it stands, offline, and prints what they say it prints."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer

from rerank_adapters.cli.app import app as cli

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


PAGES = sorted((ROOT / ".docs").glob("*.md"))
SHELL = re.compile(r"```sh\n(.*?)```", re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """Each line of the page's shell blocks that runs our command, as words from its name on."""
    lines = "".join(SHELL.findall(page.read_text("utf-8"))).splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [it[it.index("rerank-adapters") + 1 :] for it in words if "rerank-adapters" in it]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_guide_installs_is_there_and_runs_its_commands(page: Path) -> None:
    """Extras are those of pyproject.toml; the command line is one of its own."""
    known = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    told = re.findall(r"pip install 'rerank-adapters\[(.+?)\]'", page.read_text("utf-8"))
    for extras in (it.split(",") for it in told):
        assert set(extras) <= set(known["optional-dependencies"])
        assert "cli" in extras or not commands(page)


def test_the_guides_commands_have_the_options_that_stand_there() -> None:
    """Each, of each command; there are some."""
    seen = 0
    for words in (it for page in PAGES for it in commands(page)):
        command = typer.main.get_command(cli)
        while hasattr(command, "commands"):  # exits has commands of its own
            command = command.commands[words.pop(0)]
        known = {it for option in command.params for it in option.opts}
        options = {it.partition("=")[0] for it in words if it.startswith("-")}
        assert options <= known, command.name
        seen += len(options)
    assert seen > 10
