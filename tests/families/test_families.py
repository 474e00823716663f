"""What a checkpoint means is read from its files, as sentence-transformers reads them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from rerank_adapters.checkpoints import Checkpoint
from rerank_adapters.errors import ConfigError, ModelError
from rerank_adapters.families import Family, family_for, render_template
from rerank_adapters.tokenization import TextTemplate
from tests import checkpoints

BERT = {
    "model_type": "bert",
    "architectures": ["BertForSequenceClassification"],
    "id2label": {"0": "LABEL_0"},
    "max_position_embeddings": 512,
    "pad_token_id": 0,
}
IDENTITY, SIGMOID = "torch.nn.modules.linear.Identity", "torch.nn.modules.activation.Sigmoid"


def folder_with(folder: Path, **files: Any) -> Path:
    """*folder* holding each of *files*, named without .json."""
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def family_in(folder: Path, **options: Any) -> Family:
    """`family_for` of the checkpoint in *folder*."""
    return family_for(Checkpoint.read(folder), **options)


def render(checkpoint: Checkpoint, prompt: str | None) -> TextTemplate:
    """What the torch backend injects."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder)
    return render_template(
        lambda messages: tokenizer.apply_chat_template(messages, tokenize=False), prompt
    )


def test_every_kind_is_read_as_sentence_transformers_reads_it(kind: str) -> None:
    """Labels and activation are those of the CrossEncoder; two labels are scored by softmax."""
    folder = checkpoints.build(kind)
    encoder = checkpoints.encoder_for(folder)
    family = family_in(folder, render=render)
    assert family.labels == encoder.num_labels
    name = type(encoder.activation_fn).__name__.lower()
    assert family.activation == ("softmax" if family.labels == 2 else name)
    assert (family.template is not None) == (kind == "qwen3")
    assert (family.answer_tokens is not None) == (kind == "qwen3")


def test_the_scores_of_two_labels_are_sentence_transformers() -> None:
    """softmax[1] by default, the second label's lead for "identity" (float32 rounding apart)."""
    folder = checkpoints.build("bert_two_labels")
    logits = checkpoints._logits(checkpoints.encoder_for(folder), checkpoints.PAIRS)
    for activation in ("default", "softmax", "identity"):
        ours = family_in(folder, activation=activation).scores(logits)
        expected = checkpoints.oracle(folder, checkpoints.PAIRS, activation=activation)
        np.testing.assert_allclose(ours, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, "sigmoid"),
        ({"sbert_ce_default_activation_function": IDENTITY}, "identity"),
        ({"sentence_transformers": {"activation_fn": IDENTITY}}, "identity"),
        (
            {
                "sentence_transformers": {"activation_fn": SIGMOID},
                "sbert_ce_default_activation_function": IDENTITY,
            },
            "sigmoid",
        ),
        (
            {
                "sentence_transformers": {"activation_fn": None},
                "sbert_ce_default_activation_function": IDENTITY,
            },
            "sigmoid",
        ),
        ({"sentence_transformers": {"version": "4.1.0"}}, "sigmoid"),
        (
            {
                "sentence_transformers": {"version": "4.1.0"},
                "sbert_ce_default_activation_function": "torch.nn.Identity",
            },
            "identity",
        ),
    ],
)
def test_activation_precedence_in_config(
    tmp_path: Path, files: dict[str, Any], expected: str
) -> None:
    """config.json: sentence_transformers.activation_fn, then the name before v4, then sigmoid."""
    folder_with(tmp_path, config={**BERT, **files})
    assert family_in(tmp_path).activation == expected
    assert family_in(tmp_path, activation="identity").activation == "identity"
    assert family_in(tmp_path, activation="sigmoid").activation == "sigmoid"


def test_activation_of_a_modular_save_goes_first(tmp_path: Path) -> None:
    """config_sentence_transformers.json wins over config.json, beside a modules.json alone."""
    files = {
        "config": {**BERT, "sentence_transformers": {"activation_fn": SIGMOID}},
        "config_sentence_transformers": {"model_type": "CrossEncoder", "activation_fn": IDENTITY},
        "modules": [{"idx": 0, "name": "0", "path": "", "type": "a.b.Transformer"}],
    }
    assert family_in(folder_with(tmp_path, **files)).activation == "identity"
    (tmp_path / "modules.json").unlink()
    assert family_in(tmp_path).activation == "sigmoid"


@pytest.mark.parametrize(
    "name", ["torch.nn.modules.activation.GLU", "my_package.Sigmoid", "torch.nn.Softmax"]
)
def test_an_unknown_activation_is_an_error_with_a_cure(tmp_path: Path, name: str) -> None:
    """It is named, and activation= cures it; it is never replaced in silence."""
    folder_with(tmp_path, config={**BERT, "sbert_ce_default_activation_function": name})
    with pytest.raises(ModelError, match=f"{name}.*activation="):
        family_in(tmp_path)
    assert family_in(tmp_path, activation="sigmoid").activation == "sigmoid"


