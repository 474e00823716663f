"""One class for one mistake: the core, LangChain's adapters and LlamaIndex's raise the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from pydantic import BaseModel, SecretStr

from rerank_adapters import ConfigError, InputError, Reranker, RerankerConfig
from rerank_adapters.adapter_fields import RerankerFields
from rerank_adapters.langchain import (
    CrossEncoderCompressor,
    LangChainCrossEncoder,
    RerankingRetriever,
)
from rerank_adapters.llama_index import CrossEncoderPostprocessor
from tests.langchain_adapter.samples import QUERY, ListRetriever, documents

CONFIGURATION: list[dict[str, Any]] = [
    {"num_threads": 0},
    {"num_threads": True},
    {"num_threads": 2.0},
    {"num_workers": 5000},
    {"max_length": "64"},
    {"max_batch_tokens": -1},
    {"max_queue_pairs": 0},
    {"dtype": "fp16"},
    {"backend": "tensorflow"},
    {"device": "gpu"},
    {"device": []},
    {"activation": "relu"},
    {"truncation": "first"},
    {"when_full": "drop"},
    {"model": " "},
    {"model": None},
    {"revision": ""},
    {"revision": 3},
    {"prompt": ["x"]},
    {"file_name": ""},
    {"token": 3},
    {"local_files_only": "yes"},
    {"trust_remote_code": 1},
    {"dtype": "int8", "backend": "torch"},
    {"file_name": "a.onnx", "backend": "torch"},
]

SELECTION: list[dict[str, Any]] = [
    {"top_n": 0},
    {"top_n": -1},
    {"top_n": "2"},
    {"top_n": 2.0},
    {"top_n": True},
    {"score_threshold": float("nan")},
    {"score_threshold": "0.5"},
    {"score_threshold": True},
]
"""Of a call in the core and in LangChain; of a field in every adapter that has them."""

FIELDS: list[dict[str, Any]] = [
    *SELECTION,
    {"score_threshold": float("inf")},  # JSON, which adapters are saved as, has none
    {"on_empty_text": "guess"},
    {"text_fn": 3},
]


def retriever(**fields: Any) -> RerankingRetriever:
    return RerankingRetriever(base_retriever=ListRetriever(found=documents()), **fields)


def saved(adapter: BaseModel) -> tuple[dict[str, Any], Any]:
    """The fields, and the model that is meant; callbacks are each adapter's own."""
    return adapter.model_dump(exclude={"callback_manager"}), adapter._prepared().config


RANKING: list[Callable[..., Any]] = [CrossEncoderCompressor, retriever, CrossEncoderPostprocessor]
ADAPTERS: list[Callable[..., Any]] = [*RANKING, LangChainCrossEncoder]


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("wrong", CONFIGURATION, ids=str)
def test_a_wrong_configuration(adapter: Callable[..., Any], wrong: dict[str, Any]) -> None:
    """The same class and the same words, when it is made, assigned, copied and read."""
    with pytest.raises(ConfigError) as core:
        RerankerConfig(**wrong)
    made = adapter()
    name, value = next(iter(wrong.items()))
    ways: list[Callable[[], Any]] = [
        lambda: adapter(**wrong),
        lambda: made.model_copy(update=wrong),
    ]
    if len(wrong) == 1:
        ways.append(lambda: setattr(made, name, value))
    for way in ways:
        with pytest.raises(ConfigError) as caught:
            way()
        assert type(caught.value) is ConfigError
        assert str(caught.value) == str(core.value)
    assert saved(made) == saved(adapter())


@pytest.mark.parametrize("adapter", RANKING)
@pytest.mark.parametrize("wrong", FIELDS, ids=str)
def test_a_wrong_field_of_a_ranking(adapter: Callable[..., Any], wrong: dict[str, Any]) -> None:
    """ConfigError, by the field's name, when it is made, assigned and copied."""
    made = adapter()
    ((name, value),) = wrong.items()
    ways: list[Callable[[], Any]] = [
        lambda: adapter(**wrong),
        lambda: setattr(made, name, value),
        lambda: made.model_copy(update=wrong),
    ]
    for way in ways:
        with pytest.raises(ConfigError, match=f"^{name} must be"):
            way()
    assert saved(made) == saved(adapter())


@pytest.mark.parametrize("wrong", SELECTION, ids=str)
async def test_a_wrong_argument_of_a_call(ready: Reranker, wrong: dict[str, Any]) -> None:
    """InputError, in the same words from the core and through LangChain."""
    with pytest.raises(InputError) as core:
        ready.rerank(QUERY, ["text"], **wrong)
    compressor = CrossEncoderCompressor(reranker=ready)
    with pytest.raises(InputError) as caught:
        compressor.compress_documents(documents(), QUERY, **wrong)
    assert str(caught.value) == str(core.value)
    with pytest.raises(InputError) as caught:
        await compressor.acompress_documents(documents(), QUERY, **wrong)
    assert str(caught.value) == str(core.value)


