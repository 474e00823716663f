"""The tokenizer's files: limits, pads, missing and damaged ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rerank_adapters.checkpoints import Checkpoint
from rerank_adapters.errors import ModelError
from rerank_adapters.families import family_for
from rerank_adapters.tokenization import PairTokenizer
from tests.checkpoints import build, encoder_for

from .folders import reference


def copy(folder: Path, kind: str = "bert", **changes: dict[str, Any]) -> Path:
    """The folder of *kind* without weights, with *changes* written into its JSON files."""
    shutil.copytree(
        build(kind), folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors")
    )
    for name, change in changes.items():
        file = folder / f"{name}.json"
        content = json.loads(file.read_text()) if file.is_file() else {}
        kept = {key: value for key, value in {**content, **change}.items() if value is not None}
        file.write_text(json.dumps(kept))
    return folder


def length(folder: Path, **options: Any) -> int:
    limit = family_for(Checkpoint.read(folder)).position_limit
    return PairTokenizer.from_folder(folder, position_limit=limit, **options).max_length


@pytest.mark.parametrize("kind", ["bert", "electra", "bert_128", "modernbert", "deberta_v2"])
def test_the_limit_is_sentence_transformers(kind: str) -> None:
    """The smaller of tokenizer and positions; max_length lowers it and never raises it."""
    own = encoder_for(build(kind)).max_seq_length
    assert length(build(kind)) == own
    assert length(build(kind), max_length=20) == 20
    assert length(build(kind), max_length=own + 1) == own


def test_a_roberta_without_stored_limit_has_two_positions_less(tmp_path: Path) -> None:
    """sentence-transformers would say 194 and fail: the last two positions do not exist."""
    folder = copy(tmp_path, "roberta", tokenizer_config={"model_max_length": None})
    assert json.loads((folder / "config.json").read_text())["max_position_embeddings"] == 194
    assert length(folder) == 192


def test_sentence_bert_config_states_the_limit_of_a_modular_save(tmp_path: Path) -> None:
    """max_seq_length replaces the tokenizer's, processing_kwargs lower it, given modules.json."""
    stated = {"max_seq_length": 100, "processing_kwargs": {"text": {"max_length": 90}}}
    folder = copy(tmp_path, "modular_bert", sentence_bert_config=stated)
    assert length(folder) == 90
    copy(tmp_path, "modular_bert", sentence_bert_config={**stated, "processing_kwargs": None})
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 100}))
    assert length(folder) == 100
    assert length(copy(tmp_path / "plain", "bert", sentence_bert_config=stated)) == 256


def test_do_lower_case_of_a_modular_save_lowers(tmp_path: Path) -> None:
    """sentence_bert_config's do_lower_case puts a lowercasing step before the tokenizer's own."""
    plain = PairTokenizer.from_folder(build("roberta"))
    folder = copy(tmp_path, "roberta", sentence_bert_config={"do_lower_case": True})
    (folder / "modules.json").write_text("[]")
    lowering = PairTokenizer.from_folder(folder)
    upper, lower = [("The LAMP", "Light")], [("the lamp", "light")]
    assert ids(lowering, upper) == ids(plain, lower) != ids(plain, upper)


def ids(tokenizer: PairTokenizer, pairs: list[tuple[str, str]]) -> list[int]:
    return tokenizer.encode(pairs).batch.input_ids.tolist()


def test_pads_are_the_tokenizers(kind: str) -> None:
    """The pad id is transformers'; pads stand left of generated text alone, never by the config."""
    tokenizer = PairTokenizer.from_folder(build(kind))
    assert tokenizer.pad_id == reference(kind).pad_token_id
    assert tokenizer.pad_side == ("left" if kind == "qwen3" else "right")


def test_pad_token_of_older_files(tmp_path: Path) -> None:
    """special_tokens_map.json, then the padding in tokenizer.json, then config.json name it."""
    folder = copy(tmp_path, "roberta", tokenizer_config={"pad_token": None})
    (folder / "special_tokens_map.json").write_text('{"pad_token": {"content": "<mask>"}}')
    assert PairTokenizer.from_folder(folder).pad_id == 4
    (folder / "special_tokens_map.json").unlink()
    assert PairTokenizer.from_folder(folder).pad_id == 1


def test_type_ids_are_zero_where_transformers_gives_none(tmp_path: Path) -> None:
    """model_input_names decides, else the tokenizer's class."""
    pair = [("blue", "sky")]
    assert PairTokenizer.from_folder(build("bert")).encode(pair).batch.type_ids.any()
    names = {"model_input_names": ["input_ids", "attention_mask"]}
    folder = copy(tmp_path / "names", tokenizer_config=names)
    assert not PairTokenizer.from_folder(folder).encode(pair).batch.type_ids.any()
    folder = copy(
        tmp_path / "class", tokenizer_config={"tokenizer_class": "DistilBertTokenizerFast"}
    )
    assert not PairTokenizer.from_folder(folder).encode(pair).batch.type_ids.any()


def test_a_missing_tokenizer_is_converted_or_named(tmp_path: Path) -> None:
    """Without tokenizer.json the error names file and cure; `convert` is asked where given."""
    folder = copy(tmp_path)
    moved = folder / "made" / "by_convert.json"
    moved.parent.mkdir()
    (folder / "tokenizer.json").rename(moved)
    with pytest.raises(ModelError, match=r"tokenizer\.json is missing.*rerank-adapters\[torch\]"):
        PairTokenizer.from_folder(folder)
    asked = []

    def convert(source: Path) -> Path:
        asked.append(source)
        return moved

    with pytest.raises(ModelError, match="holds no older vocabulary either"):
        PairTokenizer.from_folder(folder, convert=convert)
    assert not asked
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n")
    converted = PairTokenizer.from_folder(folder, convert=convert)
    assert asked == [folder]
    pair = [("blue", "sky")]
    assert ids(converted, pair) == ids(PairTokenizer.from_folder(build("bert")), pair)


@pytest.mark.parametrize("content", ["", "{", '{"version": "1.0"}', "[]"])
def test_a_damaged_tokenizer_is_a_model_error(tmp_path: Path, content: str) -> None:
    """Whatever `tokenizers` cannot read is named."""
    folder = copy(tmp_path)
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match=r"tokenizer\.json is no tokenizer"):
        PairTokenizer.from_folder(folder)


@pytest.mark.parametrize(
    ("kind", "step"),
    [
        *(("bert", step) for step in ("normalizer", "pre_tokenizer", "post_processor")),
        *(("roberta", step) for step in ("pre_tokenizer", "post_processor")),
        ("mpnet", "post_processor"),
    ],
)
@pytest.mark.parametrize("gone", [True, False], ids=["dropped", "null"])
def test_a_step_that_every_file_of_its_class_has_is_missed(
    tmp_path: Path, kind: str, step: str, gone: bool
) -> None:
    """Scored without it, the numbers would be others, silently; transformers puts its own in."""
    folder = copy(tmp_path, kind)
    content = json.loads((folder / "tokenizer.json").read_text())
    content[step] = None
    if gone:
        del content[step]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=f"has no {step}, which a {kind} tokenizer always has"):
        PairTokenizer.from_folder(folder)
