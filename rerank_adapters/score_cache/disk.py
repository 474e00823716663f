"""Scores in a SQLite file, for several processes at once."""

from __future__ import annotations

import logging
import math
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from .entries import CachedScore, new_secret

Value = TypeVar("Value")

logger = logging.getLogger(__name__)

APPLICATION = 0x52524B53
"""What says that a SQLite file is ours."""

FORMAT = 1
"""The version of the table below; a file of another is another program's."""

ROW_BYTES = 160
"""What a row takes of the file on average, its index and half-empty pages among it."""

AT_ONCE = 500
"""Keys in one statement: SQLite bounds its parameters."""

BUSY_SECONDS = 2.0
"""How long another process' write is waited for; then this one goes without."""

_TABLES = """
CREATE TABLE scores (
    key BLOB PRIMARY KEY, score REAL NOT NULL, logit REAL NOT NULL, truncated INTEGER NOT NULL,
    first INTEGER, last INTEGER, written REAL NOT NULL, used INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX by_use ON scores (used);
CREATE TABLE facts (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
INSERT INTO facts VALUES ('rows', 0);
CREATE TRIGGER more AFTER INSERT ON scores
BEGIN UPDATE facts SET value = value + 1 WHERE name = 'rows'; END;
CREATE TRIGGER fewer AFTER DELETE ON scores
BEGIN UPDATE facts SET value = value - 1 WHERE name = 'rows'; END;
"""

_PUT = """
INSERT INTO scores VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (key) DO UPDATE SET score = excluded.score, logit = excluded.logit,
truncated = excluded.truncated, first = excluded.first, last = excluded.last,
written = excluded.written, used = excluded.used
"""


