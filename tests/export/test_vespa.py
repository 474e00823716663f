"""A package for Vespa: its functions by its own vectors, its texts by what they compute."""

from __future__ import annotations

import inspect
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from typer.testing import CliRunner

from rerank_adapters import ConfigError, InputError, ModelError, Reranker, export
from rerank_adapters.cli.app import app
from rerank_adapters.export import export_vespa, vespa
from rerank_adapters.tokenization.vespa_inputs import (
    custom_token_input_ids,
    token_attention_mask,
    token_input_ids,
    token_type_ids,
)
from tests.checkpoints import PAIRS, build
from tests.exported import exported

from .graphs import session

VECTORS = [
    # Vespa's own tests of its functions, and truncation as its code has it.
    (token_input_ids(12, [1, 2], [3, 4, 5], [6, 7]), "101 1 2 102 3 4 5 102 6 7 102 0"),
    (
        custom_token_input_ids(1, 2, 13, [11, 12], [13, 14, 15], [16, 17]),
        "1 11 12 2 13 14 15 2 16 17 2 0 0",
    ),
    (token_type_ids(10, [1, 2], [3, 4, 5]), "0 0 0 0 1 1 1 1 0 0"),
    (token_attention_mask(10, [1, 2], [3, 4, 5]), "1 1 1 1 1 1 1 1 0 0"),
    (token_input_ids(6, [7, 8], [9, 10, 11, 12]), "101 7 8 102 9 10"),
    (token_attention_mask(6, [7, 8], [9, 10, 11, 12]), "1 1 1 1 1 1"),
    (token_type_ids(6, [7, 8], [9, 10, 11, 12]), "0 0 0 0 1 1"),
    # A row ends at its zeros: its length is its count of ids above 0.
    (token_input_ids(8, [7, 8, 0, 0], [9, 0]), "101 7 8 102 9 102 0 0"),
    (token_input_ids(8, [7, 0, 8], [9]), "101 7 0 102 9 102 0 0"),
    (custom_token_input_ids(0, 2, 8, [4, 5], [0], [6, 7]), "0 4 5 2 2 6 7 2"),
    (token_input_ids(2, [1, 2], [3]), "101 1"),
]


@pytest.mark.parametrize(("made", "expected"), VECTORS)
def test_functions_are_vespas(made: NDArray[np.float32], expected: str) -> None:
    """float32 of shape (1, length), number by number."""
    wanted = [int(word) for word in expected.split()]
    assert (made.dtype, made.shape) == (np.float32, (1, len(wanted)))
    assert made[0].tolist() == wanted


@pytest.mark.parametrize(("length", "rows"), [(0, 2), (True, 2), (5, 1), (5, 0), (2.0, 2)])
def test_functions_refuse_what_vespa_refuses(length: int, rows: int) -> None:
    """A length that is none, fewer than two arguments."""
    for function in (token_input_ids, token_type_ids, token_attention_mask):
        with pytest.raises(InputError):
            function(length, *([[1]] * rows))


def application(kind: str, folder: Path, **options: int) -> Path:
    """The package of a tiny checkpoint's export."""
    return vespa.write_application(exported(kind), folder, "model.onnx", **options)


def profile_of(text: str) -> dict[str, str]:
    """The functions of a rank profile by name, and its last phase's expression as "score"."""
    found = re.findall(r"function (\w+)\(\) \{\s+expression: (.+)", text)
    score = re.search(r"global-phase \{\s+rerank-count: (\d+)\s+expression: (.+)", text)
    return {**dict(found), "score": score[2], "rerank_count": score[1]}


