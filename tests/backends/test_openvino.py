"""The OpenVINO backend: its numbers, its files, its threads, and that it tells nobody."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from rerank_adapters import (
    BackendError,
    ClosedError,
    ConfigError,
    MissingDependencyError,
    ModelError,
    Reranker,
    RerankerConfig,
)
from rerank_adapters.backends import BACKENDS
from rerank_adapters.tokenization import PairTokenizer
from tests.checkpoints import PAIRS
from tests.exported import exported

from .test_foreign_graphs import sums, whole_vocabulary

here = pytest.mark.skipif(
    not BACKENDS["openvino"].installed, reason="openvino is not installed: make test-neighbours"
)
ATOL = 1e-5  # float32 sums in another order, through two or three layers


def _backend(folder: Path, **options):
    from rerank_adapters.backends.openvino import OpenVinoBackend

    tokenizer = PairTokenizer.from_folder(folder)
    pads = {"pad_id": tokenizer.pad_id, "pad_side": tokenizer.pad_side}
    return OpenVinoBackend(folder / "model.onnx", **pads, **options)


def _batch(folder: Path):
    return PairTokenizer.from_folder(folder).encode(PAIRS).batch


def test_where_it_is_absent_the_extra_is_named(monkeypatch):
    """Law 5: asked for and not installed, it is an error with the cure."""
    for name in ("openvino", "rerank_adapters.backends.openvino"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingDependencyError, match=r"rerank-adapters\[openvino\]"):
        Reranker(str(exported("bert")), backend="openvino")


@here
def test_it_scores_as_onnxruntime_does():
    """One file, two runtimes: law 1's tolerance is ten times this one."""
    folder = str(exported("bert"))
    with (
        Reranker(folder, backend="openvino") as ours,
        Reranker(folder, backend="onnx", dtype="float32") as other,
    ):
        np.testing.assert_allclose(
            ours.score_pairs(PAIRS), other.score_pairs(PAIRS), rtol=0, atol=ATOL
        )
        info = ours.info()
    assert (info.backend, info.device, info.dtype) == ("openvino", "cpu", "float32")
    assert info.runtime.startswith("openvino 20")
    assert info.details["file"] == "model.onnx"


@here
def test_it_computes_in_float32_unless_told_otherwise():
    """OpenVINO itself would take bfloat16 on a CPU that has it."""
    backend = _backend(exported("bert"))
    assert backend._model.get_property("INFERENCE_PRECISION_HINT").to_string() == "f32"
    backend.close()


@here
def test_bfloat16_is_taken_where_the_cpu_has_it_and_refused_elsewhere():
    """Its scores then differ from float32's; without the instructions it is an error."""
    import openvino

    folder = exported("bert")
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(ConfigError, match='dtype must be "float32" on a CPU without bfloat16'):
            Reranker(str(folder), backend="openvino", dtype="bfloat16")
        return
    exact, half = _backend(folder), _backend(folder, dtype="bfloat16")
    drift = np.abs(half.logits(_batch(folder)) - exact.logits(_batch(folder)))
    assert 1e-4 < drift.max() < 0.15


@here
def test_threads_may_score_at_once():
    """Eight threads, each batch its own numbers; a request serves one of them at a time."""
    folder = exported("bert")
    backend, batch = _backend(folder, num_workers=2, num_threads=2), _batch(folder)
    parts = [batch.take([row]) for row in range(len(batch))] * 3
    alone = np.concatenate([backend.logits(part) for part in parts])
    with ThreadPoolExecutor(8) as pool:
        together = np.concatenate(list(pool.map(backend.logits, parts)))
    np.testing.assert_array_equal(together, alone)
    assert len(backend._idle) <= 8
    assert backend.traits.workers == 2
    assert backend._model.get_property("NUM_STREAMS") == 2


@here
def test_what_it_cannot_do_is_said():
    """Other devices, other files, and anything after it was closed."""
    folder = exported("bert")
    with pytest.raises(BackendError, match="device 'cuda' needs another backend"):
        _backend(folder, device="cuda")
    with pytest.raises(ModelError, match=r"gives 'logits' of shape \(1, 1\) for one pair"):
        _backend(folder, labels=3)
    with pytest.raises(ConfigError, match='dtype "int8" needs backend "onnx": got'):
        RerankerConfig(model=str(folder), backend="openvino", dtype="int8")
    int8 = exported("bert", "int8")
    file = next(it.name for it in int8.glob("*.onnx"))
    why = (
        r'computes in int8 .* scores would be others: pass backend="onnx".* or name a float32 file'
    )
    with pytest.raises(ModelError, match=why):
        Reranker(str(int8), backend="openvino", file_name=file)
    backend = _backend(folder)
    backend.close()
    with pytest.raises(ClosedError, match="the openvino backend is closed"):
        backend.logits(_batch(folder))


@here
@pytest.mark.parametrize("shape", [(1, 6), ("batch", 6), (2, "tokens")])
def test_fixed_shapes_are_refused_when_loaded(tmp_path, shape):
    """They would fail at the first batch of another shape; onnxruntime's backend pads to them."""
    from rerank_adapters.backends.openvino import OpenVinoBackend

    file = sums(tmp_path / "model.onnx", shape=shape)
    with pytest.raises(ModelError, match=r"'input_ids' of the fixed shape .*pass backend=\"onnx\""):
        OpenVinoBackend(file)


@here
def test_a_language_models_graph_is_refused_when_loaded(tmp_path):
    """A row of the vocabulary for every token is no score; the cure is named."""
    from rerank_adapters.backends.openvino import OpenVinoBackend

    file = whole_vocabulary(tmp_path / "model.onnx")
    with pytest.raises(ModelError, match=r"one row for every token.*rerank-adapters export"):
        OpenVinoBackend(file, labels=1)


@here
def test_it_takes_the_cpus_that_the_process_may_use(monkeypatch):
    """Affinity and quota, as onnx counts them; num_threads stands."""
    import rerank_adapters.backends.openvino as module

    monkeypatch.setattr(module, "available_cpus", lambda: 1)
    for asked, expected in ({}, 1), ({"num_threads": 2}, 2):
        backend = _backend(exported("bert"), **asked)
        assert backend._model.get_property("INFERENCE_NUM_THREADS") == expected
        assert backend.info()["num_threads"] == expected
        assert backend.traits.workers == expected


@here
def test_it_tells_nobody(tmp_path):
    """Its telemetry package is not loaded, writes no id to the home folder, and is not hidden."""
    code = f"""
import sys
from rerank_adapters import Reranker
with Reranker({str(exported("bert"))!r}, backend="openvino") as reranker:
    reranker.score("q", ["a"])
print("openvino" in sys.modules, "openvino_telemetry" in sys.modules)
import openvino_telemetry
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["True", "False"], done.stderr
    assert not (tmp_path / "intel").exists()