class DiskStore:
    """The rows of a file, opened at first use, anew in a forked child.

    What goes wrong with the file is said once in the log; from then on it is left alone, or where
    it can still be read it is only read.
    """

    quick = False

    def __init__(self, path: Path, most: int, ttl: float | None) -> None:
        self._path = path
        self._most = most // ROW_BYTES
        self._ttl = ttl
        self._lock = threading.Lock()
        self._opened: tuple[int, sqlite3.Connection] | None = None
        self._secret = b""
        self._trouble = ""
        self._writes = True
        self._evictions = 0
        _STORES.add(self)

    def renew(self) -> None:
        """In a forked child: a thread that did not come along may have held the lock."""
        self._lock = threading.Lock()

    @property
    def secret(self) -> bytes:
        """The file's key for hashes; one of its own where there is no file."""
        if not self._secret:
            self._try(lambda _: None, None)
            self._secret = self._secret or new_secret()
        return self._secret

    def get(self, keys: Sequence[bytes]) -> list[CachedScore | None]:
        """What is kept under each of *keys*, and not too old."""
        nothing: dict[bytes, CachedScore] = {}
        found = self._try(lambda file: self._read(file, keys), nothing)
        if found and self._writes:
            self._try(lambda file: _touch(file, found), None)
        return [found.get(key) for key in keys]

    def put(self, entries: Mapping[bytes, CachedScore]) -> None:
        """Keep *entries*; what was used longest ago makes room."""
        if self._writes:
            self._try(lambda file: self._write(file, entries), None)

    def size(self) -> tuple[int, int]:
        """(bytes in use, entries this process forgot for want of room so far)."""
        return self._try(_rows, 0) * ROW_BYTES, self._evictions

    def close(self) -> None:
        """Close the file, which a later use opens again."""
        with self._lock:
            opened, self._opened = self._opened, None
            if opened is not None and opened[0] == os.getpid():
                opened[1].close()

    def _try(self, work: Callable[[sqlite3.Connection], Value], otherwise: Value) -> Value:
        """*work* with the open file, or *otherwise* where that cannot be."""
        if self._trouble:
            return otherwise
        with self._lock:
            try:
                return work(self._file())
            except sqlite3.OperationalError as error:
                self._complain(error)
            except (sqlite3.Error, OSError, ValueError, TypeError, OverflowError) as error:
                self._give_up(error)
        return otherwise

    def _complain(self, error: sqlite3.OperationalError) -> None:
        """Judge what SQLite could not do: later perhaps, never, or reading alone."""
        text = str(error)
        if "locked" in text or "busy" in text:
            return
        if "readonly" in text or "full" in text:
            if self._writes:
                self._writes = False
                logger.warning("cache %s: nothing more is kept: %s", self._path, text)
            return
        self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._trouble = str(error)
        self._opened = None
        logger.warning("cache %s cannot be used: %s: pairs are scored anew", self._path, error)

    def _file(self) -> sqlite3.Connection:
        if self._opened is not None:
            if self._opened[0] == os.getpid():
                return self._opened[1]
            _PARENTS.append(self._opened[1])
        if not self._path.exists():
            os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))
        elif not os.access(self._path, os.W_OK):
            self._complain(sqlite3.OperationalError("attempt to write a readonly database"))
        mode = "rw" if self._writes else "ro"
        address = f"{self._path.absolute().as_uri()}?mode={mode}"
        file = sqlite3.connect(
            address,
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            self._secret = _checked(file, write=self._writes)
        except BaseException:
            file.close()
            raise
        self._opened = os.getpid(), file
        return file

    def _read(self, file: sqlite3.Connection, keys: Sequence[bytes]) -> dict[bytes, CachedScore]:
        oldest = 0.0 if self._ttl is None else time.time() - self._ttl
        found = {}
        for some in _chunks(dict.fromkeys(keys)):
            marks = ", ".join("?" * len(some))
            rows = file.execute(
                "SELECT key, score, logit, truncated, first, last FROM scores "  # noqa: S608  # marks
                f"WHERE written >= ? AND key IN ({marks})",
                (oldest, *some),
            )
            for key, score, logit, flags, first, last in rows:
                if not (math.isfinite(score) and math.isfinite(logit)):
                    continue
                span = None if first is None else (int(first), int(last))
                found[bytes(key)] = CachedScore.of(float(score), float(logit), int(flags), span)
        return found

    def _write(self, file: sqlite3.Connection, entries: Mapping[bytes, CachedScore]) -> None:
        now, used = time.time(), time.time_ns()
        with _transaction(file):
            file.executemany(
                _PUT,
                (
                    (key, it.score, it.logit, it.flags, *(it.span or (None, None)), now, used)
                    for key, it in entries.items()
                ),
            )
            if self._ttl is not None:
                file.execute("DELETE FROM scores WHERE written < ?", (now - self._ttl,))
            over = _rows(file) - self._most
            if over > 0:
                file.execute(
                    "DELETE FROM scores WHERE key IN "
                    "(SELECT key FROM scores ORDER BY used LIMIT ?)",
                    (over,),
                )
                self._evictions += over


def _checked(file: sqlite3.Connection, *, write: bool) -> bytes:
    """The key of *file*, which is made ours where it is empty. Raises sqlite3.Error."""
    ours = file.execute("PRAGMA application_id").fetchone()[0]
    tables = file.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if not tables and write:
        file.execute("PRAGMA journal_mode = WAL")
        _make(file)
        ours = APPLICATION
    version = file.execute("PRAGMA user_version").fetchone()[0]
    if ours != APPLICATION or version != FORMAT:
        raise sqlite3.DatabaseError(f"its marks are {ours:#x} and {version}")
    file.execute("PRAGMA synchronous = NORMAL")
    found = file.execute("SELECT value FROM facts WHERE name = 'secret'").fetchone()
    if found is None or not isinstance(found[0], bytes) or len(found[0]) != 32:
        raise sqlite3.DatabaseError("it has no key")
    return bytes(found[0])


def _make(file: sqlite3.Connection) -> None:
    """Make the tables, unless another process just did."""
    with _transaction(file):
        if file.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            return
        for statement in _statements(_TABLES):
            file.execute(statement)
        file.execute("INSERT INTO facts VALUES ('secret', ?)", (new_secret(),))
        file.execute(f"PRAGMA application_id = {APPLICATION}")
        file.execute(f"PRAGMA user_version = {FORMAT}")


def _statements(script: str) -> Iterator[str]:
    statement = ""
    for line in script.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


@contextmanager
def _transaction(file: sqlite3.Connection) -> Iterator[None]:
    file.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        file.execute("ROLLBACK")
        raise
    file.execute("COMMIT")


def _touch(file: sqlite3.Connection, keys: Iterable[bytes]) -> None:
    used = time.time_ns()
    with _transaction(file):
        file.executemany("UPDATE scores SET used = ? WHERE key = ?", ((used, it) for it in keys))


def _rows(file: sqlite3.Connection) -> int:
    return int(file.execute("SELECT value FROM facts WHERE name = 'rows'").fetchone()[0])


def _chunks(keys: Iterable[bytes]) -> Iterator[list[bytes]]:
    every = list(keys)
    for start in range(0, len(every), AT_ONCE):
        yield every[start : start + AT_ONCE]


_STORES: weakref.WeakSet[DiskStore] = weakref.WeakSet()

_PARENTS: list[sqlite3.Connection] = []
"""Connections that came along into a forked child: to close one would harm the parent's."""


def _renew() -> None:
    for store in list(_STORES):
        store.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
