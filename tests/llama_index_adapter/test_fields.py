"""CrossEncoderPostprocessor as configuration: checked early, loaded late and once, saved whole."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import llama_index.core.postprocessor as upstream
import pytest
from llama_index.core.callbacks import CallbackManager
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import BaseNode, MetadataMode
from pydantic import ValidationError

from rerank_adapters import (
    Calibration,
    ConfigError,
    Fuse,
    ModelError,
    RerankerConfig,
    Windows,
    sharing,
)
from rerank_adapters.config import LIVE
from rerank_adapters.errors import ClosedError
from rerank_adapters.llama_index import CrossEncoderPostprocessor
from tests.exported import exported
from tests.fakes import CountingBackend, reranker_over
from tests.llama_index_adapter.examples import QUERY, nodes, outcome

# Each field that a saved configuration must bring back, at a value that is not its default.
CHANGED = {
    "model": "some/model",
    "backend": "torch",
    "device": ("cuda:0", "cuda:1"),
    "num_workers": 2,
    "num_threads": 3,
    "dtype": "bfloat16",
    "revision": "main",
    "cache_folder": "cache",
    "local_files_only": True,
    "trust_remote_code": True,
    "max_length": 77,
    "truncation": "only_second",
    "query_max_tokens": 9,
    "template": "{query} {document}",
    "answers": ("yes", "no"),
    "label": 1,
    "special_tokens": "as_text",
    "tokenizer": "huggingface",
    "prompt": "Find it",
    "max_batch_tokens": 999,
    "activation": "sigmoid",
    "max_queue_pairs": 100,
    "max_queue_tokens": 10_000,
    "when_full": "error",
    "top_n": None,
    "score_threshold": 0.25,
    "metadata_mode": MetadataMode.LLM,
    "keep_retrieval_score": True,
    "on_empty_text": "keep_last",
    "keep_unscored": True,
    "on_blank_query": "keep",
    "on_error": "keep",
    "min_score_fallback": 1,
    "calibration": Calibration(temperature=2.0, bias=-1.0, weights=("a",)),
    "windows": Windows(64, 32, "topk_mean"),
    "rerank_count": 20,
    "rest": "rescale",
    "fuse": Fuse("linear", (0.5, 2)),
    "span_key": "span",
    "return_passages": True,
}


def first_word(node: BaseNode) -> str:
    return node.get_content().split()[0]


def fields_of(postprocessor: CrossEncoderPostprocessor) -> dict[str, object]:
    names = set(type(postprocessor).model_fields) - {"callback_manager", "token"}
    return {name: getattr(postprocessor, name) for name in names}


def test_fields_are_the_configurations():
    """Every field of RerankerConfig is one here, with its default; none is left behind."""
    ours = CrossEncoderPostprocessor.model_fields
    theirs = {field.name: field.default for field in dataclasses.fields(RerankerConfig)}
    assert {name: ours[name].default for name in theirs} == theirs
    assert set(ours) - set(theirs) == {
        "callback_manager",
        "top_n",
        "score_threshold",
        "metadata_mode",
        "text_fn",
        "keep_retrieval_score",
        "keep_unscored",
        "on_blank_query",
        "on_error",
        "min_score_fallback",
        "span_key",
        "return_passages",
        "reranker",
    }


def test_drop_in_for_llama_indexs_own():
    """§5.11: it is a BaseNodePostprocessor, takes upstream's names, and runs no foreign code."""
    assert BaseNodePostprocessor in CrossEncoderPostprocessor.__mro__
    postprocessor = CrossEncoderPostprocessor(
        model="some/model",
        top_n=2,
        device=None,
        keep_retrieval_score=True,
        cache_folder="cache",
        callback_manager=None,
    )
    assert postprocessor.device == "auto"
    assert isinstance(postprocessor.callback_manager, CallbackManager)
    assert postprocessor.trust_remote_code is False


