"""The public surface, as literal tables: a difference here is a decision, not an accident."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import types
import typing
from importlib.resources import files

import pytest

import rerank_adapters
from rerank_adapters import RankedDocument, Ranking, Reranker, RerankerConfig
from rerank_adapters.protocols import Backend, ModelFamily, Ranker, Scorer, TokenCounter
from tests.fakes import ConstantBackend, FirstLogitFamily, LookupScorer, reranker_over

NAMES = {
    "rerank_adapters": [
        "BackendError",
        "Calibration",
        "Cascade",
        "ClosedError",
        "ConfigError",
        "DocumentTokens",
        "EarlyExit",
        "Fuse",
        "InputError",
        "MissingDependencyError",
        "ModelError",
        "OverloadedError",
        "Paragraphs",
        "RankedDocument",
        "Ranking",
        "Reliability",
        "RemoteConfig",
        "RerankError",
        "Reranker",
        "RerankerConfig",
        "ScoreCache",
        "Threshold",
        "Windows",
        "__version__",
    ],
    "rerank_adapters.langchain": [
        "CrossEncoderCompressor",
        "LangChainCrossEncoder",
        "RerankingMiddleware",
        "RerankingRetriever",
    ],
    "rerank_adapters.llama_index": ["CrossEncoderPostprocessor"],
    "rerank_adapters.haystack": ["CrossEncoderRanker"],
    "rerank_adapters.cherche": ["CrossEncoder"],
    "rerank_adapters.ray": ["Job", "rerank_dataset", "rerank_files"],
    "rerank_adapters.ray.serve": ["Limits", "Server", "app"],
    "rerank_adapters.fastembed": ["Device", "ModelSource", "TextCrossEncoder"],
}
NEIGHBOURS = {
    "rerank_adapters.haystack": "haystack",
    "rerank_adapters.cherche": "cherche",
    "rerank_adapters.ray": "ray",
    "rerank_adapters.ray.serve": "ray",
    "rerank_adapters.cli.bulk": "ray",
    "rerank_adapters.backends.openvino": "openvino",
}
"""Modules whose library the tests' own environment lacks: .ci/neighbours.txt."""

OPTIONAL = {"rerank_adapters.tokenization.accelerators.nanotoken": "nanotoken"}
"""Modules whose library is too young for some of the environments that the tests run in."""

# Positional parameters, then "*", then keyword-only ones with their defaults.
SIGNATURES = {
    "score": "query, documents, *, timeout=None",
    "score_pairs": "pairs, *, timeout=None",
    "rerank": "query, documents, *, top_n=None, score_threshold=None, prompt=None, timeout=None",
    "rerank_many": (
        "requests, *, top_n=None, score_threshold=None, timeout=None, return_exceptions=False, "
        "progress=False, on_progress=None"
    ),
    "rerank_iter": (
        "requests, *, top_n=None, score_threshold=None, progress=False, on_progress=None"
    ),
    "submit": "query, documents, *, top_n=None, score_threshold=None, timeout=None",
    "ascore": "query, documents, *, timeout=None",
    "ascore_pairs": "pairs, *, timeout=None",
    "arerank": "query, documents, *, top_n=None, score_threshold=None, prompt=None, timeout=None",
    "arerank_many": (
        "requests, *, top_n=None, score_threshold=None, timeout=None, return_exceptions=False, "
        "progress=False, on_progress=None"
    ),
    "calibrate": "pairs, labels, *, timeout=None",
    "count_tokens": "texts",
    "warm": "",
    "awarm": "",
    "info": "",
    "stats": "",
    "close": "",
    "aclose": "",
    "from_config": "config",
    "remote": "url, *, dialect='auto', model=None, key=None, key_variable=None",
    "over": ("scorer, *, on_empty_text='keep_last', rerank_count=None, rest='drop', fuse=None"),
}

