"""What was loaded is the checkpoint: every weight read and none made up, or a ModelError."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers
from transformers import Qwen2Tokenizer

from rerank_adapters import ModelError, Reranker
from rerank_adapters.export import export_onnx
from tests.checkpoints import CHAT_TEMPLATE, PAIRS, build, oracle
from tests.kinds import KINDS
from tests.replicas import copy_of, edit_json, save_decoder

SOME = PAIRS[:8]
Weights = dict[str, torch.Tensor]


def by_torch(folder: Path) -> None:
    """Load for torch."""
    Reranker(str(folder), backend="torch", device="cpu").close()


def by_export(folder: Path) -> None:
    """Export; nothing may be left behind where it is refused."""
    out = folder.parent / "exported"
    try:
        export_onnx(folder, out)
    finally:
        assert not out.exists() or (out / "model.onnx").exists()


LOADERS = pytest.mark.parametrize("load", [by_torch, by_export])


def refused(load: Callable[[Path], None], folder: Path, match: str) -> None:
    """Both ways to load *folder* say the same."""
    with pytest.raises(ModelError, match=match):
        load(folder)


def scores_on(backend: str, folder: Path) -> Any:
    """Scores of SOME by torch, or by an export of the folder."""
    if backend == "onnx":
        folder = export_onnx(folder, folder.parent / "exported")
    with Reranker(str(folder), backend=backend, device="cpu") as reranker:
        return reranker.score_pairs(SOME)


def without(part: str) -> Callable[[Weights], Weights]:
    """Weights less those whose name holds *part*."""
    return lambda weights: {name: it for name, it in weights.items() if part not in name}


@LOADERS
@pytest.mark.parametrize(
    ("part", "named"),
    [
        ("classifier", r"has no classifier\.bias, classifier\.weight"),
        ("encoder.layer.1.", r"has no bert\.encoder\.layer\.1\..* and 10 more"),
        ("position_embeddings", r"has no bert\.embeddings\.position_embeddings\.weight"),
    ],
)
def test_missing_weights_are_refused_by_name(
    tmp_path: Path, load: Callable[[Path], None], part: str, named: str
) -> None:
    """No head, layer or table is drawn at random."""
    folder = copy_of("bert", tmp_path / "model", weights=without(part))
    refused(load, folder, named + ".*get the whole checkpoint")


@LOADERS
def test_weights_that_nothing_reads_are_refused(
    tmp_path: Path, load: Callable[[Path], None]
) -> None:
    """A config.json of fewer layers than the file has would leave half of the network out."""
    refused(load, copy_of("bert", tmp_path / "model", num_hidden_layers=1), r"does not read: bert")


@LOADERS
def test_weights_of_another_shape_are_refused(tmp_path: Path, load: Callable[[Path], None]) -> None:
    """One label in the file and two in config.json."""
    labels = {"0": "no", "1": "yes"}
    folder = copy_of("bert", tmp_path / "model", id2label=labels, label2id=None)
    refused(load, folder, r"another shape: .*classifier\.weight \(1×64, not 2×64\)")


@LOADERS
def test_a_class_in_code_that_is_not_trusted_is_refused(
    tmp_path: Path, load: Callable[[Path], None]
) -> None:
    """Jina v1: model_type "bert", and a class of its own in auto_map; weights of other names."""
    name = "JinaBertForSequenceClassification"
    folder = copy_of(
        "bert",
        tmp_path / "model",
        architectures=[name],
        auto_map={"AutoModelForSequenceClassification": f"modeling_bert.{name}"},
    )
    refused(
        load, folder, rf"those of {name}.*BertForSequenceClassification.*trust_remote_code=True"
    )


@LOADERS
def test_another_class_than_the_files_is_refused(
    tmp_path: Path, load: Callable[[Path], None]
) -> None:
    """model_type makes a BERT of what config.json calls an ELECTRA."""
    folder = copy_of("bert", tmp_path / "model", architectures=["ElectraForSequenceClassification"])
    refused(load, folder, "those of ElectraForSequenceClassification.*correct architectures")


@LOADERS
def test_an_embedding_model_is_refused(tmp_path: Path, load: Callable[[Path], None]) -> None:
    """Qwen3-Embedding: a causal architecture beside a SentenceTransformer's modules.json."""
    folder = tmp_path / "model"
    save_decoder(folder)
    modules = [
        {
            "idx": index,
            "name": str(index),
            "path": path,
            "type": f"sentence_transformers.models.{it}",
        }
        for index, (path, it) in enumerate([("", "Transformer"), ("1_Pooling", "Pooling")])
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    refused(load, folder, "expected a reranker.*embedding model.*modules.json")


@LOADERS
def test_answers_beyond_the_vocabulary_are_refused(
    tmp_path: Path, load: Callable[[Path], None]
) -> None:
    """A LogitScore that reads a token id that there is not."""
    folder = copy_of("qwen3", tmp_path / "model")
    edit_json(folder / "1_LogitScore" / "config.json", true_token_id=5000)
    refused(load, folder, r"token ids \[5000\].*vocabulary has")


@pytest.mark.parametrize("backend", ["torch", pytest.param("onnx", marks=pytest.mark.long)])
def test_a_head_without_a_stated_class_is_read(tmp_path: Path, backend: str) -> None:
    """nboost: two labels in the file, nothing in config.json; scores are the complete file's."""
    folder = copy_of(
        "bert_two_labels", tmp_path / "bert", architectures=None, id2label=None, label2id=None
    )
    scores = scores_on(backend, folder)
    np.testing.assert_allclose(scores, oracle(build("bert_two_labels"), SOME), rtol=0, atol=1e-4)


@LOADERS
def test_no_class_and_no_head_is_refused(tmp_path: Path, load: Callable[[Path], None]) -> None:
    """Without `architectures` the weights are asked, and there is no head among them."""
    folder = copy_of("bert", tmp_path / "bert", weights=without("classifier"), architectures=None)
    refused(load, folder, r"has no classifier")


@LOADERS
def test_a_dense_layer_without_its_bias_is_refused(
    tmp_path: Path, load: Callable[[Path], None]
) -> None:
    """Modules beside the transformer are held to the same."""
    folder = copy_of("modular_bert", tmp_path / "model")
    file = next(folder.glob("*_Dense/model.safetensors"))
    save_file({k: v for k, v in load_file(file).items() if "weight" not in k}, file)
    refused(load, folder, "linear.weight")


LEFT_OVERS = ("embeddings.position_ids", "cls.predictions.bias", "lm_head.bias", "pooler.x.weight")


@pytest.mark.parametrize("kind", KINDS)
def test_what_other_code_left_changes_nothing(tmp_path: Path, kind: str) -> None:
    """Buffers, heads of pretraining and an unused pooler are no weights of the score."""

    def more(weights: Weights) -> Weights:
        if "roberta" not in kind and kind not in ("mpnet", "distilbert", "qwen3"):
            return weights | {name: torch.ones(3) for name in LEFT_OVERS[:3]}
        return weights | {name: torch.ones(3) for name in LEFT_OVERS}

    folder = copy_of(kind, tmp_path / "model", weights=more)
    with Reranker(str(folder), backend="torch", device="cpu") as reranker:
        scores = reranker.score_pairs(SOME)
    np.testing.assert_allclose(scores, oracle(build(kind), SOME), rtol=0, atol=1e-4)


def test_a_tied_head_need_not_be_stored(tmp_path: Path) -> None:
    """Tied: the output matrix is the embedding; untied and not stored it would be made up."""
    pairs = [("yes", "no")]
    chat = "{{ messages[-2].content }} {{ messages[-1].content }}?"
    tied, untied = tmp_path / "tied", tmp_path / "untied"
    save_decoder(tied, chat=chat, tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(tied / "model.safetensors")
    with Reranker(str(tied), backend="torch", device="cpu") as reranker:
        assert np.isfinite(reranker.score_pairs(pairs)).all()
    save_decoder(untied, chat=chat, tie_word_embeddings=True)
    edit_json(untied / "config.json", tie_word_embeddings=False)
    refused(by_torch, untied, r"has no lm_head\.weight")


@pytest.mark.parametrize("backend", ["torch", pytest.param("onnx", marks=pytest.mark.long)])
def test_a_decoder_takes_its_tokenizer_s_pad_token(tmp_path: Path, backend: str) -> None:
    """config.json of a decoder with labels names none: scores are those with it named."""
    from transformers import Qwen3ForSequenceClassification

    folder = tmp_path / "model"
    save_decoder(folder, Qwen3ForSequenceClassification, labels=1, chat=None)
    expected = oracle(folder, SOME)
    edit_json(folder / "config.json", pad_token_id=None)
    np.testing.assert_allclose(scores_on(backend, folder), expected, rtol=0, atol=1e-4)


def test_eight_threads_load_eight_models() -> None:
    """Transformers keeps loading state per process; every load succeeds and scores right."""
    kinds = ("bert", "qwen3", "roberta", "modular_bert") * 2
    wrong: list[Any] = []

    def work(kind: str) -> None:
        try:
            with Reranker(str(build(kind)), backend="torch", device="cpu") as reranker:
                gap = np.abs(reranker.score_pairs(SOME) - expected[kind]).max()
            if gap > 1e-4:
                wrong.append((kind, gap))
        except BaseException as error:
            wrong.append(error)

    expected = {kind: oracle(build(kind), SOME) for kind in set(kinds)}
    threads = [threading.Thread(target=work, args=(kind,)) for kind in kinds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_other_threads_loads_are_left_as_they_are() -> None:
    """What is asked of transformers meanwhile is asked of this thread's loads alone, and undone."""
    from transformers import AutoModelForSequenceClassification, PreTrainedModel

    from rerank_adapters.backends.torch.whole import _reports

    usual, made = PreTrainedModel.from_pretrained.__func__, []
    with _reports() as reports:
        thread = threading.Thread(
            target=lambda: made.append(
                AutoModelForSequenceClassification.from_pretrained(build("bert"))
            )
        )
        thread.start()
        thread.join()
        assert reports == []
        assert type(made[0]).__name__ == "BertForSequenceClassification"
    assert PreTrainedModel.from_pretrained.__func__ is usual


@LOADERS
def test_a_language_model_without_the_words_is_refused(
    tmp_path: Path, load: Callable[[Path], None]
) -> None:
    """Without "yes" and "no" every score would be the unknown token's lead over itself: 0.5."""
    letters = pre_tokenizers.ByteLevel.alphabet()
    vocab = {token: index for index, token in enumerate(["<|endoftext|>", *sorted(letters)])}
    chat = CHAT_TEMPLATE.replace("<|im_start|>", "").replace("<|im_end|>", "")
    folder = tmp_path / "model"
    save_decoder(folder, tokenizer=Qwen2Tokenizer(vocab=vocab, merges=[]), chat=chat)
    refused(load, folder, r"'yes' and 'no' .*pass answers=")


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 90868376\n"


def sharded(folder: Path) -> Path:
    """The tiny BERT in two files of weights and an index."""
    copy_of("bert", folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, index = sorted(weights), {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        name = f"model-{number:05}-of-00002.safetensors"
        save_file({key: weights[key] for key in part}, folder / name, {"format": "pt"})
        index |= dict.fromkeys(part, name)
    edit_json(folder / "model.safetensors.index.json", metadata={}, weight_map=index)
    return folder


def test_shards_are_read_and_a_missing_one_is_named(tmp_path: Path) -> None:
    """In loading and in export, before anything is read."""
    folder = sharded(tmp_path / "model")
    np.testing.assert_allclose(
        scores_on("torch", folder), oracle(build("bert"), SOME), rtol=0, atol=1e-4
    )
    (folder / "model-00002-of-00002.safetensors").unlink()
    for load in (by_torch, by_export):
        refused(load, folder, r"index\.json names files that are not there: model-00002-of-00002")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_pointer_of_git_lfs_is_told_from_damage(tmp_path: Path, name: str) -> None:
    """What a clone without LFS leaves: the error says what to run."""
    folder = copy_of("bert", tmp_path / "model")
    (folder / name).write_text(POINTER)
    for load in (by_torch, by_export):
        refused(load, folder, rf"{name} is a pointer of Git LFS .*run git lfs pull")


def test_a_graph_that_is_a_pointer_is_told_from_damage(tmp_path: Path) -> None:
    copy_of("bert", tmp_path / "model")
    (tmp_path / "model" / "model.onnx").write_text(POINTER)
    with pytest.raises(ModelError, match=r"model\.onnx is a pointer of Git LFS .*git lfs pull"):
        Reranker(tmp_path / "model", backend="onnx")


@pytest.mark.parametrize("name", ["model-Q4_K_M.gguf", "tf_model.h5", "model.fp16.safetensors"])
def test_weights_that_torch_does_not_read_are_named(tmp_path: Path, name: str) -> None:
    """What lies there instead is told."""
    folder = copy_of("bert", tmp_path / "model")
    (folder / "model.safetensors").rename(folder / name)
    for load in (by_torch, by_export):
        refused(load, folder, rf"holds no weights that torch reads.*found: {name}")


def test_weights_for_another_library_say_what_would_help(tmp_path: Path) -> None:
    """An adapter, and a quantised checkpoint whose library is not here."""
    folder = copy_of("bert", tmp_path / "adapter")
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    edit_json(folder / "adapter_config.json", peft_type="LORA", base_model_name_or_path="org/base")
    refused(by_torch, folder, r"an adapter over org/base: merge it")
    quantised = {"quant_method": "gptq", "bits": 4}
    folder = copy_of("bert", tmp_path / "gptq", quantization_config=quantised)
    refused(by_torch, folder, r"quantised by gptq.*take the checkpoint they were made of")
