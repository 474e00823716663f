"""A checkpoint's fingerprint: what its files in use hold, and nothing else."""

from __future__ import annotations

import fnmatch
import functools
import glob
import hashlib
import mmap
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..backends import Selection
from ..checkpoints import FILE_NAME

READ_FILES = (
    "config.json",
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "sentence_*_config.json",
    FILE_NAME,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "additional_chat_templates/*",
    "*/config.json",
)
"""The small files that loading reads, where they are there."""

VOCABULARIES = ("vocab*", "merges*", "*.model", "*.spm", "*bpe*", "*.tiktoken")
"""What a tokenizer is converted from where there is no tokenizer.json."""

_HASH = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")


def fingerprint(
    folder: Path, selection: Selection, *, code: Sequence[str] = (), from_hub: bool = False
) -> str:
    """16 hexadecimal digits of a sha256 over the names and contents of the files in use.

    *from_hub*: *folder* is in huggingface_hub's own cache, where a file is named by its hash, which
    is taken. Any other file is read once, whatever its name says, and its hash remembered for as
    long as its path, size and times of change stay the same.
    """
    digest = hashlib.sha256()
    for path in sorted(set(_used(folder, selection, code))):
        name = path.relative_to(folder).as_posix()
        digest.update(f"{name}\0{content_hash(path, named=from_hub)}\0".encode())
    return digest.hexdigest()[:16]


def content_hash(path: Path, *, named: bool = False) -> str:
    """The hash of a file's content, by git or sha256: as a hub names it, so that both agree.

    *named*: the name of a blob in a hub's cache is taken for its hash, and nothing is read.
    """
    real = path.resolve()
    blob = path.is_symlink() and real.parent.name == "blobs" and _HASH.fullmatch(real.name)
    if named and blob:
        return real.name
    status = real.stat()
    git = bool(blob) and len(real.name) == 40
    return _read_hash(real, git, status.st_size, (status.st_mtime_ns, status.st_ctime_ns))


@functools.lru_cache(maxsize=4096)
def _read_hash(path: Path, git: bool, size: int, changed: tuple[int, int]) -> str:
    del changed  # a part of the key: another time is another content
    with path.open("rb") as stream:
        if not git:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        while data := stream.read(1 << 20):
            digest.update(data)
        return digest.hexdigest()


def _used(folder: Path, selection: Selection, code: Sequence[str]) -> Iterator[Path]:
    patterns = [*READ_FILES, *code]
    if not (folder / "tokenizer.json").is_file():
        patterns += VOCABULARIES
    if selection.file is None:
        patterns += selection.patterns
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if any(fnmatch.fnmatch(name, pattern) for pattern in patterns) and path.is_file():
            yield path
    if selection.file is not None:
        yield from graph_files(folder / selection.file)


def graph_files(graph: Path) -> Iterator[Path]:
    """The graph, its parts, and the files beside it that it names: its external data."""
    yield graph
    yield from graph.parent.glob(f"{glob.escape(graph.stem)}_part*.onnx")
    beside = [path for path in graph.parent.iterdir() if path.is_file() and path != graph]
    with graph.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield from (path for path in beside if data.find(path.name.encode()) >= 0)
