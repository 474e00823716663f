"""Which ONNX file a dtype means, and what "auto" takes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from rerank_adapters import ConfigError, MissingDependencyError, ModelError, Reranker
from rerank_adapters.checkpoints import choose_graph
from rerank_adapters.config import RerankerConfig
from rerank_adapters.loading import finding
from rerank_adapters.loading.finding import choose_backend
from tests.checkpoints import PAIRS, build
from tests.exported import exported

FILES = frozenset(
    {
        "config.json",
        "onnx/model.onnx",
        "onnx/model_fp16.onnx",
        "onnx/model_quantized.onnx",
        "onnx/model_qint8_avx512_vnni.onnx",
        "onnx/model_O3.onnx",
    }
)


@pytest.mark.parametrize(
    ("files", "dtype", "file_name", "expected"),
    [
        (FILES, "auto", None, "onnx/model.onnx"),
        (FILES, "float32", None, "onnx/model.onnx"),
        (FILES, "float16", None, "onnx/model_fp16.onnx"),
        (FILES, "int8", None, "onnx/model_qint8_avx512_vnni.onnx"),
        (FILES | {"model_int8.onnx"}, "int8", None, "model_int8.onnx"),
        (FILES, "auto", "model_O3.onnx", "onnx/model_O3.onnx"),
        (FILES, "auto", "onnx/model_O3.onnx", "onnx/model_O3.onnx"),
        (frozenset({"model.onnx"}), "auto", None, "model.onnx"),
        (FILES - {"onnx/model.onnx"}, "auto", None, "onnx/model_fp16.onnx"),
        (frozenset({"model_int8.onnx", "model_q4.onnx"}), "auto", None, "model_int8.onnx"),
        (frozenset({"onnx/model_q4.onnx"}), "auto", None, "onnx/model_q4.onnx"),
    ],
)
def test_the_hubs_file_names_are_known(files, dtype, file_name, expected) -> None:
    """Each dtype finds its file, ours before others', in `onnx/` or beside it."""
    assert choose_graph(files, dtype=dtype, file_name=file_name) == expected


def test_a_missing_file_lists_what_there_is() -> None:
    """The error names the files wanted, those found and the cure."""
    with pytest.raises(
        ModelError,
        match=r"no ONNX file model_fp16.onnx .*found: model.onnx\): pass dtype=\"float32\"",
    ):
        choose_graph(frozenset({"model.onnx"}), dtype="float16", file_name=None)
    with pytest.raises(ModelError, match=r"no ONNX file a.onnx .*found: none\)"):
        choose_graph(frozenset(), dtype="auto", file_name="a.onnx")
    with pytest.raises(ConfigError, match='dtype "bfloat16" needs backend "torch"'):
        choose_graph(FILES, dtype="bfloat16", file_name=None)


GRAPH, WEIGHTS = "onnx/model.onnx", "model.safetensors"


@pytest.mark.parametrize(
    ("files", "options", "gpu", "torch", "backend", "why"),
    [
        ({GRAPH}, {}, True, True, "onnx", "a float32 ONNX file"),
        ({GRAPH, WEIGHTS}, {}, True, True, "torch", "a GPU"),
        ({GRAPH, WEIGHTS}, {}, False, True, "onnx", "a float32 ONNX file"),
        ({GRAPH, "pytorch_model-00001-of-00002.bin"}, {}, True, True, "torch", "a GPU"),
        ({"model_int8.onnx"}, {}, False, True, "onnx", "no weights for torch, and model_int8.onnx"),
        ({"model_int8.onnx"}, {}, True, True, "onnx", "no weights for torch, and model_int8.onnx"),
        ({"model_int8.onnx"}, {"device": "cuda"}, True, True, "onnx", "no weights for torch"),
        ({"model_int8.onnx", WEIGHTS}, {}, False, True, "torch", "no float32 ONNX file"),
        ({"model_int8.onnx", WEIGHTS}, {}, False, False, "onnx", "torch is not installed, and"),
        ({GRAPH, WEIGHTS}, {"dtype": "bfloat16"}, False, True, "torch", "no bfloat16 ONNX file"),
        ({GRAPH, WEIGHTS}, {"dtype": "float16"}, False, True, "torch", "no float16 ONNX file"),
        ({"model_fp16.onnx", WEIGHTS}, {"dtype": "float16"}, False, True, "onnx", "a float16 ONNX"),
    ],
)
def test_auto_takes_what_is_there(files, options, gpu, torch, backend, why, monkeypatch) -> None:
    """Torch only where it has weights to read; of ONNX files any, where there is nothing else."""
    monkeypatch.setattr(finding, "_accelerator", lambda: gpu)
    monkeypatch.setattr(type(finding.BACKENDS["torch"]), "installed", torch)
    found = choose_backend(RerankerConfig(model="org/model", **options), frozenset(files))
    assert found[0] == backend
    assert why in found[1]


def test_weights_alone_want_torch(monkeypatch) -> None:
    """Nothing else reads them, and the error says which extra does."""
    monkeypatch.setattr(type(finding.BACKENDS["torch"]), "installed", False)
    with pytest.raises(MissingDependencyError, match=r"rerank-adapters\[torch\]"):
        choose_backend(RerankerConfig(model="org/model"), frozenset({WEIGHTS}))


def _only(graph: Path, folder: Path, *, name: str = "model_int8.onnx") -> Path:
    folder.mkdir()
    for file in graph.parent.iterdir():
        if file.suffix not in (".onnx", ".safetensors", ".data"):
            shutil.copy(file, folder)
    shutil.copy(graph, folder / name)
    return folder


def test_a_folder_of_one_int8_file_loads_as_it_is(tmp_path) -> None:
    """What `export --dtype int8` writes; the scores are those of the file by its name."""
    source = exported("bert", "int8")
    folder = _only(source / "model_int8.onnx", tmp_path / "int8")
    with Reranker(source, backend="onnx", dtype="int8") as named:
        expected = named.score_pairs(PAIRS)
    with Reranker(folder, device="cpu") as reranker:
        assert np.array_equal(reranker.score_pairs(PAIRS), expected)
        assert reranker.info().backend == "onnx"
        assert reranker.info().dtype == "int8"
        assert "model_int8.onnx" in reranker.info().why


def test_a_dtype_that_is_not_there_is_named_beside_those_that_are(tmp_path) -> None:
    """The argument, what was asked, what is there, and what to pass."""
    folder = _only(exported("bert", "int8") / "model_int8.onnx", tmp_path / "int8")
    for dtype in ("float32", "float16"):
        with pytest.raises(ModelError, match=rf'dtype="{dtype}".*pass dtype="int8"'):
            Reranker(folder, dtype=dtype, device="cpu")
    with pytest.raises(ModelError, match=r'model_int8.onnx.*backend="onnx"'):
        Reranker(folder, backend="torch")
    with pytest.raises(ModelError, match=r'found: none\): pass backend="torch"'):
        Reranker(build("bert"), backend="onnx")
