"""Every test here counts its own threads alone."""

from __future__ import annotations

import pytest

from tests.engine.traffic import discount_threads


@pytest.fixture(autouse=True)
def _own_threads() -> None:
    discount_threads()
