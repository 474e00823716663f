"""Shared fixtures. Fakes stand at the four seams only, in tests/fakes.py."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests import checkpoints


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked gpu where there is no CUDA device, and say so."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="torch.cuda.is_available() is False on this machine")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


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


@pytest.fixture(params=checkpoints.KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of tiny checkpoint in turn."""
    return str(request.param)


@pytest.fixture
def bert() -> Path:
    """The folder of the tiny BERT checkpoint. Read-only."""
    return checkpoints.build("bert")
