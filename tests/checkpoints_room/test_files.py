"""A checkpoint's small files are parsed once, by one set of rules."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rerank_adapters.checkpoints import Checkpoint
from rerank_adapters.errors import ModelError
from rerank_adapters.families import family_for
from rerank_adapters.tokenization import PairTokenizer
from tests.checkpoints import build

from .folders import without_weights

CLASSIFIER, GENERATOR = "BertForSequenceClassification", "BertForCausalLM"


@pytest.mark.parametrize(
    ("architectures", "causal"),
    [
        ([CLASSIFIER], False),
        ([GENERATOR], True),
        ([CLASSIFIER, GENERATOR], False),
        ([GENERATOR, CLASSIFIER], True),
        ([], False),
        (None, False),
    ],
)
def test_the_first_architecture_says_whether_it_is_causal(
    tmp_path: Path, architectures: list[str] | None, causal: bool
) -> None:
    """As in sentence-transformers; the tokenizer pads by the same rule."""
    change = {"architectures": architectures}
    checkpoint = Checkpoint.read(without_weights(tmp_path / "bert", config=change))
    assert checkpoint.causal == causal
    tokenizer = PairTokenizer.from_checkpoint(checkpoint)
    assert tokenizer.pad_side == ("left" if causal else "right")


def test_nothing_is_read_again(kind: str, tmp_path: Path) -> None:
    """Family and tokenizer need the parsed checkpoint and tokenizer.json, and no other JSON."""
    folder = without_weights(tmp_path / kind, kind)
    checkpoint = Checkpoint.read(folder)
    if kind == "qwen3":
        checkpoint.sentence["modality_config"] = {"text": {}}  # its template takes transformers
    family, tokenizer = family_for(checkpoint), PairTokenizer.from_checkpoint(checkpoint)
    for file in folder.rglob("*.json"):
        if file.name != "tokenizer.json":
            file.unlink()
    assert family_for(checkpoint) == family
    again = PairTokenizer.from_checkpoint(checkpoint)
    assert (again.max_length, again.pad_id) == (tokenizer.max_length, tokenizer.pad_id)


def test_settings_of_another_kind_of_model_are_not_read(tmp_path: Path) -> None:
    """A bi-encoder's modules and prompts mean nothing here; a CrossEncoder's do."""
    settings = {"prompts": {"query": "find: "}, "default_prompt_name": "query"}
    folder = without_weights(
        tmp_path / "bert",
        config_sentence_transformers={**settings, "model_type": "SentenceTransformer"},
    )
    module = [{"idx": 0, "name": "0", "path": "", "type": "a.b.Transformer"}]
    (folder / "modules.json").write_text(json.dumps(module))
    (folder / "sentence_bert_config.json").write_text('{"do_lower_case": true}')
    other = Checkpoint.read(folder)
    assert (other.modules, other.default_prompt, other.transformer) == ((), None, {})
    assert other.sentence == {"do_lower_case": True}  # of the tokenizer, for any modules.json
    settings["model_type"] = "CrossEncoder"
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    ours = Checkpoint.read(folder)
    assert [module.name for module in ours.modules] == ["Transformer"]
    assert (ours.default_prompt, ours.transformer) == ("find: ", {"do_lower_case": True})
    (folder / "modules.json").unlink()
    assert Checkpoint.read(folder).sentence == {}


def test_special_tokens_complete_the_tokenizers_settings(tmp_path: Path) -> None:
    """special_tokens_map.json speaks where tokenizer_config.json has no such key."""
    folder = without_weights(
        tmp_path / "bert",
        tokenizer_config={"pad_token": "[PAD]"},
        special_tokens_map={"pad_token": "[MASK]", "odd_token": "[SEP]"},
    )
    settings = Checkpoint.read(folder).tokenizer
    assert (settings["pad_token"], settings["odd_token"]) == ("[PAD]", "[SEP]")


@pytest.mark.parametrize("name", ["config", "modules", "tokenizer_config", "rerank_adapters"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    """Reading stops at the first file that is not JSON."""
    folder = without_weights(tmp_path / "bert")
    (folder / f"{name}.json").write_text("{")
    with pytest.raises(ModelError, match=rf"{name}\.json is not JSON"):
        Checkpoint.read(folder)


def test_without_a_manifest_everything_is_read_from_the_other_files() -> None:
    """A checkpoint that was never exported states nothing in a manifest."""
    checkpoint = Checkpoint.read(build("bert"))
    assert (checkpoint.labels, checkpoint.position_limit, checkpoint.causal) == (1, 256, False)
