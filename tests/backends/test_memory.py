"""What a long document takes is given back: measured in a process of its own, on both backends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from rerank_adapters.export import export_onnx
from tests.checkpoints import build

LIMIT = 8192


@pytest.fixture(scope="module")
def long_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two layers that reads 8,192 tokens; as weights, and as ONNX in "onnx".

    Of the last layer the graph needs one row; the first has all of 8,192 x 8,192.
    """
    folder = tmp_path_factory.mktemp("long") / "model"
    tokenizer = AutoTokenizer.from_pretrained(build("bert"))
    tokenizer.model_max_length = LIMIT
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=1,
        intermediate_size=64, max_position_embeddings=LIMIT, num_labels=1, initializer_range=0.2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(14)
        BertForSequenceClassification(config).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    export_onnx(folder, folder.parent / "onnx")
    return folder


CHILD = """
import gc, json, sys
from rerank_adapters import Reranker

def held(name):
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) // 1024

folder, backend = sys.argv[1:]
short, long = ["the sky is blue"] * 4, "the sky is blue " * 4000
options = {"backend": backend, "device": "cpu", "dtype": "float32", "num_workers": 1}
with Reranker(folder, **options) as reranker:
    for _ in range(3):
        reranker.score("why", short)
    gc.collect()
    before = held("VmRSS")
    (found,) = reranker.rerank("why", [long])
    for _ in range(3):
        reranker.score("why", short)
    gc.collect()
    after = held("VmRSS")
print(json.dumps({"before": before, "most": held("VmHWM"), "after": after, "cut": found.truncated}))
"""


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_memory_comes_back_after_a_document_of_8192_tokens(long_model: Path, backend: str) -> None:
    """Attention over it takes hundreds of megabytes where it is written out; none of it stays."""
    folder = long_model if backend == "torch" else long_model.parent / "onnx"
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder), backend],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["cut"]  # it was as long as the model reads
    assert told["after"] - told["before"] < 60, told
    if backend == "onnx":
        assert told["most"] - told["before"] > 250, told
