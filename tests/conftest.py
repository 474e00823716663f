"""Shared fixtures, and which tests run. Fakes stand at the four seams only, in tests/fakes.py."""

from __future__ import annotations

import gc
import logging
import os
import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kinds import KINDS

# Before anything loads torch, and for children too: idle threads of OpenMP sleep. They would spin
# on the cores of the other workers' tests, which multiplies the time of both; no result changes.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--sample SEED`, for use with `-m long`."""
    parser.addoption(
        "--sample", metavar="SEED", help="of each group of long tests run one, drawn with SEED"
    )


def pytest_report_header(config: pytest.Config) -> str | None:
    """Name the seed, so that a sample that failed can be run again."""
    seed = config.getoption("sample")
    return seed and f"sample of the long tests: `make test-sample SEED={seed}` runs the same"


@pytest.hookimpl(trylast=True)  # of what -m and -k have left
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Draw the sample, and skip what no device here can run."""
    if seed := config.getoption("sample"):
        drawn = _sample(items, seed)
        config.hook.pytest_deselected(items=[item for item in items if item not in drawn])
        items[:] = [item for item in items if item in drawn]
    _skip_gpu([item for item in items if item.get_closest_marker("gpu")])


def _sample(items: list[pytest.Item], seed: str) -> set[pytest.Item]:
    """Of each group of long tests one: a group's name is in the mark, or is that of its test.

    What takes longer than all else together says `sampled=False` and is left to `make test-all`.
    """
    groups: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        mark = item.get_closest_marker("long")
        if mark and mark.kwargs.get("sampled", True):
            groups[mark.args[0] if mark.args else item.nodeid.partition("[")[0]].append(item)
    return {random.Random(f"{seed} {name}").choice(group) for name, group in groups.items()}


def _skip_gpu(items: list[pytest.Item]) -> None:
    """Skip *items* where there is no CUDA device, and say so; torch is loaded for them alone."""
    if not items:
        return
    import torch

    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="torch.cuda.is_available() is False on this machine")
        for item in items:
            item.add_marker(skip)


def pytest_collection_finish() -> None:
    """Spare the collector what imports have made: tests that collect would walk it each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _root_logger_untouched() -> Iterator[None]:
    """Law 8, watched around every test: the root logger's level and handlers stay the user's."""
    root = logging.getLogger()
    level, handlers = root.level, [it for it in root.handlers if not _pytests_own(it)]
    yield
    assert root.level == level
    assert [it for it in root.handlers if not _pytests_own(it)] == handlers


def _pytests_own(handler: logging.Handler) -> bool:
    return type(handler).__module__.startswith("_pytest.")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of tiny checkpoint in turn."""
    return str(request.param)


@pytest.fixture
def bert() -> Path:
    """The folder of the tiny BERT checkpoint. Read-only."""
    from tests.checkpoints import build

    return build("bert")
