"""The laws of a call: what comes back, what stays as it was, and what is never done silently."""

from __future__ import annotations

import copy
import json
import math
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from rerank_adapters import BackendError, Ranking, Reranker, RerankerConfig
from tests.checkpoints import PAIRS, build
from tests.exported import exported

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def reranker():
    """The tiny BERT on onnxruntime."""
    with Reranker.from_pretrained(
        str(exported("bert")), backend="onnx", device="cpu", dtype="float32", num_threads=1
    ) as loaded:
        yield loaded


QUERY = PAIRS[0][0]
TEXTS = [text for _, text in PAIRS]


def test_scores_are_finite_python_floats_that_survive_json_and_pickle(reranker: Reranker):
    """Law 3: no NumPy scalar leaves the library in a ranking, and nothing is lost on the way."""
    ranking = reranker.rerank(QUERY, TEXTS)
    for document in ranking:
        assert type(document.index) is int
        assert type(document.score) is float
        assert type(document.truncated) is bool
        assert math.isfinite(document.score)
        assert json.loads(json.dumps(document.score)) == document.score
    returned = pickle.loads(pickle.dumps(ranking))
    assert isinstance(returned, Ranking)
    assert returned == ranking
    assert copy.deepcopy(ranking) == ranking


def test_a_ranking_holds_every_text_once_best_first_ties_in_order(reranker: Reranker):
    """Law 3: a permutation of the indices, scores falling, equal texts in the order given."""
    ranking = reranker.rerank(QUERY, TEXTS + TEXTS)
    scores = [document.score for document in ranking]
    assert sorted(document.index for document in ranking) == list(range(2 * len(TEXTS)))
    assert scores == sorted(scores, reverse=True)
    positions = {document.index: at for at, document in enumerate(ranking)}
    assert all(positions[index] < positions[index + len(TEXTS)] for index in range(len(TEXTS)))


def test_callers_objects_are_equal_before_and_after(reranker: Reranker):
    """Law 3: lists, tuples and pairs handed in are not changed, sorted or kept."""
    texts, pairs = list(TEXTS), [list(pair) for pair in PAIRS]
    requests = [(QUERY, texts), ("bread", texts[:5])]
    before = copy.deepcopy((texts, pairs, requests))
    reranker.rerank(QUERY, texts, top_n=3, score_threshold=-1e9)
    reranker.score_pairs(pairs)
    reranker.rerank_many(requests)
    assert (texts, pairs, requests) == before


def test_scores_handed_out_belong_to_the_caller(reranker: Reranker):
    """Law 3: writing into a returned array changes no later answer."""
    first = reranker.score(QUERY, TEXTS)
    kept = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(reranker.score(QUERY, TEXTS), kept)


DEVICES = [
    ("onnx", "cuda", "pip install onnxruntime-gpu"),
    ("onnx", "cuda:1", "pip install onnxruntime-gpu"),
    ("onnx", "mps", 'backend "torch"'),
    ("torch", "cuda", "CUDA build of torch"),
    ("torch", "cuda:1", "CUDA build of torch"),
    ("torch", "mps", 'device="cpu"'),
]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has what is asked for")
@pytest.mark.parametrize(("backend", "device", "cure"), DEVICES)
def test_a_device_that_is_not_there_is_an_error_with_its_cure(backend: str, device: str, cure: str):
    """Law 5: what was asked for and cannot be had is a BackendError, never a silent CPU."""
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("this machine has what is asked for")
    folder = exported("bert") if backend == "onnx" else build("bert")
    with pytest.raises(BackendError) as caught:
        Reranker.from_pretrained(str(folder), backend=backend, device=device)
    assert f"device {device!r}".replace("'", '"') in str(caught.value).replace("'", '"')
    assert cure in str(caught.value)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["bert", "modernbert", "qwen3"])
def test_cuda_in_float32_equals_cpu(kind: str):
    """Law 1 on a GPU: the float32 scores of both devices agree within 1e-3 (TF32 is off)."""
    scores = []
    for device in ("cpu", "cuda"):
        with Reranker.from_pretrained(
            str(build(kind)), backend="torch", device=device, dtype="float32", activation="identity"
        ) as loaded:
            assert loaded.info().device.startswith(device)
            scores.append(loaded.score_pairs(PAIRS))
    np.testing.assert_allclose(scores[1], scores[0], rtol=0, atol=1e-3)


