"""The cache of checkpoints: each is made once, whoever asks at the same time, or not at all."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests import checkpoints


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(checkpoints, "cache_folder", lambda: tmp_path)
    return tmp_path


def visible(folder: Path) -> list[str]:
    """What a folder holds beside locks."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_a_folder_is_made_once_for_all_who_ask(cache: Path) -> None:
    """Four at once: one makes it, and none sees it before it is whole."""
    made, everyone = [], threading.Barrier(4)

    def make(folder: Path) -> None:
        made.append(folder)
        assert visible(cache) == [folder.name]
        time.sleep(0.1)  # the others would begin theirs now
        (folder / "weights").write_text("whole")

    def ask(_: int) -> str:
        everyone.wait()
        return (checkpoints.made_once("kind", make) / "weights").read_text()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(4))) == ["whole"] * 4
    assert len(made) == 1
    assert visible(cache) == ["kind"]


def test_what_fails_leaves_nothing_and_is_tried_again(cache: Path) -> None:
    """Half a folder is never found, and the lock is free again."""

    def fail(folder: Path) -> None:
        (folder / "weights").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        checkpoints.made_once("kind", fail)
    assert visible(cache) == []
    assert checkpoints.made_once("kind", lambda _: None) == cache / "kind"