def evaluated(folder: Path, query: str, document: str) -> float:
    """What the package computes for a pair: by its schema's text, its tokenizer and its graph."""
    text = (folder / "schemas/passage.sd").read_text("utf-8")
    sizes = {
        name: int(size)
        for name, size in re.findall(r"(\w+)\)? (?:type )?tensor<float>\(d0\[(\d+)", text)
    }
    tokenizer = Tokenizer.from_file(str(folder / "models/tokenizer.json"))
    rows = {
        "query(q_tokens)": tokenizer.encode(query, add_special_tokens=False).ids,
        "attribute(tokens)": tokenizer.encode(document, add_special_tokens=False).ids,
        "no_tokens": [0],
    }
    for name, size in (("query(q_tokens)", "q_tokens"), ("attribute(tokens)", "tokens")):
        cut = rows[name][: sizes[size]]
        rows[name] = cut + [0] * (sizes[size] - len(cut))
    functions = profile_of(text)
    known = {
        "customTokenInputIds": custom_token_input_ids,
        "tokenTypeIds": token_type_ids,
        "tokenAttentionMask": token_attention_mask,
    }
    feed = {}
    for name in re.findall(r"input (\w+): \1\n", text):
        called, given = re.fullmatch(r"(\w+)\((.+)\)", functions[name]).groups()
        values = [rows[it] if it in rows else int(it) for it in given.split(", ")]
        feed[name] = known[called](*values).astype(np.int64)  # Vespa casts to the graph's type
    logits = session(folder / "models/model.onnx").run(None, feed)[0]
    score = re.sub(
        r"onnx\(cross_encoder\)\.logits\{d0:0,d1:(\d)\}",
        lambda cell: repr(float(logits[0, int(cell[1])])),
        functions["score"],
    )
    return float(eval(score, {"sigmoid": lambda value: 1 / (1 + np.exp(-value))}))


KINDS = ["bert", "bert_two_labels", "electra", "roberta", "xlm_roberta", "distilbert"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_package_scores_as_we_do(kind: str, tmp_path: Path) -> None:
    """Where both texts fit: special ids, lengths, inputs and the expression are this model's."""
    folder = application(kind, tmp_path / "app", query_tokens=16)
    tokenizer = Tokenizer.from_file(str(folder / "models/tokenizer.json"))

    def ids(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    # A text that names the token of id 0 ("<s>", "[PAD]") ends there for Vespa.
    plain = [pair for pair in PAIRS if pair[0].strip() and 0 not in ids(pair[0]) + ids(pair[1])]
    fits = [pair for pair in plain if len(ids(pair[0])) <= 16 and len(ids(pair[1])) <= 40][:12]
    assert len(fits) == 12
    with Reranker(str(exported(kind)), backend="onnx", device="cpu") as reranker:
        ours = reranker.score_pairs(fits)
    found = [evaluated(folder, *pair) for pair in fits]
    np.testing.assert_allclose(found, ours, 0, 1e-5)  # padding: law 2, ONNX fp32


def test_long_texts_are_cut_as_vespa_cuts_them(tmp_path: Path) -> None:
    """The first tokens of each text are kept, so nothing in the pair is cut again."""
    folder = application("bert", tmp_path / "app", query_tokens=4)
    text = (folder / "schemas/passage.sd").read_text("utf-8")
    limit = Reranker(str(exported("bert")), backend="onnx", device="cpu").max_length
    assert f"tensor<float>(d0[{limit - 4 - 3}])" in text
    assert f"customTokenInputIds(2, 3, {limit}, query(q_tokens), attribute(tokens))" in text or (
        f", {limit}, query(q_tokens), attribute(tokens))" in text
    )
    query, document = PAIRS[0][0] * 3, PAIRS[0][1] * 60
    assert np.isfinite(evaluated(folder, query, document))


def test_the_texts_name_what_is_there(tmp_path: Path) -> None:
    """services.xml parses and its path exists; RoBERTa's two separators; counts as asked."""
    folder = application("xlm_roberta", tmp_path / "app", rerank_count=7)
    services = ET.parse(folder / "services.xml")
    component = services.find("container/component")
    assert component.attrib == {"id": "tokenizer", "type": "hugging-face-tokenizer"}
    assert (folder / component.find("model").attrib["path"]).is_file()
    assert services.find("content/documents/document").attrib["type"] == "passage"
    text = (folder / "schemas/passage.sd").read_text("utf-8")
    assert text.count("{") == text.count("}")
    assert (folder / "models/model.onnx").read_bytes() == (
        exported("xlm_roberta") / "model.onnx"
    ).read_bytes()
    functions = profile_of(text)
    assert functions["rerank_count"] == "7"
    assert "query(q_tokens), no_tokens, attribute(tokens)" in functions["input_ids"]
    assert functions["no_tokens"] == "tensor<float>(d0[1]):[0]"
    assert "token_type_ids" not in functions
    best = (folder / "best-paragraph.txt").read_text("utf-8")
    assert profile_of(best)["best_tokens"] == (
        "reduce(closest(embedding) * attribute(tokens), max, p)"
    )
    assert profile_of(best)["input_ids"] == functions["input_ids"].replace(
        "attribute(tokens)", "best_tokens"
    )
    plain = json.loads((folder / "models/tokenizer.json").read_text("utf-8"))
    assert (plain["truncation"], plain["padding"]) == (None, None)


def test_the_expression_is_the_models_activation(tmp_path: Path) -> None:
    """Two labels: the sigmoid of the lead, which is their softmax."""
    text = (application("bert_two_labels", tmp_path) / "schemas/passage.sd").read_text("utf-8")
    cells = [f"onnx(cross_encoder).logits{{d0:0,d1:{column}}}" for column in (1, 0)]
    assert profile_of(text)["score"] == f"sigmoid({cells[0]} - {cells[1]})"


def test_what_vespa_cannot_load_is_refused(tmp_path: Path) -> None:
    """Templates, weights beside the graph, other inputs, queries that leave no room."""
    with pytest.raises(ModelError, match="text template"):
        application("qwen3", tmp_path / "a")
    copied = tmp_path / "copied"
    shutil.copytree(exported("bert"), copied)
    model = onnx.load(copied / "model.onnx")
    onnx.save_model(
        model, copied / "model.onnx", save_as_external_data=True, location="model.onnx_data"
    )
    with pytest.raises(ModelError, match="must be one file below 2 GB"):
        vespa.write_application(copied, tmp_path / "b", "model.onnx")
    value = helper.make_tensor_value_info("pixels", TensorProto.INT64, ["a", "b"])
    weight = numpy_helper.from_array(np.ones(1, np.float32), "logits")
    graph = helper.make_graph([], "g", [value], [], [weight])
    graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1]))
    onnx.save(helper.make_model(graph), copied / "model.onnx")
    with pytest.raises(ModelError, match="must take input_ids"):
        vespa.write_application(copied, tmp_path / "c", "model.onnx")
    with pytest.raises(ConfigError, match="query_tokens must leave a document some"):
        application("bert", tmp_path / "d", query_tokens=10_000)
    for name in ("query_tokens", "rerank_count"):
        with pytest.raises(ConfigError, match=f"{name} must be an int of at least 1"):
            application("bert", tmp_path / "e", **{name: 0})


