"""The fault table is whole: each row has its tests, here and in tests/engine."""

from __future__ import annotations

from pathlib import Path

from tests.scorers.fault_table import BACKENDS, FAULTS, backends_for

HERE = Path(__file__).parent
ROOMS = (HERE, HERE.parent / "engine")


def test_every_fault_has_a_test_and_every_cell_a_word():
    """Rows 1 to 23, each with tests of its name, each cell with its reason."""
    sources = "".join(path.read_text("utf-8") for room in ROOMS for path in room.glob("test_*.py"))
    assert list(FAULTS) == list(range(1, 24))
    for number, fault in FAULTS.items():
        assert f"def test_{number:02}_{fault.tests}" in sources
        assert all(getattr(fault, backend) for backend in BACKENDS)
        assert backends_for(number)
