"""Checkpoint → folder: what is written, and what is refused."""

from __future__ import annotations

import copy
import json
import logging
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from rerank_adapters import Reranker, RerankerConfig
from rerank_adapters.backends.torch import render_chat
from rerank_adapters.checkpoints import ABSENT, Checkpoint, Manifest
from rerank_adapters.errors import ConfigError, ModelError
from rerank_adapters.export import describing, export_onnx, files, gate, graph, network
from rerank_adapters.export.describing import describe
from rerank_adapters.families import family_for
from rerank_adapters.loading import find
from rerank_adapters.loading.identity import weights_of
from tests.checkpoints import KINDS, PAIRS, build, encoder_for
from tests.exported import exported

from .graphs import leftovers, random_batch, session


def test_interface(kind: str) -> None:
    """Inputs and output have the agreed names, types and open dimensions."""
    graph_of = onnx.load(exported(kind) / "model.onnx").graph
    typed = kind.startswith(("bert", "electra", "modular"))
    assert [value.name for value in graph_of.input] == [
        "input_ids",
        "attention_mask",
        *(["token_type_ids"] if typed else []),
    ]
    for value in graph_of.input:
        dims = [dim.dim_param for dim in value.type.tensor_type.shape.dim]
        assert (value.type.tensor_type.elem_type, dims) == (
            TensorProto.INT64,
            ["batch", "sequence"],
        )
    (output,) = graph_of.output
    labels = 2 if kind == "bert_two_labels" else 1
    dims = [dim.dim_param or dim.dim_value for dim in output.type.tensor_type.shape.dim]
    assert (output.name, dims) == ("logits", ["batch", labels])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("qwen3", "modular_bert")])
def test_unseen_shapes(kind: str) -> None:
    """At shapes far from the trace's the graph equals transformers' own forward.

    1e-4: float32 sums in another order, over logits of ±5.
    """
    model = AutoModelForSequenceClassification.from_pretrained(build(kind), dtype=torch.float32)
    model.eval()
    onnx_model = session(exported(kind) / "model.onnx")
    names = [node.name for node in onnx_model.get_inputs()]
    for lengths in ([3], [120], [9, 1, 64], [33] * 7):
        feed = {name: random_batch(lengths)[name] for name in names}
        with torch.inference_mode():
            expected = model(**{name: torch.from_numpy(feed[name]) for name in names}).logits
        np.testing.assert_allclose(gate.run(onnx_model, feed), expected.numpy(), atol=1e-4, rtol=0)


def test_folder_is_a_checkpoint_without_weights() -> None:
    """Tokenizer and configuration travel along, weights do not."""
    folder = exported("qwen3")
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"model.onnx", "config.json", "tokenizer.json", "tokenizer_config.json"} <= names
    assert {"rerank_adapters.json", "modules.json", "1_LogitScore/config.json"} <= names
    assert not any(name.endswith((".safetensors", ".bin")) for name in names)


def test_template_is_what_the_model_reads() -> None:
    """Prefix + query + middle + document + suffix are the tokens sentence-transformers makes."""
    described = json.loads((exported("qwen3") / "rerank_adapters.json").read_text())
    template, encoder = described["template"], encoder_for(build("qwen3"))
    query, document = PAIRS[0]
    text = f"{template['prefix']}{query}{template['middle']}{document}{template['suffix']}"
    features = encoder.preprocess([(query, document)], prompt=described["prompt"])
    assert described["causal"] is True
    assert template["strip"] is False
    assert described["prompt"] in template["prefix"]
    ids = encoder.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == features["input_ids"][0].tolist()


def test_pair_models_have_no_template() -> None:
    """Where the tokenizer puts the pair together, the template is null."""
    described = json.loads((exported("bert") / "rerank_adapters.json").read_text())
    assert described == {
        "format": 2,
        "labels": 1,
        "activation": "identity",
        "causal": False,
        "prompt": None,
        "template": None,
        "position_limit": 256,
        "weights": weights_of(find(RerankerConfig(model=str(build("bert")), backend="torch")))[0],
    }


@pytest.mark.parametrize("kind", ["bert", "bert_two_labels", "roberta", "qwen3", "modular_bert"])
def test_the_manifest_says_what_the_other_files_mean(kind: str) -> None:
    """Read with it or without, an export is the checkpoint: family, prompt, limit and pad side."""
    checkpoint = Checkpoint.read(build(kind))
    own = family_for(checkpoint, render=render_chat)
    assert family_for(Checkpoint.read(exported(kind))) == own
    assert Checkpoint.read(exported(kind)).causal == checkpoint.causal == (kind == "qwen3")


def test_an_activation_that_is_not_known_is_left_to_the_reader(tmp_path: Path) -> None:
    """The graph is exported, and loading it says what it would have said of the checkpoint."""
    folder = tmp_path / "odd"
    shutil.copytree(build("bert_128"), folder)
    config = json.loads((folder / "config.json").read_text())
    config["sbert_ce_default_activation_function"] = "custom.Tanh"
    (folder / "config.json").write_text(json.dumps(config))
    manifest = describe(encoder_for(build("bert_128")), folder)
    assert manifest.activation is ABSENT
    manifest.write(folder)
    with pytest.raises(ModelError, match=r"'custom\.Tanh'.*pass activation="):
        family_for(Checkpoint.read(folder))