CONFIG = {
    "model": "default",
    "revision": None,
    "file_name": None,
    "cache_folder": None,
    "local_files_only": False,
    "token": None,
    "trust_remote_code": False,
    "prompt": None,
    "template": None,
    "answers": None,
    "label": None,
    "max_length": None,
    "truncation": "longest_first",
    "query_max_tokens": None,
    "windows": None,
    "special_tokens": None,
    "activation": "default",
    "calibration": None,
    "on_empty_text": "keep_last",
    "rerank_count": None,
    "rest": "drop",
    "fuse": None,
    "early_exit": None,
    "backend": "auto",
    "device": "auto",
    "dtype": "auto",
    "num_workers": None,
    "num_threads": None,
    "max_batch_tokens": None,
    "tokenizer": "auto",
    "cache": None,
    "document_tokens": None,
    "remote": None,
    "max_queue_pairs": None,
    "max_queue_tokens": None,
    "when_full": "block",
}


def public(module: str) -> types.ModuleType:
    """The *module*, or a skip where the library that it is for is not installed."""
    if (library := OPTIONAL.get(module)) is not None:
        pytest.importorskip(library, reason=f"{library} is not installed")
    if (library := NEIGHBOURS.get(module)) is not None:
        pytest.importorskip(library, reason=f"{library} is not installed: make test-neighbours")
    return importlib.import_module(module)


@pytest.mark.parametrize("module", NAMES)
def test_public_names_are_these(module: str):
    """`__all__` is the table above, and each name is there to be imported."""
    loaded = public(module)
    assert sorted(loaded.__all__) == NAMES[module]
    assert all(getattr(loaded, name) is not None for name in NAMES[module])


def test_dir_lists_the_public_names_and_unknown_ones_are_attribute_errors():
    """Lazy loading looks like an ordinary module."""
    assert dir(rerank_adapters) == NAMES["rerank_adapters"]
    with pytest.raises(AttributeError, match="'rerank_adapters' has no attribute 'Rerank'"):
        rerank_adapters.Rerank  # noqa: B018 (the access is the test)


def _written(function: object) -> str:
    """A signature as SIGNATURES writes it, without types and self."""
    parameters = [it for it in inspect.signature(function).parameters.values() if it.name != "self"]
    assert all(it.kind is not it.VAR_KEYWORD for it in parameters)
    bare = [it.replace(annotation=it.empty) for it in parameters]
    return str(inspect.Signature(bare)).strip("()")


def test_signatures_are_these():
    """Every method takes what the table says, options by keyword alone."""
    assert {name: _written(getattr(Reranker, name)) for name in SIGNATURES} == SIGNATURES
    methods = {name for name, _ in inspect.getmembers(Reranker, callable) if name[0] != "_"}
    assert methods == {*SIGNATURES, "from_pretrained"}
    assert _written(Reranker.from_pretrained) == _written(Reranker)
    options = ", ".join(f"{name}={value!r}" for name, value in CONFIG.items() if name != "model")
    assert _written(Reranker) == f"model='default', *, {options}"


def test_configuration_fields_and_defaults_are_these():
    """The options of `from_pretrained`, in the order of the documentation."""
    fields = {field.name: field.default for field in dataclasses.fields(RerankerConfig)}
    assert fields == CONFIG
    assert list(fields) == list(CONFIG)


UNKNOWN = [
    lambda: Reranker("default", batch_size=8),
    lambda: Reranker.from_pretrained("default", batch_size=8),
    lambda: Reranker.from_pretrained("default", "onnx"),
    lambda: RerankerConfig("default"),
    lambda: RerankerConfig(normalize=True),
    lambda: reranker_over(ConstantBackend()).rerank("q", ["a"], 3),
    lambda: reranker_over(ConstantBackend()).rerank("q", ["a"], top_k=3),
    lambda: reranker_over(ConstantBackend()).score("q", ["a"], batch_size=8),
]


