"""Exit heads are the ridge regression they claim to be, and are found where they are written.

Oracle: numpy.linalg.lstsq on hidden states of transformers, one pair at a time.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from sentence_transformers import CrossEncoder

from rerank_adapters import ConfigError, EarlyExit, InputError, Reranker, RerankerConfig
from rerank_adapters.cli import main
from rerank_adapters.loading.exit_training import RIDGE, train_heads
from tests.checkpoints import TRAINING_TEXT, build
from tests.exported import exported

LINES = [line for line in TRAINING_TEXT.splitlines() if line.strip()]
QUERIES = [(LINES[at], LINES[at + 5 :][:15]) for at in range(11)]


def _config(model: Path | str) -> RerankerConfig:
    return RerankerConfig(model=str(model), backend="torch", device="cpu")


def test_heads_are_the_least_squares_of_transformers_hidden_states():
    fit = train_heads(_config(build("bert")), QUERIES, layers=(1,))
    oracle = CrossEncoder(str(build("bert")), device="cpu")
    rows, target = [], []
    for query, documents in QUERIES:
        for document in documents:
            encoded = oracle.tokenizer([[query, document]], return_tensors="pt", truncation=True)
            with torch.inference_mode():
                out = oracle.model(**encoded, output_hidden_states=True)
            states = out.hidden_states[1][0].double()
            asked = [at for at, of in enumerate(encoded.sequence_ids(0)) if of == 0]
            means = (states.mean(0).numpy(), states[asked].mean(0).numpy())
            rows.append(np.concatenate((states[0].numpy(), *means, [1.0])))
            target.append(float(out.logits[0, 0]))
    count, width = len(rows), len(rows[0]) - 1
    ridge = np.sqrt(RIDGE * count) * np.eye(width, width + 1)
    solved, *_ = np.linalg.lstsq(
        np.concatenate((rows, ridge)), np.concatenate((target, np.zeros(width))), rcond=None
    )
    assert fit.pairs == count
    head = fit.heads[1]
    # States differ by 1e-6 from transformers', which the smallest directions divide by RIDGE.
    np.testing.assert_allclose(head.weight, solved[:-1], atol=1e-3)
    assert head.bias == pytest.approx(solved[-1], abs=1e-3)
    guessed = head(np.array(rows, np.float32)[:, :-1])
    np.testing.assert_allclose(guessed, np.array(rows) @ solved, atol=1e-4)
    assert fit.explained[1] < 1
    assert 0 < fit.kept[1] <= 1


def test_a_network_that_cannot_be_cut_is_refused_by_name_on_every_way_in(tmp_path, capsys):
    """In Python and on the command line, which names the kind, what can be cut and what to do."""
    named = "torch cuts networks of bert, camembert, modernbert, roberta, xlm-roberta, and this is"
    with pytest.raises(ConfigError, match=f"{named} deberta-v2: train them for a model that it"):
        train_heads(_config(build("deberta_v2")), QUERIES, layers=(1,))
    onnx = RerankerConfig(model=str(exported("bert")), backend="onnx")
    whole = (
        r"graph model.onnx is not cut for it: pass backend=\"torch\", which cuts networks of bert,"
    )
    with pytest.raises(ConfigError, match=whole):
        train_heads(onnx, QUERIES, layers=(1,))
    for name in ("corpus", "queries"):
        (tmp_path / name).write_text('{"_id": "1", "text": "why"}', encoding="utf-8")
    words = ["exits", "train", str(tmp_path / "corpus"), str(tmp_path / "queries"), str(tmp_path)]
    with pytest.raises(SystemExit) as left:
        main([*words, "--model", str(build("deberta_v2")), "--backend", "torch", "--layer", "1"])
    assert left.value.code == 2
    assert "and this is deberta-v2" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "exit_heads.safetensors").exists()


def test_layers_that_are_not_there_and_no_candidates_are_refused():
    with pytest.raises(ConfigError, match="layers must be some of 1: got 2, 3, 4"):
        train_heads(_config(build("bert")), QUERIES)
    with pytest.raises(InputError, match="must have candidates"):
        train_heads(_config(build("bert")), [("q", [" "])], layers=(1,))


def test_the_command_writes_heads_that_the_folder_is_then_loaded_with(tmp_path, capsys):
    model = tmp_path / "model"
    shutil.copytree(build("bert"), model)
    corpus, queries = tmp_path / "corpus.jsonl", tmp_path / "queries.jsonl"
    rows = [json.dumps({"_id": str(at), "text": line}) for at, line in enumerate(LINES)]
    corpus.write_text("\n".join(rows), encoding="utf-8")
    queries.write_text("\n".join(rows[:10]), encoding="utf-8")
    words = ["exits", "train", str(corpus), str(queries), str(model), "--layer", "1", "--json"]
    with pytest.raises(SystemExit) as left:
        main([*words, "--model", str(model), "--backend", "torch", "--candidates", "12"])
    assert left.value.code in (0, None)
    told = json.loads(capsys.readouterr().out)
    assert told["file"] == str(model / "exit_heads.safetensors")
    assert [row["layer"] for row in told["layers"]] == [1]
    assert set(load_file(told["file"])) == {"layer_1.weight", "layer_1.bias"}
    manifest = json.loads((model / "rerank_adapters.json").read_text("utf-8"))
    assert manifest["exits"] == {"layers": [1], "heads": "exit_heads.safetensors"}
    options = {"backend": "torch", "device": "cpu"}
    with (
        Reranker(model, **options, early_exit=EarlyExit(1, 5)) as early,
        Reranker(build("bert"), **options) as plain,
    ):
        ranking, whole = early.rerank(LINES[0], LINES), plain.score(LINES[0], LINES)
    assert [it.exit for it in ranking] == [None] * 5 + [1] * (len(LINES) - 5)
    for it in ranking[:5]:
        assert it.score == pytest.approx(whole[it.index], abs=1e-5)
