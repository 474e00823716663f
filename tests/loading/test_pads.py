"""Pads and token types: a score is that of its pair alone, whatever the files say of padding.

Oracle: transformers, one pair at a time, so that nothing is padded.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    ConvBertConfig,
    ConvBertForSequenceClassification,
    Qwen3ForSequenceClassification,
)

from rerank_adapters import ModelError, Reranker
from rerank_adapters.export import export_onnx
from tests.checkpoints import PAIRS, build, oracle
from tests.exported import exported
from tests.replicas import copy_of, edit_json, save_decoder

SOME = [pair for pair in PAIRS if len(pair[0] + pair[1]) < 300 and "<|" not in pair[1]][:9]


def alone(folder: Path, pairs: list[tuple[str, str]] = SOME) -> np.ndarray:
    """Scores of *pairs* by transformers, each in a forward of its own."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        logits = [
            model(**tokenizer([[*pair]], truncation=True, return_tensors="pt")).logits[0, 0]
            for pair in pairs
        ]
    return torch.stack(logits).sigmoid().numpy()


def scores_on(backend: str, folder: Path) -> Any:
    if backend == "onnx":
        folder = export_onnx(folder, folder.parent / "exported")
    with Reranker(folder, backend=backend, device="cpu", activation="sigmoid") as reranker:
        return reranker.score_pairs(SOME)


def close(found: Any, expected: Any) -> None:
    """Law 1's tolerance: float32 sums in another order."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


BACKENDS = pytest.mark.parametrize(
    "backend", ["torch", pytest.param("onnx", marks=pytest.mark.long)]
)


def minus_one(folder: Path) -> None:
    """As configurations of old Llamas have it."""
    edit_json(folder / "config.json", pad_token_id=-1)


def added(folder: Path) -> None:
    """A pad token that was added to the tokenizer, and to no weights."""
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text("utf-8"))
    number = max(
        [*content["model"]["vocab"].values(), *(it["id"] for it in content["added_tokens"])]
    )
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    token = {"id": number + 1, "content": "<|pad|>", "special": True, **flags}
    content["added_tokens"].append(token)
    file.write_text(json.dumps(content), "utf-8")
    edit_json(folder / "tokenizer_config.json", pad_token="<|pad|>")
    edit_json(folder / "config.json", pad_token_id=number + 1)


def none(folder: Path) -> None:
    """Nobody names one: what ends a text pads."""
    for name in ("config.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            edit_json(folder / name, pad_token=None, pad_token_id=None)


@BACKENDS
@pytest.mark.parametrize("edit", [minus_one, added, none])
def test_a_decoder_pads_with_a_token_that_there_is(
    tmp_path: Path, backend: str, edit: Callable[[Path], None]
) -> None:
    """-1 and a token without a row are no tokens; the last token of a pair is found without."""
    folder = tmp_path / "model"
    save_decoder(folder, Qwen3ForSequenceClassification, labels=1, chat=None)
    expected = alone(folder)
    edit(folder)
    close(scores_on(backend, folder), expected)


@BACKENDS
def test_a_text_that_ends_in_the_pad_token_is_read_as_sentence_transformers_reads_it(
    tmp_path: Path, backend: str
) -> None:
    """Web text often ends in <|endoftext|>, the pad token: alone and in company, by either side."""
    folder = tmp_path / "model"
    save_decoder(folder, Qwen3ForSequenceClassification, labels=1, chat=None)
    ends = ("price", "price<|endoftext|>", "a <|endoftext|><|endoftext|>", "<|endoftext|>")
    pairs = [("what is the capital", text) for text in ends]
    expected = oracle(folder, pairs)
    assert np.abs(expected - alone(folder, pairs)).max() < 1e-4
    path = export_onnx(folder, tmp_path / "out") if backend == "onnx" else folder
    with Reranker(path, backend=backend, device="cpu") as reranker:
        close(reranker.score_pairs(pairs), expected)
        close([reranker.score_pairs([pair])[0] for pair in pairs], expected)


@pytest.mark.parametrize("backend", ["torch", "onnx"])
@pytest.mark.parametrize("kind", ["bert", "roberta", "deberta_v2"])
def test_an_encoder_is_padded_on_the_right_whatever_its_files_state(
    tmp_path: Path, backend: str, kind: str
) -> None:
    """Pads on the left would move its positions by the lengths of its company."""
    folder = copy_of(kind, tmp_path / "model")
    edit_json(folder / "tokenizer_config.json", padding_side="left")
    if backend == "onnx":
        (folder / "model.onnx").write_bytes((exported(kind) / "model.onnx").read_bytes())
    with Reranker(folder, backend=backend, device="cpu") as reranker:
        close(reranker.score_pairs(PAIRS[:12]), oracle(build(kind), PAIRS[:12]))


def test_a_network_that_reads_its_pads_runs_pair_by_pair(tmp_path: Path) -> None:
    """ConvBERT's convolutions reach over a text's end: in company its score was another."""
    tokenizer = AutoTokenizer.from_pretrained(build("bert"))
    config = ConvBertConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        embedding_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=256,
        initializer_range=0.25,
        num_labels=1,
    )
    torch.manual_seed(7)
    ConvBertForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    expected = alone(tmp_path)
    assert np.abs(oracle(tmp_path, SOME) - expected).max() > 1e-3  # the oracle's company counts
    with Reranker(tmp_path, backend="torch", device="cpu") as reranker:
        close(reranker.score_pairs(SOME), expected)
        close([reranker.score_pairs([pair])[0] for pair in SOME], expected)
        told = reranker.info()
    assert told.details["layout"] == "one pair a pass"
    assert "depend on padding" in told.fallback


def test_a_tokenizer_of_another_checkpoint_is_refused(tmp_path: Path) -> None:
    """Its words go beyond the rows of the embeddings; in loading and in export."""

    def fewer(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        name = "bert.embeddings.word_embeddings.weight"
        return {**weights, name: weights[name][:300]}

    folder = copy_of("bert", tmp_path / "model", weights=fewer, vocab_size=300)
    for load in (lambda: Reranker(folder, backend="torch"), lambda: export_onnx(folder, "x")):
        with pytest.raises(ModelError, match=r"token ids up to \d+, and its weights have 300 rows"):
            load()


@pytest.mark.parametrize("backend", ["torch", "onnx"])
@pytest.mark.parametrize(
    "name", ["PreTrainedTokenizerFast", "TokenizersBackend", "FancyTokenizer", "BertTokenizerFast"]
)
def test_token_types_are_given_as_sentence_transformers_gives_them(
    tmp_path: Path, backend: str, name: str
) -> None:
    """By the class that tokenizer_config.json names, one that nobody knows included."""
    folder = copy_of("bert", tmp_path / "model")
    edit_json(folder / "tokenizer_config.json", tokenizer_class=name)
    expected = oracle(folder, SOME)
    same = np.abs(expected - oracle(build("bert"), SOME)).max() < 1e-4
    assert same == (name == "BertTokenizerFast")
    if backend == "onnx":
        (folder / "model.onnx").write_bytes((exported("bert") / "model.onnx").read_bytes())
    with Reranker(folder, backend=backend, device="cpu") as reranker:
        close(reranker.score_pairs(SOME), expected)