def test_the_manifest_of_an_earlier_export_is_not_believed(tmp_path: Path) -> None:
    """Written into the checkpoint itself, it is made anew from the other files."""
    folder = tmp_path / "bert"
    shutil.copytree(build("bert"), folder)
    Manifest(labels=2, activation="sigmoid", position_limit=9).write(folder)
    manifest = describe(encoder_for(build("bert")), folder)
    assert (manifest.labels, manifest.activation, manifest.position_limit) == (1, "identity", 256)


def test_a_chat_template_that_changes_texts_is_refused() -> None:
    """One renderer, one error: the words are those of loading it for torch."""
    stage = copy.deepcopy(encoder_for(build("qwen3"))[0])
    stage.tokenizer.chat_template = "{{ messages[-2].content | upper }} {{ messages[-1].content }}"
    with pytest.raises(
        ModelError, match="the chat template must write the query and the document, once and as"
    ):
        describing._template(stage, None)


def test_into_the_checkpoint_itself(tmp_path: Path) -> None:
    """Into its own folder, a checkpoint gains a graph and the tokenizer.json it lacked."""
    folder = tmp_path / "bert"
    shutil.copytree(build("bert"), folder)
    vocabulary = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    (folder / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.get)) + "\n")
    (folder / "tokenizer.json").unlink()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert export_onnx(folder, folder) == folder
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(after) == {*before, "model.onnx", "rerank_adapters.json", "tokenizer.json"}
    assert after["model.safetensors"] == before["model.safetensors"]
    assert json.loads(after["tokenizer.json"])["model"]["vocab"] == vocabulary


def test_too_large_for_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights beyond protobuf's limit go to `model.onnx_data`, and the graph finds them there."""
    monkeypatch.setattr(files, "ONE_FILE_LIMIT", 1000)
    model = onnx.load(exported("bert") / "model.onnx")
    files.write_graph(model, tmp_path / "model.onnx")
    assert leftovers(tmp_path) == ["model.onnx", "model.onnx_data"]
    assert (tmp_path / "model.onnx").stat().st_size < 100_000
    feed = random_batch([20, 7])
    expected = gate.run(session(exported("bert") / "model.onnx"), feed)
    np.testing.assert_array_equal(gate.run(session(tmp_path / "model.onnx"), feed), expected)


def test_a_tokenizer_without_a_limit_has_the_networks(tmp_path: Path) -> None:
    """RoBERTa's table has two positions more than it uses: long probes stay within what it uses."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(build("roberta"), folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert settings.pop("model_max_length") == 192
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    export_onnx(folder, tmp_path / "out")
    with Reranker.from_pretrained(str(tmp_path / "out")) as reranker:
        assert reranker.info().max_length == 192
        assert np.isfinite(reranker.score("whales", ["breathe " * 500])).all()


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision is installed")
def test_the_exporter_does_not_ask_for_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its four warnings of operators no reranker has are not shown; they come back without us."""
    seen: list[str] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: seen.append(record.getMessage()))
    graph._REGISTRY.addHandler(handler)
    try:
        graph.trace(network.build(network.load(build("bert"))))
        assert seen == []
        monkeypatch.setattr(graph, "_not_of_torchvision", lambda record: True)
        graph.trace(network.build(network.load(build("bert"))))
        assert len(seen) == 4
    finally:
        graph._REGISTRY.removeHandler(handler)


def test_failed_export_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Into a folder with an earlier export, a failed one changes no byte."""

    def refuse(*_: object) -> None:
        raise ModelError("no")

    folder = tmp_path / "out"
    shutil.copytree(exported("bert"), folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(gate, "check", refuse)
    with pytest.raises(ModelError, match="no"):
        export_onnx(build("bert_128"), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert leftovers(tmp_path) == ["out"]


def test_unknown_dtype(tmp_path: Path) -> None:
    """The message names the field, the choices and the value."""
    with pytest.raises(ConfigError, match=r"dtype must be one of float32, .*: got 'int4'"):
        export_onnx(build("bert"), tmp_path / "out", "int4")  # type: ignore[arg-type]  # the point


def test_no_checkpoint(tmp_path: Path) -> None:
    """A folder without weights is named, and no output folder appears."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"empty.config\.json is missing"):
        export_onnx(tmp_path / "empty", tmp_path / "out")
    assert leftovers(tmp_path) == ["empty"]


def test_an_encoder_without_a_head_is_no_reranker(tmp_path: Path) -> None:
    """sentence-transformers would make one up, and the gate would find it equal to itself."""
    AutoModel.from_pretrained(build("bert")).save_pretrained(tmp_path / "encoder")
    AutoTokenizer.from_pretrained(build("bert")).save_pretrained(tmp_path / "encoder")
    with pytest.raises(
        ModelError, match=r"expected a reranker .* has architectures \['BertModel'\]"
    ):
        export_onnx(tmp_path / "encoder", tmp_path / "out")
    assert leftovers(tmp_path) == ["encoder"]


def test_the_default_model_is_a_graph_already(tmp_path) -> None:
    """The error says where, and nothing is written."""
    with pytest.raises(ConfigError) as caught:
        export_onnx("default", tmp_path / "out")
    folder = Path(str(caught.value).rpartition(" in ")[2].removesuffix(": copy it"))
    assert (folder / "model_int8.onnx").is_file()
    assert (folder / "model.safetensors").is_file()
    assert not (tmp_path / "out").exists()