@pytest.mark.parametrize("call", UNKNOWN)
def test_unknown_and_misplaced_arguments_raise(call: typing.Callable[[], object]):
    """Law 7: a misspelt option is a TypeError, and options are not positional."""
    with pytest.raises(TypeError):
        call()


@pytest.mark.parametrize(
    ("adapter", "module"),
    [
        ("CrossEncoderCompressor", "rerank_adapters.langchain"),
        ("CrossEncoderPostprocessor", "rerank_adapters.llama_index"),
    ],
)
def test_adapters_refuse_unknown_fields(adapter: str, module: str):
    """Law 7: the frameworks' own base classes would swallow them."""
    made = getattr(importlib.import_module(module), adapter)
    with pytest.raises((TypeError, ValueError), match="top_k"):
        made(top_k=3)


def test_real_things_and_fakes_fit_the_seams():
    """Ranker and TokenCounter: Reranker; the others by their fakes, each fitting its own alone."""
    with reranker_over(ConstantBackend()) as reranker:
        assert isinstance(reranker, Ranker)
        assert isinstance(reranker, TokenCounter)
        assert not isinstance(reranker, Scorer)
    assert isinstance(LookupScorer({}), Scorer)
    assert isinstance(FirstLogitFamily(), ModelFamily)
    assert isinstance(ConstantBackend(), Backend)
    assert not isinstance(LookupScorer({}), Ranker)


def test_values_are_frozen():
    """A document and a ranking cannot be changed after the fact."""
    document = RankedDocument(index=0, score=1.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        document.score = 2.0
    with pytest.raises(TypeError):
        Ranking([document])[0] = document
    with pytest.raises(dataclasses.FrozenInstanceError):
        RerankerConfig().model = "other"


def test_the_package_is_typed_and_versioned():
    """`py.typed` travels with it, and the version is a plain release number."""
    assert files("rerank_adapters").joinpath("py.typed").is_file()
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", rerank_adapters.__version__)


@pytest.mark.parametrize("name", [*SIGNATURES, "from_pretrained"])
def test_every_public_method_says_what_it_does_and_is_annotated(name: str):
    """A first line that ends a sentence, and a type on every parameter."""
    method = getattr(Reranker, name)
    assert (inspect.getdoc(method) or "").splitlines()[0].rstrip().endswith((".", ":"))
    hints = inspect.get_annotations(inspect.unwrap(getattr(method, "__func__", method)))
    parameters = [it for it in inspect.signature(method).parameters if it != "self"]
    assert {*parameters, "return"} <= set(hints)


def test_each_option_is_explained_once_and_shown_everywhere():
    """One text per option: in three docstrings, in both adapters' schemas; grouped by purpose."""
    from rerank_adapters.config import OPTIONS
    from rerank_adapters.langchain import (
        CrossEncoderCompressor,
        LangChainCrossEncoder,
        RerankingRetriever,
    )
    from rerank_adapters.llama_index import CrossEncoderPostprocessor

    assert list(OPTIONS) == list(CONFIG)
    groups = [option.group for option in OPTIONS.values()]
    assert list(dict.fromkeys(groups)) == ["model", "text", "phases", "runtime", "queue"]
    assert groups == sorted(groups, key=["model", "text", "phases", "runtime", "queue"].index)
    for documented in (RerankerConfig, Reranker.__init__, Reranker.from_pretrained):
        assert all(f"`{name}`: {it.text}" in documented.__doc__ for name, it in OPTIONS.items())
    adapters = (
        CrossEncoderCompressor,
        CrossEncoderPostprocessor,
        LangChainCrossEncoder,
        RerankingRetriever,
    )
    for adapter in adapters:
        properties = adapter.model_json_schema()["properties"]
        assert {name for name, it in properties.items() if not it.get("description")} == set()
        for name in OPTIONS:
            assert properties[name]["description"] == OPTIONS[name].text
        shown = str(inspect.signature(adapter))
        assert "Annotated" not in shown
        assert "max_length: int | None = None" in shown