@pytest.mark.parametrize(
    "name",
    [
        *("Sigmoid", "Identity", "Tanh", "ReLU", "ReLU6", "LeakyReLU", "Softplus", "LogSigmoid"),
        *("Softsign", "Hardtanh", "Hardsigmoid", "ELU", "CELU", "SELU", "GELU", "SiLU", "Mish"),
        *("Hardswish", "Hardshrink", "Softshrink", "Tanhshrink", "PReLU"),
    ],
)
def test_every_stored_activation_of_one_label_is_torch_s(tmp_path: Path, name: str) -> None:
    """Numbers are torch's own, and the order is that of scores wherever logits tell them apart."""
    path = f"torch.nn.modules.activation.{name}"
    folder_with(tmp_path, config={**BERT, "sentence_transformers": {"activation_fn": path}})
    family = family_in(tmp_path)
    logits = np.linspace(-9, 9, 61, dtype=np.float32)[:, None]
    scores = family.scores(logits)
    with torch.no_grad():
        expected = getattr(torch.nn, name)()(torch.from_numpy(logits[:, 0])).numpy()
    np.testing.assert_allclose(scores, expected, rtol=2e-6, atol=1e-6)
    ranked = scores[np.argsort(-family.keys(logits), kind="stable")]
    assert (np.diff(ranked) <= 1e-6).all()


def test_activations_that_cannot_be_are_refused(tmp_path: Path) -> None:
    """Softmax over one label makes every score 1; other names mean nothing."""
    folder_with(tmp_path, config=BERT)
    with pytest.raises(ConfigError, match="1 label: got 'softmax'"):
        family_in(tmp_path, activation="softmax")
    with pytest.raises(ConfigError, match=r"activation must be .* got 'relu'"):
        family_in(tmp_path, activation="relu")


def test_three_labels_are_refused(tmp_path: Path) -> None:
    """No one score can be read from three numbers."""
    folder_with(tmp_path, config={**BERT, "id2label": {str(index): "x" for index in range(3)}})
    with pytest.raises(ModelError, match="expected a model with 1 or 2 labels: got 3"):
        family_in(tmp_path)


def test_what_is_no_reranker_is_refused(tmp_path: Path) -> None:
    """The error lists what was found; so it does for a bi-encoder's modules.json."""
    folder_with(tmp_path, config={**BERT, "architectures": ["BertModel"]})
    with pytest.raises(ModelError, match=r"expected a reranker.*\['BertModel'\]"):
        family_in(tmp_path)
    modules = [{"idx": 0, "name": "0", "path": "", "type": "a.Transformer"}]
    settings = {"model_type": "SentenceTransformer"}
    folder_with(tmp_path, modules=modules, config_sentence_transformers=settings)
    with pytest.raises(ModelError, match="expected a reranker"):
        family_in(tmp_path)


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    """config.json is needed; whatever is there must be JSON of the right kind."""
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        family_in(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json is not JSON"):
        family_in(tmp_path)
    folder_with(tmp_path, config=[1])
    with pytest.raises(ModelError, match=r"config\.json must hold an object: got list"):
        family_in(tmp_path)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, 512),
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "xlm-roberta", "max_position_embeddings": 8194, "pad_token_id": 1}, 8192),
        ({"model_type": "camembert", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "mpnet", "max_position_embeddings": 514, "pad_token_id": 0}, 512),
        ({"model_type": "xlnet", "max_position_embeddings": -1}, None),
        ({"model_type": "gpt2", "max_position_embeddings": None, "n_positions": 1024}, 1024),
        ({"max_position_embeddings": None, "text_config": {"max_position_embeddings": 99}}, 99),
    ],
)
def test_position_limit(tmp_path: Path, config: dict[str, Any], expected: int | None) -> None:
    """Positions of the config; RoBERTa's kin never use the first padding_idx + 1."""
    folder_with(tmp_path, config={**BERT, **config})
    assert family_in(tmp_path).position_limit == expected


def test_sigmoid_is_safe_over_all_finite_logits() -> None:
    """No overflow and no warning from -3e38 to 3e38; within one float32 step of float64's."""
    logits = np.array([-3e38, -200, -88.8, -20, -1, 0, 1e-9, 1, 20, 100, 3e38], np.float32)
    scores = Family(labels=1, activation="sigmoid").scores(logits[:, None])
    assert scores.dtype == np.float32
    with np.errstate(over="ignore"):
        expected = 1 / (1 + np.exp(-logits.astype(np.float64)))
    np.testing.assert_allclose(scores, expected, rtol=3e-7, atol=1e-38)


