"""Faults 19 to 21, tokenizers and files: what is damaged is named, nothing half is left behind.

The numbers are those of fault_table.py.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import pytest

from rerank_adapters import Reranker
from rerank_adapters.errors import (
    ModelError,
)
from rerank_adapters.tokenization import PairTokenizer
from tests.checkpoints import PAIRS, build
from tests.engine.traffic import PATIENCE
from tests.scorers.tapped import (
    QUERY,
    TOLERANCE,
    assert_serves,
    checkpoint,
    on,
    tapped,
    texts,
)


@on(19)
def test_19_tokeniser_is_shared_by_sixteen_threads(backend):
    """One tokenizer, sixteen threads, texts of all lengths: ids bit for bit as one by one."""
    reranker, _ = tapped(backend)
    tokenizer = PairTokenizer.from_folder(checkpoint(backend), max_length=256)
    chunks = [PAIRS[n % 7 :: 7] for n in range(16)]
    expected = [tokenizer.encode(chunk).batch for chunk in chunks]
    scores = [reranker.score_pairs(chunk) for chunk in _askable(chunks)]
    failures: list[object] = []

    def caller(n: int) -> None:
        for _ in range(20):
            batch = tokenizer.encode(chunks[n]).batch
            if not (
                np.array_equal(batch.input_ids, expected[n].input_ids)
                and np.array_equal(batch.lengths, expected[n].lengths)
            ):
                failures.append(n)

    with ThreadPoolExecutor(16) as pool:
        wait([pool.submit(caller, n) for n in range(16)], PATIENCE)
        again = [pool.submit(reranker.score_pairs, chunk) for chunk in _askable(chunks)]
        for future, alone in zip(again, scores, strict=True):
            np.testing.assert_allclose(
                future.result(PATIENCE), alone, atol=TOLERANCE[backend], rtol=0
            )
    assert failures == []
    reranker.close()


def _askable(chunks):
    """Without the pairs whose query is blank, which a Reranker refuses."""
    return [[pair for pair in chunk if pair[0].strip()] for chunk in chunks]


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _weights(folder: Path) -> Path:
    (file,) = [*folder.rglob("*.onnx"), *folder.rglob("*.safetensors")]
    return file


def _set_labels(folder: Path) -> None:
    (folder / "rerank_adapters.json").unlink(missing_ok=True)  # which speaks for our own exports
    path = folder / "config.json"
    settings = json.loads(path.read_text("utf-8"))
    settings["id2label"] = {str(n): f"LABEL_{n}" for n in range(3)}
    settings["label2id"] = {f"LABEL_{n}": n for n in range(3)}
    path.write_text(json.dumps(settings), "utf-8")


def _newer_opset(folder: Path) -> None:
    import onnx

    model = onnx.load(_weights(folder))
    model.opset_import[0].version = 999
    onnx.save(model, _weights(folder))


DAMAGE = {
    # what: (the damage, a word of the error, the only backend it concerns)
    # safetensors does not say which file it was reading, so torch's error names the folder.
    "weights cut in half": (
        lambda f: _truncate(_weights(f)),
        r"model\.onnx|cannot load \S*checkpoint: ",
        None,
    ),
    "no weights": (lambda f: _weights(f).unlink(), r"model\.(onnx|safetensors)|weights", None),
    "config is not JSON": (
        lambda f: (f / "config.json").write_text('{"model_type": '),
        r"config\.json",
        None,
    ),
    "no config": (lambda f: (f / "config.json").unlink(), r"config\.json", None),
    "no tokenizer": (lambda f: [p.unlink() for p in f.glob("tokenizer*")], r"tokenizer", None),
    "tokenizer is not JSON": (
        lambda f: (f / "tokenizer.json").write_text("{"),
        r"tokenizer\.json",
        None,
    ),
    "three labels": (_set_labels, r"3", None),
    "opset of the future": (_newer_opset, r"model\.onnx", "onnx"),
    "empty folder": (lambda f: [shutil.rmtree(f), f.mkdir()], r"checkpoint", None),
}


@on(20)
@pytest.mark.parametrize("damage", DAMAGE)
def test_20_damaged_checkpoints_name_the_file(backend, damage, tmp_path):
    """A ModelError says which file is wrong; no thread is left; a good folder still loads."""
    inflict, words, only = DAMAGE[damage]
    if only not in (None, backend):
        pytest.skip(f"only {only} reads that file")
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint(backend), folder)
    inflict(folder)
    before = threading.active_count()
    with pytest.raises(ModelError, match=words):
        Reranker.from_pretrained(str(folder), backend=backend, device="cpu")
    assert threading.active_count() <= before  # threads of tests before may end meanwhile
    if damage == "weights cut in half":
        with tapped(backend)[0] as good:
            assert_serves(good)


@on(20)
def test_20_damaged_after_load_does_not_matter(backend, tmp_path):
    """A folder deleted after loading is no longer needed."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint(backend), folder)
    with Reranker.from_pretrained(str(folder), backend=backend, device="cpu") as reranker:
        expected = reranker.score(QUERY, texts(3))
        shutil.rmtree(folder)
        np.testing.assert_array_equal(reranker.score(QUERY, texts(3)), expected)


FULL_DISK = """
    import pathlib, resource, signal, subprocess, sys
    folder = pathlib.Path(sys.argv[1])
    if sys.argv[3] == "mount":
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=True)
        (folder / "other").write_bytes(bytes(900_000))
    else:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        (folder / "other").write_bytes(b"")
    from rerank_adapters.loading import bundled
    from rerank_adapters.errors import RerankError
    from rerank_adapters.export import export_onnx
    if sys.argv[3] == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        if sys.argv[4] == "onnx":
            export_onnx(pathlib.Path(sys.argv[2]), folder / "out", dtype="float32")
        else:
            bundled.unpack(folder)
    except (RerankError, OSError) as error:
        print("failed:", type(error).__name__, error)
    print("left:", sorted(str(it.relative_to(folder)) for it in folder.rglob("*")))
"""


OWN_MOUNTS = ("unshare", "--user", "--map-root-user", "--mount")


def may_mount(folder: Path) -> bool:
    """Whether this system lets a test mount a small file system where nobody else sees it."""
    command = [*OWN_MOUNTS, "mount", "-t", "tmpfs", "tmpfs", folder]
    try:
        return not subprocess.run(command, capture_output=True, check=False).returncode
    except FileNotFoundError:
        return False


@on(21)
@pytest.mark.parametrize("disk", ["mount", "limit"])
def test_21_full_disk_leaves_no_half_checkpoint(backend, disk, tmp_path):
    """Exporting, or unpacking for torch, onto a full disk is an error, and nothing half stays.

    The file system of 1 MB is the real thing; where none may be mounted, the kernel's limit on the
    size of files stands in: writes fail half-way through a file as they do on a full disk.
    """
    if disk == "mount" and not may_mount(tmp_path):
        pytest.skip("this system lets no test mount a small file system: `limit` stands in")
    child = [
        sys.executable,
        "-c",
        textwrap.dedent(FULL_DISK),
        tmp_path,
        build("bert"),
        disk,
        backend,
    ]
    done = subprocess.run(
        [*(OWN_MOUNTS if disk == "mount" else ()), *child],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "failed:" in done.stdout
    assert "left: ['other']" in done.stdout
