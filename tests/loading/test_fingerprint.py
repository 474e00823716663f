"""The fingerprint keys a cache: any byte of the files in use changes it, and nothing else does."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from rerank_adapters import RerankerConfig
from rerank_adapters.loading import find
from rerank_adapters.loading import fingerprint as module
from tests.checkpoints import build
from tests.exported import exported


def of(folder: Path, backend: str) -> str:
    return find(RerankerConfig(model=str(folder), backend=backend)).fingerprint


@pytest.fixture(params=["torch", "onnx"])
def copied(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    """A checkpoint of one's own, and the backend that reads it."""
    source = exported("bert") if request.param == "onnx" else build("bert")
    return Path(shutil.copytree(source, tmp_path / "model")), request.param


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("where", [0.001, 0.5, 0.999])
def test_one_flipped_byte_of_the_weights_changes_it(copied, where: float) -> None:
    """At the beginning, in the middle, at the end: weights are read whole, not sampled."""
    folder, backend = copied
    before = of(folder, backend)
    file = folder / ("model.onnx" if backend == "onnx" else "model.safetensors")
    flip(file, int(file.stat().st_size * where))
    assert of(folder, backend) != before


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_what_else_is_read_changes_it(copied, name: str) -> None:
    """Configuration and tokenizer are part of what a score comes from."""
    folder, backend = copied
    before = of(folder, backend)
    text = (folder / name).read_text("utf-8")
    (folder / name).write_text(text + "\n", "utf-8")
    assert of(folder, backend) != before


def test_an_unrelated_file_does_not_change_it(copied) -> None:
    """Nor do a copy, another path, a new time, other weights that this backend does not read."""
    folder, backend = copied
    before = of(folder, backend)
    (folder / "notes.txt").write_text("bought milk", "utf-8")
    (folder / "README.md").write_text("# A model", "utf-8")
    (folder / ("pytorch.onnx" if backend == "torch" else "other.safetensors")).write_bytes(
        b"x" * 99
    )
    assert of(folder, backend) == before
    os.utime(folder / "config.json", (1, 1))
    assert of(folder, backend) == before
    assert of(Path(shutil.copytree(folder, folder.parent / "again")), backend) == before


def test_a_file_beside_the_graph_counts_where_the_graph_names_it(tmp_path) -> None:
    """External data are weights; the bundled graph's are in a safetensors file."""
    from rerank_adapters.loading import bundled

    folder = Path(shutil.copytree(bundled.folder(), tmp_path / "model"))
    selection = find(RerankerConfig(backend="onnx")).selection
    before = module.fingerprint(folder, selection)
    assert before == find(RerankerConfig(backend="onnx")).fingerprint
    file = folder / "model.safetensors"
    flip(file, file.stat().st_size // 2)
    assert module.fingerprint(folder, selection) != before


def test_a_hubs_blob_is_known_by_its_name_and_a_file_is_read_once(tmp_path, monkeypatch) -> None:
    """In a cache the name is the hash; elsewhere path, size and time stand for what was read."""
    content = b"weights"
    name = hashlib.sha256(content).hexdigest()
    blob = tmp_path / "blobs" / name
    blob.parent.mkdir()
    blob.write_bytes(content)
    link = tmp_path / "snapshots" / "model.safetensors"
    link.parent.mkdir()
    link.symlink_to(blob)
    reads = []
    digest = hashlib.file_digest
    monkeypatch.setattr(
        module.hashlib, "file_digest", lambda *args: reads.append(1) or digest(*args)
    )
    assert module.content_hash(link, named=True) == name
    assert reads == []
    assert module.content_hash(link) == name
    assert reads.pop() == 1
    own = tmp_path / "model.safetensors"
    own.write_bytes(content)
    assert [module.content_hash(own) for _ in range(3)] == [name] * 3
    assert len(reads) == 1
    own.write_bytes(b"longer than before")
    assert module.content_hash(own) == hashlib.sha256(b"longer than before").hexdigest()


@pytest.mark.parametrize("size", [40, 64])
def test_a_folder_that_only_looks_like_a_cache_is_read(tmp_path, size: int) -> None:
    """A link to a blob of another's name claims nothing; true names are those of the hub."""
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    data = b"other weights"
    git = hashlib.sha1(b"blob 13\0" + data, usedforsecurity=False).hexdigest()
    true = git if size == 40 else hashlib.sha256(data).hexdigest()
    for name in ("a" * size, true):
        (blobs / name).write_bytes(data)
        (tmp_path / f"{name}.safetensors").symlink_to(blobs / name)
        assert module.content_hash(tmp_path / f"{name}.safetensors") == true