def test_a_graph_of_two_gigabytes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its size on the disk."""
    monkeypatch.setattr(vespa, "MOST_BYTES", 1000)
    with pytest.raises(ModelError, match="below 2 GB"):
        application("bert", tmp_path)


def test_the_commands_options_reach_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What finds the model does; words around a pair are refused, each by its name."""
    given: list[tuple[object, ...]] = []

    def exporting(*arguments: object, **options: object) -> Path:
        inspect.signature(export_vespa).bind(*arguments, **options)
        given.append((*arguments, options["revision"]))
        (tmp_path / "models").mkdir()
        (tmp_path / "models/model.onnx").write_bytes(b"graph")
        return tmp_path

    monkeypatch.setattr(export, "export_vespa", exporting)
    asked = ["export", "x/y", str(tmp_path), "--layout", "vespa", "--json"]
    done = CliRunner().invoke(app, [*asked, "--dtype", "int8", "--revision", "main"])
    assert json.loads(done.stdout)["file"].endswith("models/model.onnx")
    assert given == [("x/y", tmp_path, "int8", "main")]
    refused = CliRunner().invoke(app, [*asked, "--prompt", "x", "--template", "{query} {document}"])
    assert isinstance(refused.exception, ConfigError)
    assert "layout vespa has no place for prompt, template" in str(refused.exception)


@pytest.mark.long("export")
def test_the_command_writes_a_checked_package(tmp_path: Path) -> None:
    """int8 with its gate; nothing is left where it is refused."""
    command = [sys.executable, "-m", "rerank_adapters", "export", str(build("bert"))]
    told = [*command, str(tmp_path / "app"), "--dtype", "int8", "--layout", "vespa", "--json"]
    done = subprocess.run(told, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["file"] == str(tmp_path / "app/models/model.onnx")
    with Reranker(str(exported("bert", "int8")), backend="onnx", dtype="int8") as reranker:
        query, document = PAIRS[0]
        ours = reranker.score(query, [document])[0]
    assert abs(evaluated(tmp_path / "app", query, document) - ours) < 1e-6  # int8: padding apart
    refused = subprocess.run([*told, "--prompt", "x"], capture_output=True, text=True, check=False)
    assert "layout vespa has no place for prompt" in refused.stderr
    with pytest.raises(ModelError, match="text template"):
        export_vespa(build("qwen3"), tmp_path / "none")
    assert not (tmp_path / "none").exists()