def test_two_labels_are_finite_at_the_ends() -> None:
    """A lead beyond float32 is its largest number, never infinite; softmax stays in [0, 1]."""
    logits = np.array([[-3e38, 3e38], [3e38, -3e38], [1, 2], [0, 0]], np.float32)
    assert np.isfinite(Family(labels=2, activation="identity").scores(logits)).all()
    scores = Family(labels=2, activation="softmax").scores(logits)
    np.testing.assert_allclose(scores, [1, 0, 1 / (1 + np.exp(-1)), 0.5], rtol=3e-7)


def test_half_precision_is_widened_before_the_activation() -> None:
    """Logits that float16 tells apart keep apart: their sigmoids would tie in float16."""
    logits = np.array([[9.0], [9.0078125]], np.float16)
    low, high = Family(labels=1, activation="sigmoid").scores(logits)
    assert low < high
    assert np.float16(low) == np.float16(high)


def test_the_default_prompt_stands_before_each_query(tmp_path: Path) -> None:
    """It is the checkpoint's, unless a prompt is given; "" drops it."""
    settings = {
        "model_type": "CrossEncoder",
        "prompts": {"query": "query: "},
        "default_prompt_name": "query",
    }
    modules = [{"idx": 0, "name": "0", "path": "", "type": "a.b.Transformer"}]
    folder_with(tmp_path, config=BERT, config_sentence_transformers=settings, modules=modules)
    assert family_in(tmp_path).prompt == "query: "
    assert family_in(tmp_path, prompt="other: ").prompt == "other: "
    assert family_in(tmp_path, prompt="").prompt is None


def test_a_chat_template_needs_who_renders_it() -> None:
    """Without transformers it is a ModelError naming the cure, never a plain pair."""
    with pytest.raises(ModelError, match=r"backend='torch'.*export"):
        family_in(checkpoints.build("qwen3"))


def test_an_exported_folder_needs_no_renderer(tmp_path: Path) -> None:
    """rerank_adapters.json holds the rendered template, and takes another prompt for its own."""
    folder = tmp_path / "exported"
    shutil.copytree(
        checkpoints.build("qwen3"), folder, ignore=shutil.ignore_patterns("*.safetensors")
    )
    rendered = family_in(folder, render=render)
    assert rendered.template is not None
    template = {part: getattr(rendered.template, part) for part in ("prefix", "middle", "suffix")}
    prompt = "Given a question, retrieve passages that answer it"
    folder_with(folder, rerank_adapters={"labels": 1, "template": template, "prompt": prompt})
    assert family_in(folder) == rendered
    other = family_in(folder, prompt="Find the answer")
    assert other.template == family_for_with_prompt("Find the answer").template
    with pytest.raises(ConfigError, match="prompt must be"):
        family_in(folder, prompt="")


def family_for_with_prompt(prompt: str) -> Family:
    return family_in(checkpoints.build("qwen3"), prompt=prompt, render=render)


def test_an_exported_answer_wins_over_the_files(tmp_path: Path) -> None:
    """Labels, activation and position limit of rerank_adapters.json are believed."""
    exported = {"labels": 1, "activation": "identity", "position_limit": 128, "template": None}
    folder_with(tmp_path, config={**BERT, "architectures": ["Odd"]}, rerank_adapters=exported)
    family = family_in(tmp_path)
    assert (family.labels, family.activation, family.position_limit) == (1, "identity", 128)


def test_rankings_sort_by_what_stands_before_the_activation() -> None:
    """Of one label the logit, of two the second's lead: in the order of scores, but never tied."""
    one = np.array([[20.0], [40.0], [-90.0]], np.float32)
    family = Family(labels=1, activation="sigmoid")
    assert family.keys(one).tolist() == [20.0, 40.0, -90.0]
    scores = family.scores(one)
    assert scores[0] == scores[1] == 1.0
    two = np.array([[1.5, 2.0], [-20, 20], [-30, 30], [2, -1]], np.float32)
    for activation in ("softmax", "identity"):
        keys = Family(labels=2, activation=activation).keys(two)
        assert keys.tolist() == [0.5, 40.0, 60.0, -3.0]
    assert Family(labels=2, activation="softmax").scores(two)[1:3].tolist() == [1.0, 1.0]


def test_keys_are_finite_float32_and_wider_than_half_precision() -> None:
    """A lead beyond float32 is its largest number; float16 logits that differ do not tie."""
    largest = np.finfo(np.float32).max
    ends = np.array([[-3e38, 3e38], [3e38, -3e38]], np.float32)
    keys = Family(labels=2, activation="softmax").keys(ends)
    assert keys.dtype == np.float32
    assert keys.tolist() == [largest, -largest]
    half = np.array([[1000, 0.0625], [1000, 0.125]], np.float16)  # their float16 leads tie
    low, high = Family(labels=2, activation="softmax").keys(half)
    assert low < high