def test_a_wrong_query_or_document(ready: Reranker) -> None:
    """InputError from all of them."""
    compressor = CrossEncoderCompressor(reranker=ready)
    encoder = LangChainCrossEncoder(reranker=ready)
    postprocessor = CrossEncoderPostprocessor(reranker=ready)
    nodes = [NodeWithScore(node=TextNode(text="text"))]
    bare: Any = TextNode(text="bare")
    number: Any = 3
    calls: list[Callable[[], Any]] = [
        lambda: ready.rerank(" ", ["text"]),
        lambda: compressor.compress_documents([Document("text")], " "),
        lambda: encoder.score([(" ", "text")]),
        lambda: postprocessor.postprocess_nodes(nodes, QueryBundle(" ")),
        lambda: ready.rerank(QUERY, ["text", number]),
        lambda: compressor.compress_documents([Document("text"), number], QUERY),
        lambda: encoder.score([(QUERY, number)]),
        lambda: postprocessor.postprocess_nodes([*nodes, bare], query_str=QUERY),
        lambda: compressor.compress_documents(number, QUERY),
        lambda: encoder.score(number),
    ]
    for call in calls:
        with pytest.raises(InputError):
            call()


@pytest.mark.parametrize("adapter", [CrossEncoderCompressor, CrossEncoderPostprocessor])
def test_what_is_read_is_judged_alike(adapter: type[BaseModel]) -> None:
    """model_validate of a dict and of JSON: our own errors, TypeError for no field of ours."""
    for wrong, error in (
        ({"num_threads": 0}, ConfigError),
        ({"top_n": 0}, ConfigError),
        ({"top_k": 3}, TypeError),
    ):
        with pytest.raises(error, match=next(iter(wrong))):
            adapter.model_validate(wrong)
        with pytest.raises(error, match=next(iter(wrong))):
            adapter.model_validate_json(str(wrong).replace("'", '"'))
    made = adapter.model_validate({"num_threads": 3, "device": ["cpu", "cpu"]})
    assert saved(made) == saved(adapter(num_threads=3, device=("cpu", "cpu")))
    assert adapter.model_validate(made) is made


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_unknown_fields_are_type_errors_everywhere(adapter: Callable[..., Any]) -> None:
    """As in the core, whose signature says so; all name the field, ours are ValueErrors too."""
    for name in ("top_k", "bogus"):
        with pytest.raises(TypeError, match=name):
            RerankerConfig(**{name: 3})
        with pytest.raises(TypeError, match=name) as caught:
            adapter(**{name: 3})
        assert isinstance(caught.value, ConfigError)


@pytest.mark.parametrize(
    "adapter",
    [
        RerankerFields,
        CrossEncoderCompressor,
        RerankingRetriever,
        LangChainCrossEncoder,
        CrossEncoderPostprocessor,
    ],
)
def test_fields_are_those_of_the_configuration(adapter: type[BaseModel]) -> None:
    """Names in order, types and defaults, written out again for type checkers and no other way."""
    theirs = RerankerConfig.__dataclass_fields__
    ours = {name: field for name, field in adapter.model_fields.items() if name in theirs}
    assert list(ours) == list(theirs)
    assert {name: field.default for name, field in ours.items()} == {
        name: field.default for name, field in theirs.items()
    }
    types = {name: hint for name, hint in get_type_hints(adapter).items() if name in theirs}
    # A secret, and what a schema shows of values that are alive.
    shown = {"token": SecretStr, "cache": dict[str, Any], "document_tokens": str}
    shown["remote"] = dict[str, Any]  # without its key
    optional = {name: kind | None for name, kind in shown.items()}
    assert types == get_type_hints(RerankerConfig) | optional


def test_fields_hold_what_the_configuration_makes_of_them() -> None:
    """However they were given: a Path, None for a device, a list, NumPy's numbers."""
    import numpy as np

    made = CrossEncoderCompressor(
        model=Path("a/b"),
        cache_folder=Path("c"),
        device=None,
        top_n=np.int64(4),
        score_threshold=np.float32(0.5),
        rank_fields=["title"],
    )
    assert (made.model, made.cache_folder, made.device) == (str(Path("a/b")), "c", "auto")
    assert (made.top_n, made.score_threshold, made.rank_fields) == (4, 0.5, ("title",))
    assert {type(made.top_n), type(made.score_threshold)} == {int, float}
    assert CrossEncoderCompressor.model_validate_json(made.model_dump_json()) == made