def _fresh(code: str) -> str:
    """What *code* prints in a new interpreter that cannot open a connection."""
    guard = (
        "import socket\n"
        "def refuse(*args, **kwargs): raise AssertionError('a connection was opened')\n"
        "socket.socket.connect = socket.socket.connect_ex = refuse\n"
        "socket.getaddrinfo = refuse\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", guard + code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_onnx_backend_leaves_torch_unimported():
    """Law 6: loading, scoring and closing on onnxruntime imports no torch and no transformers."""
    code = f"""
import sys
from rerank_adapters import Reranker
with Reranker.from_pretrained({str(exported("bert"))!r}, backend="onnx") as reranker:
    assert len(reranker.rerank("query", ["a text", "another"])) == 2
heavy = {{"torch", "transformers", "sentence_transformers", "onnx", "onnxscript", "optimum",
          "langchain_core", "llama_index", "pydantic", "typer", "scipy", "sklearn", "pandas"}}
print(sorted(heavy & set(sys.modules)))
"""
    assert _fresh(code) == "[]"


def test_backend_auto_prefers_onnx_on_a_cpu_and_does_not_import_torch_to_find_out():
    """Law 6: choosing looks torch up without importing it, and info() says why."""
    code = f"""
import sys
from rerank_adapters import Reranker
with Reranker.from_pretrained({str(exported("bert"))!r}, device="cpu") as reranker:
    assert reranker.info().backend == "onnx", reranker.info()
    assert reranker.info().why, reranker.info()
print("torch" in sys.modules)
"""
    assert _fresh(code) == "False"


def test_loading_and_scoring_change_no_global_state():
    """Law 8: threads, dtypes, random state, logging and environment stay as they were."""
    code = f"""
import logging, os, warnings
import numpy, torch, transformers, sentence_transformers
import onnxruntime
from transformers.utils import logging as transformers_logging
def state():
    root = logging.getLogger()
    return {{
        "root": (root.level, list(root.handlers), logging.root.manager.disable),
        "loggers": {{name: (it.level, list(it.handlers), it.propagate)
                    for name, it in logging.root.manager.loggerDict.items()
                    if isinstance(it, logging.Logger) and (it.level or it.handlers)}},
        "verbosity": transformers_logging.get_verbosity(),
        "bars": transformers_logging.is_progress_bar_enabled(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "torch": (torch.get_default_dtype(), torch.is_grad_enabled(), torch.initial_seed(),
                  torch.are_deterministic_algorithms_enabled(), torch.backends.mkldnn.enabled,
                  torch.get_float32_matmul_precision()),
        "random": (torch.random.get_rng_state().tolist(), numpy.random.get_state()[1].tolist()),
        "numpy": numpy.geterr(),
        "filters": list(warnings.filters),
        "environment": dict(os.environ),
    }}
before = state()
from rerank_adapters import Reranker
changed = []
for backend, folder in [("onnx", {str(exported("bert"))!r}), ("torch", {str(build("bert"))!r})]:
    with Reranker.from_pretrained(folder, backend=backend, device="cpu") as reranker:
        during = state()
        reranker.rerank("query", ["a text", "another, longer text", ""])
    after = state()
    changed += [(backend, it) for it in before if not before[it] == during[it] == after[it]]
print(changed)
"""
    assert _fresh(code) == "[]"


def test_a_token_appears_nowhere():
    """Law 8: a hub token is in no repr, str, pickle or error of a configuration or reranker."""
    secret = "hf_thisMustNotShow"
    config = RerankerConfig(model=str(exported("bert")), backend="onnx", device="cpu", token=secret)
    with Reranker.from_config(config) as loaded:
        shown = [repr(config), str(config), repr(loaded), str(loaded.info()), str(loaded.stats())]
    assert not [text for text in shown if secret in text]
    assert secret.encode() not in pickle.dumps(config)
    assert pickle.loads(pickle.dumps(config)).model == config.model
