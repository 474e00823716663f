"""Where scores are kept: what comes out is what went in, and no file ever fails a request."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sqlite3
import stat
import tracemalloc
from pathlib import Path

import pytest

from rerank_adapters import ConfigError, ScoreCache
from rerank_adapters.score_cache import CachedScore, disk
from rerank_adapters.score_cache.memory import ENTRY_BYTES

ENTRY = CachedScore(0.10000000149011612, -1.5, True, (3, 70))
PLAIN = CachedScore(0.5, 2.0, False, None)


def key(number: int) -> bytes:
    return number.to_bytes(16, "little")


def stores(tmp_path: Path, entries: int) -> list[ScoreCache]:
    """One of each kind, with room for so many entries."""
    return [
        ScoreCache.memory(bytes=entries * ENTRY_BYTES),
        ScoreCache.at(tmp_path / "scores.sqlite", bytes=entries * disk.ROW_BYTES),
    ]


def test_what_is_kept_comes_back_bit_for_bit(tmp_path):
    """Both kinds, spans and their absence, a key twice, and what is not there."""
    for cache in stores(tmp_path, 10):
        cache.put({key(1): ENTRY, key(2): PLAIN})
        assert cache.get([key(2), key(3), key(1), key(2)]) == [PLAIN, None, ENTRY, PLAIN]
        cache.put({key(1): PLAIN})
        assert cache.get([key(1)]) == [PLAIN]
        stats = cache.stats()
        assert (stats["hits"], stats["misses"], stats["evictions"]) == (4, 1, 0)
        assert stats["bytes"] > 0
        cache.close()


def test_what_was_used_longest_ago_goes_first(tmp_path):
    """A look is a use; the bound holds, and what went is counted."""
    for cache in stores(tmp_path, 3):
        for number in range(3):
            cache.put({key(number): ENTRY})
        cache.get([key(0)])
        cache.put({key(9): ENTRY})
        found = cache.get([key(number) for number in (0, 1, 2, 9)])
        assert [entry is not None for entry in found] == [True, False, True, True]
        assert cache.stats()["evictions"] == 1
        cache.close()


def test_memory_is_bounded_by_bytes():
    """What Python holds stays within the bytes asked for."""
    most = 400_000
    tracemalloc.start()
    cache = ScoreCache.memory(bytes=most)
    for number in range(20_000):
        cache.put({key(number): ENTRY})
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used <= most
    assert cache.stats()["bytes"] <= most


def test_a_files_size_is_bounded_by_bytes(tmp_path):
    """The database, without its log, stays near the bytes asked for."""
    path, most = tmp_path / "scores.sqlite", 400_000
    cache = ScoreCache.at(path, bytes=most)
    for start in range(0, 20_000, 500):
        cache.put({os.urandom(16): ENTRY for _ in range(start, start + 500)})
    cache.close()
    assert path.stat().st_size <= most
    assert cache.stats()["bytes"] <= most


def test_a_file_is_its_owners_and_holds_no_text(tmp_path):
    """Mode 0600, WAL, raw columns, marks of format, and no word of what was scored."""
    path = tmp_path / "scores.sqlite"
    cache = ScoreCache.at(path, bytes=10_000)
    digest = cache.hasher(b"context")
    digest.update(b"a secret query")
    cache.put({digest.digest(): ENTRY})
    for file in tmp_path.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
        assert b"secret query" not in file.read_bytes()
    with sqlite3.connect(path) as found:
        assert found.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert found.execute("PRAGMA user_version").fetchone() == (disk.FORMAT,)
        assert found.execute("SELECT score, first, last FROM scores").fetchall() == [
            (ENTRY.score, 3, 70)
        ]
    found.close()
    other = ScoreCache.at(tmp_path / "other.sqlite", bytes=10_000)
    assert other.hasher(b"context").digest() != cache.hasher(b"context").digest()


def test_another_opening_finds_what_is_kept(tmp_path):
    """The key is the file's: a new process would hash alike."""
    path = tmp_path / "scores.sqlite"
    one = ScoreCache.at(path, bytes=10_000)
    name = one.hasher(b"x").digest()
    one.put({name: ENTRY})
    one.close()
    two = ScoreCache.at(path, bytes=10_000)
    assert two.hasher(b"x").digest() == name
    assert two.get([name]) == [ENTRY]


def test_what_is_too_old_is_not_there(tmp_path, monkeypatch):
    """After ttl seconds a score is a miss, and its row goes at the next write."""
    now = [1000.0]
    monkeypatch.setattr(disk.time, "time", lambda: now[0])
    cache = ScoreCache.at(tmp_path / "scores.sqlite", bytes=10_000, ttl=60)
    cache.put({key(1): ENTRY})
    now[0] += 59
    assert cache.get([key(1)]) == [ENTRY]
    now[0] += 2
    assert cache.get([key(1)]) == [None]
    cache.put({key(2): ENTRY})
    assert cache.stats()["bytes"] == disk.ROW_BYTES


def _damaged(path: Path) -> None:
    path.write_bytes(b"SQLite format 3\0" + b"\xff" * 5000)


def _text(path: Path) -> None:
    path.write_text("these are not scores\n" * 100)


def _anothers(path: Path) -> None:
    with sqlite3.connect(path) as file:
        file.execute("CREATE TABLE theirs (x)")
    file.close()


