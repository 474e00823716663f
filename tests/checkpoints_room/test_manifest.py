"""rerank_adapters.json: every key that is written is read, and the other way round."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from rerank_adapters.checkpoints import (
    ABSENT,
    FILE_NAME,
    FORMAT,
    Checkpoint,
    ExitFiles,
    Manifest,
    TextTemplate,
)
from rerank_adapters.config import RerankerConfig
from rerank_adapters.errors import ModelError
from rerank_adapters.families import family_for
from rerank_adapters.loading import find
from rerank_adapters.loading.identity import weights_of
from rerank_adapters.tokenization import PairTokenizer

from .folders import without_weights

TEMPLATE = TextTemplate("Query: ", "\nText: ", "\nAnswer:", strip=True)
FULL = Manifest(
    labels=1,
    activation="identity",
    causal=True,
    prompt="find: ",
    template=TEMPLATE,
    special_tokens="as_tokens",
    position_limit=100,
    label=0,
    scale=0.2,
    weights="0123456789abcdef",
    exits=ExitFiles((2, 3), "heads.safetensors"),
)
NULLS = Manifest(prompt=None, template=None, position_limit=None)


def loaded(folder: Path) -> dict[str, Any]:
    """What is made of the checkpoint in *folder*, by what each key of the manifest is about."""
    checkpoint = Checkpoint.read(folder)
    family = family_for(checkpoint)
    tokenizer = PairTokenizer.from_checkpoint(
        checkpoint,
        prompt=family.prompt,
        template=family.template,
        position_limit=family.position_limit,
    )
    return {
        "labels": family.labels,
        "activation": family.activation,
        "causal": tokenizer.pad_side == "left",
        "prompt": family.prompt,
        "template": family.template,
        "special_tokens": tokenizer.special_tokens,
        "label": family.label,
        "scale": family.scale,
        "position_limit": (family.position_limit, tokenizer.max_length),
        "exits": checkpoint.manifest.exits,
        "weights": weights_of(find(RerankerConfig(model=str(folder), backend="onnx")))[0],
    }


@pytest.mark.parametrize(
    "manifest",
    [
        FULL,
        NULLS,
        Manifest(),
        replace(FULL, template=replace(TEMPLATE, strip=False), causal=False, prompt="Füße\n"),
    ],
)
def test_what_is_written_is_read(tmp_path: Path, manifest: Manifest) -> None:
    """All fields, null and absent apart."""
    manifest.write(tmp_path)
    assert Manifest.read(tmp_path) == manifest


def test_every_field_is_a_key_and_absent_ones_are_left_out(tmp_path: Path) -> None:
    """The file holds the fields by name, and nothing that was not stated."""
    FULL.write(tmp_path)
    written = json.loads((tmp_path / FILE_NAME).read_text("utf-8"))
    assert list(written) == [field.name for field in fields(Manifest)]
    assert written["format"] == FORMAT == 2
    template = {"prefix": "Query: ", "middle": "\nText: ", "suffix": "\nAnswer:", "strip": True}
    assert written["template"] == template
    NULLS.write(tmp_path)
    written = json.loads((tmp_path / FILE_NAME).read_text("utf-8"))
    assert written == {"format": 2, "prompt": None, "template": None, "position_limit": None}


CHANGES: list[tuple[Manifest, dict[str, Any]]] = [
    (Manifest(labels=2), {"labels": 2, "activation": "softmax"}),
    (Manifest(activation="sigmoid"), {"activation": "sigmoid"}),
    (Manifest(causal=True), {"causal": True}),
    (Manifest(prompt="find: "), {"prompt": "find: "}),
    (
        Manifest(template=TEMPLATE),
        {"template": TEMPLATE, "causal": True, "special_tokens": "as_text"},
    ),
    (Manifest(special_tokens="as_text"), {"special_tokens": "as_text"}),
    (Manifest(position_limit=100), {"position_limit": (100, 100)}),
    (Manifest(position_limit=None), {"position_limit": (None, 256)}),
    (Manifest(label=0), {"label": 0}),
    (Manifest(scale=0.2), {"scale": 0.2}),
    (Manifest(weights="0123456789abcdef"), {"weights": "0123456789abcdef"}),
    (Manifest(exits=ExitFiles((2, 3))), {"exits": ExitFiles((2, 3), "exit_heads.safetensors")}),
]


@pytest.mark.parametrize(("manifest", "changed"), CHANGES)
def test_each_key_changes_what_is_loaded(
    tmp_path: Path, manifest: Manifest, changed: dict[str, Any]
) -> None:
    """One key stated, and just what it is about becomes another."""
    folder = without_weights(tmp_path / "bert")
    (folder / "model.onnx").write_bytes(b"a graph")
    before = loaded(folder)
    assert before == {
        "labels": 1,
        "activation": "identity",
        "causal": False,
        "prompt": None,
        "template": None,
        "special_tokens": "as_tokens",
        "label": 1,
        "scale": 1.0,
        "position_limit": (256, 256),
        "exits": ABSENT,
        "weights": sha256(sha256(b"a graph").hexdigest().encode()).hexdigest()[:16],
    }
    manifest.write(folder)
    assert loaded(folder) == {**before, **changed}


def test_every_key_is_among_those() -> None:
    """A new field of the manifest needs its case above; the format has its own."""
    stated = {
        field.name
        for manifest, _ in CHANGES
        for field in fields(manifest)
        if getattr(manifest, field.name) is not ABSENT
    }
    assert stated == {field.name for field in fields(Manifest)}


def test_null_is_not_absent(tmp_path: Path) -> None:
    """Null drops the chat template and the prompt that the other files state; absent keeps them."""
    folder = without_weights(tmp_path / "qwen3", "qwen3")
    Manifest(labels=1).write(folder)
    assert Checkpoint.read(folder).default_prompt is not None
    with pytest.raises(ModelError, match="has a chat template"):
        family_for(Checkpoint.read(folder))
    replace(NULLS, labels=1).write(folder)
    family = family_for(Checkpoint.read(folder))
    assert (family.template, family.prompt, family.position_limit) == (None, None, None)


def test_a_newer_format_is_refused_with_the_cure(tmp_path: Path) -> None:
    """Both numbers are named; what a newer format says elsewhere is not judged."""
    (tmp_path / FILE_NAME).write_text('{"format": 3, "labels": ["one"]}')
    words = r"has format 3, .* up to format 2: pip install --upgrade rerank-adapters"
    with pytest.raises(ModelError, match=words):
        Manifest.read(tmp_path)


def test_without_the_file_there_is_none(tmp_path: Path) -> None:
    """No manifest is not an empty one; an empty one states nothing."""
    assert Manifest.read(tmp_path) is None
    (tmp_path / FILE_NAME).write_text("{}")
    assert Manifest.read(tmp_path) == Manifest()


def _template_with(**changes: object) -> dict[str, object]:
    return {"prefix": "", "middle": "", "suffix": "", "strip": False, **changes}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", "1"),
        ("format", 0),
        ("format", True),
        ("labels", "x"),
        ("labels", None),
        ("labels", 0),
        ("labels", 1.0),
        ("activation", 1),
        ("activation", None),
        ("causal", "yes"),
        ("causal", 1),
        ("prompt", ["find: "]),
        ("template", "Query: "),
        ("template", {"prefix": "", "middle": ""}),
        ("template", _template_with(infix="")),
        ("template", _template_with(prefix=None)),
        ("template", _template_with(strip=1)),
        ("position_limit", "many"),
        ("position_limit", 0),
        ("weights", 3),
    ],
)
def test_a_value_of_the_wrong_kind_is_named(tmp_path: Path, key: str, value: object) -> None:
    """The error has the key, the file, the rule and the value."""
    (tmp_path / FILE_NAME).write_text(json.dumps({key: value}))
    with pytest.raises(ModelError) as caught:
        Manifest.read(tmp_path)
    assert str(caught.value).startswith(f"{key} in {tmp_path / FILE_NAME} must be ")
    assert str(caught.value).endswith(f": got {value!r}")


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda file: file.write_text("{"), "is not JSON"),
        (lambda file: file.write_text("[]"), "must hold an object: got list"),
        (lambda file: file.write_bytes(b"\xff"), "is not JSON"),
    ],
)
def test_a_damaged_file_is_named(
    tmp_path: Path, write: Callable[[Path], object], words: str
) -> None:
    """JSON that does not parse, and JSON that is no object."""
    write(tmp_path / FILE_NAME)
    with pytest.raises(ModelError, match=f"rerank_adapters.json {words}"):
        Manifest.read(tmp_path)
