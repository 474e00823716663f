"""Which files of a folder are read, and what is said of the others."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from pathspec import GitIgnoreSpec

from ..clean import one_line

LIBRARIES = ("node_modules", "bower_components", "site-packages", "__pycache__", "__MACOSX")
"""Folders of other people's files, by their names."""

MARKED = {"vendor": ("composer.json", "go.mod", "Gemfile"), "target": ("Cargo.toml", "pom.xml")}
"""Folders that hold other people's files where one of these lies beside them."""

NAMED = 5
"""Unreadable files that are named one by one; the rest are counted."""


class Left:
    """What is not read: counted by kind, and told in one line."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._unread: list[str] = []

    def count(self, kind: str) -> None:
        """Count one more of *kind*."""
        self._counts[kind] += 1

    def unreadable(self, reason: str) -> None:
        """Keep why a file could not be read."""
        self._unread.append(reason)

    def tell(self, say: Callable[[str], None]) -> None:
        """Hand *say* each line that there is to say."""
        for reason in self._unread[:NAMED]:
            say(f"passed over: {reason}")
        if len(self._unread) > NAMED:
            say(f"passed over: {len(self._unread) - NAMED} more files that cannot be read")
        if self._counts:
            say(f"not read: {self}")

    def __str__(self) -> str:
        return ", ".join(
            f"{count} {one_line(kind.replace('folders', 'folder', 1) if count == 1 else kind)}"
            for kind, count in self._counts.most_common()
        )


def files(folder: Path, suffixes: Collection[str], left: Left) -> Iterator[Path]:
    """The files under *folder* of known *suffixes* or none, in order of name; *left* has the rest.

    Hidden files and folders are passed over in silence.
    """
    rules = _rules_above(folder)
    for place, folders, names in os.walk(folder, onerror=lambda _: left.count("closed folders")):
        here = Path(place)
        rules[_absolute(here)] = _rules_of(here)
        folders[:] = sorted(name for name in folders if _enter(here, name, rules, left))
        for name in sorted(it for it in names if not it.startswith(".")):
            file = here / name
            suffix = file.suffix.lower()
            if _ignored(file, rules):
                left.count("ignored by .gitignore")
            elif not file.is_file():
                left.count("that are no plain files")
            elif suffix and suffix not in suffixes:
                left.count(suffix)
            else:
                yield file


Rules = dict[Path, GitIgnoreSpec]
"""What each folder's .gitignore says, by the folder's absolute path."""


def _enter(here: Path, name: str, rules: Rules, left: Left) -> bool:
    """Whether the folder *name* in *here* is looked into; *left* is told where it is not."""
    folder = here / name
    marks = MARKED.get(name, ())
    kind = None
    if name.startswith("."):
        return False
    if folder.is_symlink():
        kind = "linked folders"
    elif name in LIBRARIES or any((here / mark).exists() for mark in marks):
        kind = f"folders called {name}"
    elif (folder / "pyvenv.cfg").exists():
        kind = "folders of Python environments"
    elif _ignored(folder, rules, "/"):
        kind = "folders ignored by .gitignore"
    if kind is not None:
        left.count(kind)
    return kind is None


def _rules_of(folder: Path) -> GitIgnoreSpec:
    try:
        lines = (folder / ".gitignore").read_text("utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    return GitIgnoreSpec.from_lines(lines)


def _rules_above(folder: Path) -> Rules:
    """The rules of the folders around *folder*, up to the repository that it belongs to."""
    above: Rules = {}
    whole = _absolute(folder)
    for parent in whole.parents if not (whole / ".git").exists() else ():
        above[parent] = _rules_of(parent)
        if (parent / ".git").exists():
            return above
    return {}


def _ignored(path: Path, rules: Rules, end: str = "") -> bool:
    """Whether the nearest rule that speaks of *path* ignores it; *end* is "/" for folders."""
    whole = _absolute(path)
    for parent in whole.parents:
        if parent in rules:
            found = rules[parent].check_file(whole.relative_to(parent).as_posix() + end)
            if found.include is not None:
                return found.include
    return False


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 # a link's own place, not its target's