def _newer(path: Path) -> None:
    made = ScoreCache.at(path, bytes=1000)
    made.put({key(1): ENTRY})
    made.close()
    with sqlite3.connect(path) as file:
        file.execute(f"PRAGMA user_version = {disk.FORMAT + 1}")
    file.close()


def _cut(path: Path) -> None:
    made = ScoreCache.at(path, bytes=1_000_000)
    made.put({key(number): ENTRY for number in range(3000)})
    made.close()
    os.truncate(path, 9000)


def _values(path: Path) -> None:
    made = ScoreCache.at(path, bytes=1_000_000)
    made.put({key(1): ENTRY})
    made.close()
    with sqlite3.connect(path) as file:
        file.execute("UPDATE scores SET score = 'high'")
    file.close()


def _folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("spoil", [_damaged, _text, _anothers, _newer, _cut, _values, _folder])
def test_a_bad_file_is_said_once_and_fails_nothing(tmp_path, caplog, spoil):
    """Whatever stands there: misses, one warning, and a foreign file left as it was."""
    path = tmp_path / "scores.sqlite"
    spoil(path)
    before = path.read_bytes() if path.is_file() else b""
    cache = ScoreCache.at(path, bytes=1_000_000)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert cache.get([key(1)]) == [None]
            cache.put({key(1): ENTRY, key(5): ENTRY})
        assert len(cache.hasher(b"").digest()) == 16
        cache.stats()
    assert len(caplog.records) == 1, caplog.text
    assert str(path) in caplog.text
    if spoil in (_text, _anothers, _damaged):
        assert path.read_bytes() == before


def test_a_folder_that_is_not_there_is_said_once(tmp_path, caplog):
    """No folder is made for it."""
    cache = ScoreCache.at(tmp_path / "no" / "scores.sqlite", bytes=1000)
    cache.put({key(1): ENTRY})
    assert cache.get([key(1)]) == [None]
    assert len(caplog.records) == 1
    assert not (tmp_path / "no").exists()


def test_a_full_disk_keeps_what_is_there(tmp_path, caplog):
    """SQLite's own bound stands for the disk's: reading goes on, writing stops, said once."""
    cache = ScoreCache.at(tmp_path / "scores.sqlite", bytes=10_000_000)
    cache.put({key(1): ENTRY})
    store = cache._store
    store._opened[1].execute("PRAGMA max_page_count = 12")
    for start in range(1, 4):
        cache.put({os.urandom(16): ENTRY for _ in range(2000)})
        assert cache.get([key(1)]) == [ENTRY], start
    assert len(caplog.records) == 1
    assert "full" in caplog.text


def test_a_file_that_cannot_be_written_is_read(tmp_path, caplog, monkeypatch):
    """Opened for reading alone: hits are hits, and that nothing is kept is said once."""
    path = tmp_path / "scores.sqlite"
    made = ScoreCache.at(path, bytes=10_000)
    made.put({key(1): ENTRY})
    made.close()
    monkeypatch.setattr(disk.os, "access", lambda *_: False)
    cache = ScoreCache.at(path, bytes=10_000)
    assert cache.get([key(1)]) == [ENTRY]
    cache.put({key(2): ENTRY})
    assert cache.get([key(2)]) == [None]
    assert len(caplog.records) == 1
    assert "readonly" in caplog.text


def _write(path: str, start: int) -> None:
    cache = ScoreCache.at(path, bytes=10_000_000)
    for number in range(start, start + 200):
        cache.put({key(number): ENTRY})


def test_several_processes_share_a_file(tmp_path):
    """Three write at once, from the moment the file is made; a fourth reads all of it."""
    path = str(tmp_path / "scores.sqlite")
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write, args=(path, 1000 * at)) for at in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
        assert writer.exitcode == 0
    keys = [key(1000 * at + number) for at in range(3) for number in range(200)]
    assert ScoreCache.at(path, bytes=10_000_000).get(keys) == [ENTRY] * 600


def test_a_forked_child_opens_the_file_anew(tmp_path):
    """A cache that was open goes on in parent and child."""
    cache = ScoreCache.at(tmp_path / "scores.sqlite", bytes=100_000)
    cache.put({key(1): ENTRY})
    child = os.fork()
    if not child:
        try:
            found = cache.get([key(1)])
            cache.put({key(2): ENTRY})
            os._exit(0 if found == [ENTRY] else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert cache.get([key(1), key(2)]) == [ENTRY, ENTRY]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ScoreCache.memory(bytes=0), "cache.bytes must be an int of at least 1: got 0"),
        (lambda: ScoreCache.memory(bytes=True), "cache.bytes must be an int of at least 1"),
        (lambda: ScoreCache.at(" ", bytes=9), "cache.path must be a str or a Path: got ' '"),
        (lambda: ScoreCache.at("x", bytes=9, ttl=0), "cache.ttl must be seconds above 0, or None"),
        (lambda: ScoreCache.of(5), "cache must be ScoreCache.memory(...), ScoreCache.at(...)"),
        (lambda: ScoreCache.of({"size": 5}), "cache must have bytes, and may have path and ttl"),
        (lambda: ScoreCache.of({"bytes": 5, "ttl": 3}), "cache.ttl needs cache.path: got 3"),
    ],
)
def test_what_a_cache_must_not_be(make, message: str):
    """Each mistake names the field, the rule and the value."""
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value).startswith(message)
