"""Which tests run: all but the long ones, all, or of each group of long ones one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULE = """
import pytest

def test_short(): pass

@pytest.mark.long
@pytest.mark.parametrize("part", range(9))
def test_parts(part): pass

@pytest.mark.long("pair")
def test_one(): pass

@pytest.mark.long("pair")
def test_other(): pass

@pytest.mark.long(sampled=False)
def test_longest(): pass
"""
PARTS = {f"test_parts[{part}]" for part in range(9)}
PAIR = {"test_one", "test_other"}
LONGEST = {"test_longest"}  # in no sample: two of each draw are all


RUNS = """
import json, sys, pytest
ours = ["-c", "pyproject.toml", "-p", "tests.conftest", "--collect-only", "-q", sys.argv[1]]
for options in json.loads(sys.argv[2]):
    print("RUN", int(pytest.main([*ours, *options])))
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("selection") / "test_groups.py"
    path.write_text(MODULE)
    return path


def collected(file: Path, *runs: list[str]) -> list[set[str]]:
    """The tests of *file* that the project's own settings and the options of each run choose."""
    command = [sys.executable, "-c", RUNS, str(file), json.dumps(runs)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    *reports, end = re.split(r"RUN 0\n", done.stdout)
    assert (len(reports), end) == (len(runs), ""), done.stdout + done.stderr
    return [set(re.findall(r"::(\S+)", report)) for report in reports]


def sample(seed: str) -> list[str]:
    return ["-m", "long", "--sample", seed]


def test_long_tests_run_when_they_are_asked_for(file: Path) -> None:
    """Not by default; with `-m ""` beside all others; with an expression that names them."""
    default, everything, named = collected(file, [], ["-m", ""], ["-m", "long and not gpu"])
    assert default == {"test_short"}
    assert everything == {"test_short"} | PARTS | PAIR | LONGEST
    assert named == PARTS | PAIR | LONGEST


def test_a_sample_is_one_of_each_group(file: Path) -> None:
    """The same for the same seed; other seeds draw others."""
    draws = collected(file, *map(sample, "112345"))
    assert all(len(draw & PARTS) == len(draw & PAIR) == 1 for draw in draws)
    assert all(len(draw) == 2 for draw in draws)
    assert draws[0] == draws[1]
    assert len({*map(frozenset, draws)}) > 2


def test_a_sample_is_drawn_of_what_is_left(file: Path) -> None:
    """-k chooses first: no group is lost to a test that it leaves out."""
    draws = collected(file, *([*sample(seed), "-k", "other"] for seed in "123"))
    assert draws == [{"test_other"}] * 3