def test_repr_shows_what_was_set():
    """Not sixty defaults and a callback manager's address; a token never."""
    assert repr(CrossEncoderPostprocessor()) == "CrossEncoderPostprocessor()"
    made = CrossEncoderPostprocessor(top_n=3, device="cpu", token="secret", max_length=9)
    assert repr(made) == "CrossEncoderPostprocessor(max_length=9, device='cpu', top_n=3)"
    assert str(CrossEncoderPostprocessor(top_n=3)) == "top_n=3"


def test_class_name_is_unique():
    """§1: a saved configuration cannot be taken for one of LlamaIndex's rerankers."""
    classes = [getattr(upstream, name) for name in upstream.__all__]
    names = {it.class_name() for it in classes if issubclass(it, BaseNodePostprocessor)}
    assert "SentenceTransformerRerank" in names
    assert CrossEncoderPostprocessor.class_name() == "CrossEncoderPostprocessor"
    assert CrossEncoderPostprocessor.class_name() not in names


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"top_n": 0}, ConfigError),
        ({"top_n": "2"}, ConfigError),
        ({"top_n": True}, ConfigError),
        ({"score_threshold": float("inf")}, ConfigError),
        ({"top_n": -1}, ConfigError),
        ({"score_threshold": float("nan")}, ConfigError),
        ({"on_empty_text": "guess"}, ConfigError),
        ({"metadata_mode": "some"}, ValidationError),
        ({"backend": "tensorflow"}, ConfigError),
        ({"text_fn": 3}, ConfigError),
        ({"modle": "x"}, TypeError),
        ({"device": "gpu"}, ConfigError),
        ({"max_length": 0}, ConfigError),
        ({"backend": "torch", "dtype": "int8"}, ConfigError),
        ({"model": " "}, ConfigError),
    ],
)
def test_wrong_fields_fail_when_it_is_made(wrong: dict, error: type[Exception]):
    """§5.6: a ValueError at construction that names the field, long before any query."""
    with pytest.raises(error, match=list(wrong)[-1]) as raised:
        CrossEncoderPostprocessor(**wrong)
    assert isinstance(raised.value, ValueError)


def test_arguments_are_keywords():
    """Core's and the integration's rerankers disagree on positions: here there are none."""
    with pytest.raises(TypeError):
        CrossEncoderPostprocessor(5)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("top_n", 0, ConfigError),
        ("device", "gpu", ConfigError),
        ("num_workers", 0, ConfigError),
    ],
)
def test_assignment_is_checked_and_undone(name: str, value: object, error: type[Exception]):
    """A wrong assignment raises and leaves the field as it was; a right one is taken."""
    postprocessor = CrossEncoderPostprocessor()
    before = getattr(postprocessor, name)
    with pytest.raises(error, match=name):
        setattr(postprocessor, name, value)
    assert getattr(postprocessor, name) == before
    manager = CallbackManager([])
    postprocessor.callback_manager = manager
    assert postprocessor.callback_manager is manager


def test_assigning_a_field_changes_the_model_that_runs():
    """After `activation` is assigned, scores are those of the new configuration."""
    postprocessor = CrossEncoderPostprocessor(model=str(exported("bert")), backend="onnx")
    raw = outcome(postprocessor.postprocess_nodes(nodes(), query_str=QUERY))
    postprocessor.activation = "sigmoid"
    squashed = outcome(postprocessor.postprocess_nodes(nodes(), query_str=QUERY))
    assert [name for name, _ in squashed] == [name for name, _ in raw]
    assert all(0 < score < 1 for _, score in squashed)
    assert not all(0 < score < 1 for _, score in raw)


def test_a_ready_reranker_comes_without_configuration():
    """Either reranker= or configuration fields: both is a ConfigError naming the fields."""
    with reranker_over(CountingBackend()) as reranker:
        with pytest.raises(ConfigError, match="dtype"):
            CrossEncoderPostprocessor(reranker=reranker, dtype="float32")
        postprocessor = CrossEncoderPostprocessor(reranker=reranker, top_n=3)
        with pytest.raises(ConfigError, match="model"):
            postprocessor.model = "other"
        assert len(postprocessor.postprocess_nodes(nodes(), query_str=QUERY)) == 3
        postprocessor.close()
        assert len(reranker.rerank("q", ["a ready reranker stays open"])) == 1


