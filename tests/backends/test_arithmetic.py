"""A checkpoint's chat template computes nothing that takes the machine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rerank_adapters import Reranker
from rerank_adapters.backends.torch.arithmetic import check_arithmetic
from rerank_adapters.checkpoints import Checkpoint
from rerank_adapters.errors import ModelError
from rerank_adapters.export import export_onnx
from tests.checkpoints import build

ATTACKS = {
    "power": "{{ 10 ** 10 ** 10 }}",
    "repeated": "{{ 'a' * 10000000000 }}",
    "nested": "{{ 'a' * 1000 * 1000 * 1000 * 1000 }}",
    "by a variable": "{% set n = messages | length %}{{ 'a' * n }}",
    "width": "{{ 'a'.center(9999999999) }}",
    "format": "{{ '%9999999999d' % 1 }}",
    "brackets": "{{ '{:>9999999999}'.format(1) }}",
    "read": "{{ 'a'.ljust('9999999999' | int) }}",
    "in training": "{% generation %}{{ 2 ** 9 }}{% endgeneration %}",
}


def _in_file(folder: Path, text: str) -> None:
    (folder / "chat_template.jinja").write_text(text)


def _beside(folder: Path, text: str) -> None:
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rank.jinja").write_text(text)


def _in_json(folder: Path, text: str) -> None:
    stated = json.loads((folder / "tokenizer_config.json").read_text())
    named = [{"name": "default", "template": text}]
    (folder / "tokenizer_config.json").write_text(json.dumps({**stated, "chat_template": named}))


def _among_options(folder: Path, text: str) -> None:
    stated = json.loads((folder / "sentence_bert_config.json").read_text())
    stated["processing_kwargs"] = {"chat_template": {"chat_template": text}}
    (folder / "sentence_bert_config.json").write_text(json.dumps(stated))


PLACES = (_in_file, _beside, _in_json, _among_options)


@pytest.mark.parametrize("text", ATTACKS.values(), ids=ATTACKS)
@pytest.mark.parametrize("place", PLACES)
def test_what_one_expression_may_not_compute(
    tmp_path: Path, place: Callable[[Path, str], None], text: str
) -> None:
    """Wherever transformers may take a template from; nothing is rendered to find out."""
    folder = shutil.copytree(build("qwen3"), tmp_path / "own")
    place(folder, text)
    with pytest.raises(ModelError, match=r"must neither raise to a power.* template="):
        check_arithmetic(Checkpoint.read(folder))


@pytest.mark.parametrize(
    "text", ["{{ '  ' * 4 }}", "{{ loop.index * 2 if loop }}", "{{ 99999 }}", "{{ a ** }}"]
)
def test_what_templates_do_compute_passes(tmp_path: Path, text: str) -> None:
    """Indents, small numbers; and what cannot be parsed is for whoever renders it to say."""
    folder = shutil.copytree(build("qwen3"), tmp_path / "own")
    _in_file(folder, text)
    check_arithmetic(Checkpoint.read(folder))


def test_every_way_in_refuses(tmp_path: Path) -> None:
    """Loading with torch, and exporting."""
    folder = shutil.copytree(build("qwen3"), tmp_path / "own")
    _in_file(folder, ATTACKS["power"])
    with pytest.raises(ModelError, match="raise to a power"):
        Reranker(folder, backend="torch")
    with pytest.raises(ModelError, match="raise to a power"):
        export_onnx(folder, tmp_path / "onnx")
