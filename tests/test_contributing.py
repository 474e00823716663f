"""CONTRIBUTING.md: the code of its recipes runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

GUIDE = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text("utf-8")
RECIPES = dict(
    re.findall(r"## (Write an? \w+)\n(?:(?!\n## ).)*?```python\n(.*?)```", GUIDE, re.DOTALL)
)


@pytest.mark.parametrize("name", ["Write a scorer", "Write an adapter"])
def test_a_recipe_runs(name: str) -> None:
    """Each ends in an assertion about what it made."""
    assert RECIPES[name].rstrip().splitlines()[-1].startswith("assert ")
    exec(compile(RECIPES[name], f"CONTRIBUTING.md, {name}", "exec"), {"__name__": "recipe"})
