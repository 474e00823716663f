"""The mutants: their lines are still there, and every one of them dies. See mutations.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutations import FURTHER, REVIEWED

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "tests" / "mutants.py"
CHECK = "import mutants; print(*mutants.misfits(), sep='\\n')"


def test_there_are_fifty() -> None:
    """Those of the review, and at least as many again."""
    assert len(REVIEWED) == 24
    assert len(FURTHER) >= 26


def test_each_line_to_be_changed_is_there_once() -> None:
    """And so are the tests that have to notice; a refactoring takes the table along."""
    done = subprocess.run(
        [sys.executable, "-c", CHECK],
        cwd=SCRIPT.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == ""


@pytest.mark.long(sampled=False)
def test_every_mutant_is_noticed() -> None:
    """The whole table, by the script that prints it: 5 minutes on two cores."""
    done = subprocess.run(
        [sys.executable, SCRIPT], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
