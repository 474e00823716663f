"""Every class of error: what calls raise it, and in which words.

InputError and ConfigError have tables of their own in test_reranker.py and test_config.py.
"""

from __future__ import annotations

import json
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rerank_adapters import (
    BackendError,
    ClosedError,
    ConfigError,
    InputError,
    MissingDependencyError,
    ModelError,
    OverloadedError,
    Reranker,
    RerankError,
)
from tests.checkpoints import build
from tests.exported import exported
from tests.fakes import ConstantBackend, HeldBackend, reranker_over

ROOT = Path(__file__).parents[1]

TREE = [
    (InputError, (RerankError, ValueError)),
    (ConfigError, (RerankError, ValueError)),
    (MissingDependencyError, (RerankError, ImportError)),
    (ModelError, (RerankError,)),
    (BackendError, (RerankError, RuntimeError)),
    (OverloadedError, (RerankError, RuntimeError)),
    (ClosedError, (RerankError, RuntimeError)),
]


def test_the_tree_is_the_documented_one():
    """Each class has its bases, and there is no other."""
    assert [(error, error.__bases__) for error, _ in TREE] == TREE
    assert set(RerankError.__subclasses__()) == {error for error, _ in TREE}
    assert RerankError.__bases__ == (Exception,)


@pytest.mark.parametrize(
    "error",
    [
        InputError("query must not be blank: got ''"),
        MissingDependencyError("torch", "torch"),
        OverloadedError("the queue is full", retry_after=1.5),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_survive_pickle(error: RerankError):
    """Between processes an error keeps its class, its words and its fields."""
    returned = pickle.loads(pickle.dumps(error))
    assert type(returned) is type(error)
    assert str(returned) == str(error)
    assert vars(returned) == vars(error)


def test_a_missing_library_names_the_extra():
    """The words of the error are the command that cures it."""
    error = MissingDependencyError("llama_index.core", "llama-index")
    assert str(error) == (
        "`llama_index.core` is not installed: pip install 'rerank-adapters[llama-index]'"
    )
    assert (error.module, error.extra) == ("llama_index.core", "llama-index")


def _edited(folder: Path, **changes: object) -> str:
    """The tiny BERT in *folder*, its config.json changed."""
    shutil.copytree(build("bert"), folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | changes), "utf-8")
    return str(folder)


def _without(folder: Path, name: str) -> str:
    """The tiny BERT's ONNX export in *folder*, less one of its files."""
    shutil.copytree(exported("bert"), folder)
    (folder / name).unlink()
    return str(folder)


def _three_labels(folder: Path) -> None:
    labels = {str(number): f"LABEL_{number}" for number in range(3)}
    Reranker.from_pretrained(_edited(folder, id2label=labels), backend="torch", device="cpu")


def _another_head(folder: Path) -> None:
    changed = _edited(folder, architectures=["BertForMaskedLM"])
    Reranker.from_pretrained(changed, backend="torch", device="cpu")


def _odd_activation(folder: Path) -> None:
    stored = {"activation_fn": "custom.module.Tanh", "version": "4.1.0"}
    changed = _edited(folder, sentence_transformers=stored)
    Reranker.from_pretrained(changed, backend="torch", device="cpu")


def _no_graph(folder: Path) -> None:
    Reranker.from_pretrained(str(build("bert")), backend="onnx", device="cpu")


def _no_config(folder: Path) -> None:
    Reranker.from_pretrained(_without(folder, "config.json"), backend="onnx", device="cpu")


def _no_folder(folder: Path) -> None:
    Reranker.from_pretrained(str(folder))


def _bfloat16_on_onnx(folder: Path) -> None:
    Reranker.from_pretrained(str(exported("bert")), backend="onnx", dtype="bfloat16")


def _softmax_of_one_label(folder: Path) -> None:
    Reranker.from_pretrained(str(exported("bert")), backend="onnx", activation="softmax")


def _wrong_width(folder: Path) -> None:
    with reranker_over(ConstantBackend(labels=3)) as reranker:
        reranker.score("q", ["a"])


def _not_a_number(folder: Path) -> None:
    with reranker_over(ConstantBackend(float("nan"))) as reranker:
        reranker.rerank("q", ["a"])


def _closed(folder: Path) -> None:
    reranker = reranker_over(ConstantBackend())
    reranker.close()
    reranker.rerank("q", ["a"])


TABLE: list[tuple[Callable[[Path], None], type[RerankError], str]] = [
    (
        _three_labels,
        ModelError,
        (
            "expected a model with 1 or 2 labels: got 3 (LABEL_0, LABEL_1, LABEL_2); pass label= "
            'with the one that means "relevant", such as label="entailment" for an NLI model'
        ),
    ),
    (
        _another_head,
        ModelError,
        (
            "expected a reranker (*ForSequenceClassification, *ForCausalLM, or the modules.json of "
            "a CrossEncoder): {folder} has architectures ['BertForMaskedLM']"
        ),
    ),
    (
        _odd_activation,
        ModelError,
        (
            "the checkpoint's activation 'custom.module.Tanh' is not one for 1 label that is known "
            "here: pass activation='sigmoid' or activation='identity'"
        ),
    ),
    (
        _no_graph,
        ModelError,
        (
            'no ONNX file model.onnx for dtype="auto" in the checkpoint (found: none): pass '
            'backend="torch"; rerank-adapters export makes a file of any dtype'
        ),
    ),
    (_no_config, ModelError, "{folder}/config.json is missing or empty: it names the model"),
    (_no_folder, ModelError, "model must be a folder or a hub id: no folder at '{folder}'"),
    (
        _bfloat16_on_onnx,
        ConfigError,
        'dtype "bfloat16" needs backend "openvino" or "torch": got backend="onnx"',
    ),
    (
        _softmax_of_one_label,
        ConfigError,
        (
            "activation must be 'sigmoid' or 'identity' for a model with 1 label: got 'softmax', "
            "which makes every score 1"
        ),
    ),
    (
        _wrong_width,
        BackendError,
        (
            "the model returned logits of shape (1, 3) for 1 pairs and 1 label(s): its weights and "
            "config.json disagree"
        ),
    ),
    (_not_a_number, BackendError, "the score of pair 0 must be finite: got nan"),
    (_closed, ClosedError, "the reranker is closed: load it again"),
]


@pytest.mark.parametrize(
    ("call", "error", "message"), TABLE, ids=lambda it: getattr(it, "__name__", "words")
)
def test_each_failure_has_its_class_and_its_words(
    tmp_path: Path, call: Callable[[Path], None], error: type[RerankError], message: str
):
    """Law 7: the class says whose fault it is, the message what to do."""
    folder = tmp_path / "checkpoint"
    with pytest.raises(error) as caught:
        call(folder)
    assert type(caught.value) is error
    assert str(caught.value) == message.format(folder=folder)


WRONG_KINDS = [
    ("config.json", {"max_position_embeddings": "many"}, "'many'"),
    ("rerank_adapters.json", {"labels": "x"}, "'x'"),
    ("tokenizer_config.json", {"model_max_length": "many"}, "'many'"),
    ("tokenizer_config.json", {"pad_token": 3}, "'int'"),
    ("tokenizer_config.json", {"truncation_side": "middle"}, "'left' or 'right': got 'middle'"),
]


@pytest.mark.parametrize(("file", "change", "words"), WRONG_KINDS)
def test_a_value_of_the_wrong_kind_in_a_checkpoint_is_a_model_error(
    tmp_path: Path, file: str, change: dict[str, object], words: str
):
    """JSON that parses and means nothing is refused with the folder and the value."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(exported("bert"), folder)
    if file == "config.json":  # else the export's own manifest answers, and it is not asked
        (folder / "rerank_adapters.json").unlink()
    content = json.loads((folder / file).read_text("utf-8"))
    (folder / file).write_text(json.dumps(content | change), "utf-8")
    with pytest.raises(ModelError) as caught:
        Reranker.from_pretrained(str(folder), backend="onnx", device="cpu")
    assert str(folder) in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize("backend", ["onnx", "torch"])
def test_a_checkpoint_without_a_tokenizer_is_refused(tmp_path: Path, backend: str):
    """Law 10: transformers would make up a vocabulary of special tokens, and score with it."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(exported("bert") if backend == "onnx" else build("bert"), folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="tokenizer"):
        Reranker.from_pretrained(str(folder), backend=backend, device="cpu")


def test_a_full_queue_says_how_full_and_when_to_retry():
    """OverloadedError holds the counts, the limits and an estimate in seconds."""
    backend = HeldBackend()
    with reranker_over(backend, max_queue_pairs=1, when_full="error") as reranker:
        running = reranker.submit("q", ["a"])
        assert backend.entered.wait(60)
        waiting = reranker.submit("q", ["b"])
        with pytest.raises(OverloadedError) as caught:
            reranker.submit("q", ["c"])
        backend.release.set()
        assert len(running.result()) == len(waiting.result()) == 1
    words = (
        r"the queue is full: it holds 1 pairs of 5 tokens, the request brings 1 pairs, "
        r"max_queue_pairs is 1 and max_queue_tokens None: retry in about \d+\.\d\d s"
    )
    assert re.fullmatch(words, str(caught.value))
    assert caught.value.retry_after >= 0


ABSENT = [
    ("torch", 'Reranker.from_pretrained({plain!r}, backend="torch")', "torch"),
    ("langchain_core", "import rerank_adapters.langchain", "langchain"),
    ("llama_index.core", "import rerank_adapters.llama_index", "llama-index"),
]


@pytest.mark.parametrize(("module", "use", "extra"), ABSENT)
def test_a_missing_library_is_named_with_the_extra_that_brings_it(
    module: str, use: str, extra: str
):
    """What an optional part needs and does not find is a MissingDependencyError at first use."""
    use = use.format(plain=str(build("bert")))
    code = f"""
import sys
sys.modules[{module!r}] = None
from rerank_adapters import MissingDependencyError, Reranker
try:
    {use}
except MissingDependencyError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    wanted = f"`{module}` is not installed: pip install 'rerank-adapters[{extra}]'"
    assert done.stdout.strip() == wanted, done.stderr