ROUND_TRIPS: dict[str, Callable[[CrossEncoderPostprocessor], CrossEncoderPostprocessor]] = {
    "dict": lambda it: CrossEncoderPostprocessor.from_dict(it.to_dict()),
    "json": lambda it: CrossEncoderPostprocessor.from_json(it.to_json()),
    "pickle": lambda it: pickle.loads(pickle.dumps(it)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "model_copy": lambda it: it.model_copy(),
}


@pytest.mark.parametrize("way", ROUND_TRIPS)
def test_round_trips_keep_every_field(way: str):
    """§5.8: what comes back has equal fields and loads an equal model; it is small."""
    postprocessor = CrossEncoderPostprocessor(**CHANGED)
    back = ROUND_TRIPS[way](postprocessor)
    assert fields_of(back) == fields_of(postprocessor)
    assert fields_of(back) == fields_of(CrossEncoderPostprocessor()) | CHANGED
    assert back._prepared() == postprocessor._prepared()
    assert len(pickle.dumps(postprocessor)) < 10_000
    assert len(postprocessor.to_json()) < 10_000


@pytest.mark.parametrize("way", ROUND_TRIPS)
def test_weights_never_travel(way: str):
    """§5.8: a copy of a postprocessor in use is small, and scores the same."""
    postprocessor = CrossEncoderPostprocessor(model=str(exported("bert")), backend="onnx")
    before = outcome(postprocessor.postprocess_nodes(nodes(), query_str=QUERY))
    assert len(pickle.dumps(postprocessor)) < 10_000
    back = ROUND_TRIPS[way](postprocessor)
    assert outcome(back.postprocess_nodes(nodes(), query_str=QUERY)) == before


@pytest.mark.parametrize("show", [repr, str, pickle.dumps, lambda it: it.to_json()])
def test_the_token_is_never_shown(show: Callable[[object], object]):
    """§1 traps: no secret in repr, dump or pickle, nor in what an error says."""
    postprocessor = CrossEncoderPostprocessor(token="hf_secret")
    assert postprocessor._prepared().config.token == "hf_secret"
    assert "hf_secret" not in str(show(postprocessor))
    for wrong in ({"top_n": 0}, {"metadata_mode": "some"}, {"bogus": 1}):
        with pytest.raises(ValueError, match=next(iter(wrong))) as raised:
            CrossEncoderPostprocessor(token="hf_secret", **wrong)
        assert "hf_secret" not in str(raised.value)


def test_it_has_a_json_schema():
    """As LlamaIndex's own postprocessors: of what a saved configuration holds, not of code."""
    schema = CrossEncoderPostprocessor.model_json_schema()
    wanted = set(CHANGED) | {"callback_manager", "class_name", "token", "file_name", *LIVE}
    wanted.add("remote")  # a server has no model's options beside it
    wanted.add("early_exit")  # which goes with no windows
    assert set(schema["properties"]) == wanted
    assert schema["properties"]["class_name"]["default"] == "CrossEncoderPostprocessor"


def test_text_fn_does_not_vanish():
    """A pickle keeps a function by name or fails; a saved configuration asks for it again."""
    postprocessor = CrossEncoderPostprocessor(text_fn=first_word)
    assert pickle.loads(pickle.dumps(postprocessor)).text_fn is first_word
    assert copy.deepcopy(postprocessor).text_fn is first_word
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(CrossEncoderPostprocessor(text_fn=lambda node: node.get_content()))
    saved = json.loads(postprocessor.to_json())
    assert "first_word" in saved["text_fn"]
    with pytest.raises(ConfigError, match="text_fn"):
        CrossEncoderPostprocessor.from_dict(saved)
    assert CrossEncoderPostprocessor.from_dict(saved, text_fn=first_word).text_fn is first_word


def test_a_ready_reranker_does_not_vanish():
    """Copies share it, a pickle refuses, a saved configuration asks for it again."""
    with reranker_over(CountingBackend()) as reranker:
        postprocessor = CrossEncoderPostprocessor(reranker=reranker)
        assert copy.deepcopy(postprocessor).reranker is reranker
        with pytest.raises(ConfigError, match="reranker"):
            pickle.dumps(postprocessor)
        saved = postprocessor.to_dict()
        json.dumps(saved)
        with pytest.raises(ConfigError, match="reranker"):
            CrossEncoderPostprocessor.from_dict(saved)
        again = CrossEncoderPostprocessor.from_dict(saved, reranker=reranker)
        assert again.reranker is reranker


def test_callbacks_stay_with_their_process():
    """A deep copy keeps the callback manager by reference; a pickle has none, and still works."""
    manager = CallbackManager([])
    manager.lock = threading.Lock()  # as handlers of tracing libraries hold
    postprocessor = CrossEncoderPostprocessor(callback_manager=manager)
    assert copy.deepcopy(postprocessor).callback_manager is manager
    back = pickle.loads(pickle.dumps(postprocessor))
    assert isinstance(back.callback_manager, CallbackManager)
    assert back.callback_manager is not manager
    assert postprocessor.callback_manager is manager


def test_loaded_once_under_sixteen_threads(monkeypatch: pytest.MonkeyPatch):
    """§5.8: sixteen first calls, on two postprocessors of equal configuration, load one model."""
    sharing.close_all()
    loads = []
    start = sharing.start
    monkeypatch.setattr(sharing, "start", lambda *parts: loads.append(parts) or start(*parts))
    fields = {"model": str(exported("bert")), "backend": "onnx", "max_length": 41}
    two = [CrossEncoderPostprocessor(**fields), CrossEncoderPostprocessor(**fields)]
    assert loads == [], "nothing is loaded before the first query"
    together = threading.Barrier(16)

    def call(number: int) -> list[tuple[str, float | None]]:
        together.wait()
        return outcome(two[number % 2].postprocess_nodes(nodes(), query_str=QUERY))

    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(call, range(16)))
    assert len(loads) == 1
    assert all(result == results[0] for result in results)


def test_no_file_is_touched_before_the_first_query(tmp_path: Path):
    """§5.8: a folder that is not there is an error of the first query, not of construction."""
    postprocessor = CrossEncoderPostprocessor(model=str(tmp_path / "absent"))
    assert postprocessor.postprocess_nodes([], query_str=QUERY) == []
    with pytest.raises(ModelError):
        postprocessor.postprocess_nodes(nodes(), query_str=QUERY)


def test_closing_lets_go_of_the_model():
    """`with` and close(): afterwards a call is a ClosedError."""
    with CrossEncoderPostprocessor(model=str(exported("bert")), backend="onnx") as postprocessor:
        postprocessor.postprocess_nodes(nodes(), query_str=QUERY)
    with pytest.raises(ClosedError):
        postprocessor.postprocess_nodes(nodes(), query_str=QUERY)
    postprocessor.callback_manager = CallbackManager([])  # as an engine does that is built later
    with pytest.raises(ClosedError):
        postprocessor.postprocess_nodes(nodes(), query_str=QUERY)


def test_the_onnx_backend_needs_no_torch():
    """§5.8, §5.9: importing and constructing load no runtime; reranking on ONNX loads no torch."""
    code = f"""
import sys
from llama_index.core.schema import NodeWithScore, TextNode
from rerank_adapters.llama_index import CrossEncoderPostprocessor
runtimes = {{"torch", "onnxruntime", "transformers", "sentence_transformers"}}
postprocessor = CrossEncoderPostprocessor(model={str(exported("bert"))!r}, backend="onnx")
assert not runtimes & set(sys.modules), runtimes & set(sys.modules)
nodes = [NodeWithScore(node=TextNode(text="a text"))]
assert postprocessor.postprocess_nodes(nodes, query_str="a query")[0].score is not None
assert runtimes & set(sys.modules) == {{"onnxruntime"}}
"""
    subprocess.run([sys.executable, "-c", code], check=True)
