"""Dumps, pickles and copies hold the configuration; models are shared, tokens and weights stay."""

from __future__ import annotations

import copy
import json
import pickle
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core._api.beta_decorator import LangChainBetaWarning
from langchain_core.load import dumps, loads
from langchain_core.runnables import ConfigurableField, RunnablePassthrough
from llama_index.core.schema import MetadataMode, NodeWithScore, TextNode
from pydantic import SecretStr

from rerank_adapters import ClosedError, ConfigError, Reranker, sharing
from rerank_adapters.langchain import (
    CrossEncoderCompressor,
    LangChainCrossEncoder,
    RerankingRetriever,
)
from rerank_adapters.llama_index import CrossEncoderPostprocessor
from tests.langchain_adapter.samples import KEY, QUERY, TEXTS, ListRetriever, documents

TOKEN = "hf_notARealToken0123456789"


def full(**changes: Any) -> CrossEncoderCompressor:
    """A compressor with a setting of every kind, and a token."""
    fields: dict[str, Any] = {
        "model": "org/name",
        "device": ("cuda:0", "cuda:1"),
        "max_length": 128,
        "top_n": None,
        "score_threshold": 0.25,
        "rank_fields": ["title", "source"],
        "on_empty_text": "drop",
        "dedupe": "content",
        "token": TOKEN,
    }
    return CrossEncoderCompressor(**(fields | changes))


def load(saved: str, **secrets: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LangChainBetaWarning)  # `loads` says that it may change
        return loads(
            saved,
            valid_namespaces=["rerank_adapters"],
            allowed_objects=[CrossEncoderCompressor, RerankingRetriever, RunnablePassthrough],
            secrets_map=secrets,
        )


def test_dumps_and_loads() -> None:
    """Every field but the token comes back; the token is named, for `loads` to look up."""
    saved = dumps(full())
    assert load(saved) == full(token=None)
    assert json.loads(saved)["id"] == ["rerank_adapters", "langchain", "CrossEncoderCompressor"]
    assert json.loads(saved)["kwargs"]["token"] == {"lc": 1, "type": "secret", "id": ["HF_TOKEN"]}
    assert load(saved, HF_TOKEN=TOKEN) == full()


def test_a_retriever_dumps_with_its_compressor() -> None:
    """A compressor inside is saved as it is outside."""
    retriever = RerankingRetriever(
        base_retriever=RunnablePassthrough(), compressor=full(), rerank_count=20
    )
    again = load(dumps(retriever))
    assert again.compressor == full(token=None)
    assert again.rerank_count == 20


def test_a_ready_reranker_does_not_dump_as_some_other_model(ready: Reranker) -> None:
    """Around reranker= there is no configuration to save: `loads` refuses, it does not guess."""
    saved = dumps(CrossEncoderCompressor(reranker=ready))
    assert json.loads(saved)["type"] == "not_implemented"
    with pytest.raises(NotImplementedError):
        load(saved)
    with pytest.raises(ConfigError, match="made with reranker= cannot be pickled"):
        pickle.dumps(CrossEncoderCompressor(reranker=ready))


def test_a_text_fn_does_not_dump_as_none() -> None:
    """Code is not data: `loads` refuses it."""
    with pytest.raises((NotImplementedError, ValueError)):
        load(dumps(CrossEncoderCompressor(text_fn=str)))


def test_the_token_is_nowhere() -> None:
    """Not in repr, str, dumps, pickle, model_dump, its JSON, or an error message."""
    for adapter in (
        full(),
        RerankingRetriever(base_retriever=ListRetriever(found=[]), token=TOKEN),
        LangChainCrossEncoder(token=TOKEN),
    ):
        shown = [repr(adapter), str(adapter), dumps(adapter), adapter.model_dump_json()]
        shown += [str(adapter.model_dump()), str(pickle.dumps(adapter))]
        assert not [text for text in shown if TOKEN in text]
    with pytest.raises(ValueError, match="max_length") as caught:
        full(max_length=-1)
    assert TOKEN not in str(caught.value)
    with pytest.raises(ValueError, match="bogus") as caught:
        full(bogus=1)
    assert TOKEN not in str(caught.value)


def test_the_token_reaches_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a secret to print, not to load with."""
    seen = []

    def find(config: Any) -> None:
        seen.append(config.token)
        raise OSError("no network here")

    monkeypatch.setattr(sharing, "find", find)
    with pytest.raises(OSError, match="no network here"):
        full(device="cpu").compress_documents(documents(), QUERY, rank_fields=None)
    assert seen == [TOKEN]


def test_pickle(model: str) -> None:
    """A pickle of a loaded adapter is small, holds no model, and works."""
    compressor = CrossEncoderCompressor(model=model, backend="onnx", device="cpu", top_n=2)
    wanted = compressor.compress_documents(documents(), QUERY)
    saved = pickle.dumps(compressor)
    assert len(saved) < 5_000
    again = pickle.loads(saved)
    assert again == compressor
    assert again.compress_documents(documents(), QUERY) == wanted
    retriever = RerankingRetriever(
        base_retriever=ListRetriever(found=documents()), compressor=compressor
    )
    assert pickle.loads(pickle.dumps(retriever)).invoke(QUERY) == wanted


def test_deepcopy_and_model_copy(model: str, ready: Reranker) -> None:
    """Copies share the model; one with another configuration has that configuration's."""
    compressor = CrossEncoderCompressor(model=model, backend="onnx", device="cpu")
    wanted = compressor.compress_documents(documents(), QUERY)
    deep = copy.deepcopy(compressor)
    assert deep == compressor
    assert deep.compress_documents(documents(), QUERY) == wanted
    assert deep._ranker() is compressor._ranker()
    around = copy.deepcopy(CrossEncoderCompressor(reranker=ready))
    assert around.reranker is ready
    changed = compressor.model_copy(update={"activation": "sigmoid"})
    assert changed._ranker() is not compressor._ranker()
    score = changed.compress_documents(documents(), QUERY)[0].metadata["relevance_score"]
    assert 0 < score < 1
    retriever = RerankingRetriever(
        base_retriever=ListRetriever(found=documents()), model=model, backend="onnx", device="cpu"
    )
    assert copy.deepcopy(retriever).invoke(QUERY) == wanted


@pytest.fixture
def loads_counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The configurations whose networks were loaded from here on; none is kept from before."""
    sharing.close_all()
    loaded: list[Any] = []
    start = sharing.start

    def counting(found: Any, meaning: Any) -> Any:
        loaded.append(found.config)
        return start(found, meaning)

    monkeypatch.setattr(sharing, "start", counting)
    yield loaded
    sharing.close_all()


def test_equal_configurations_load_once(loads_counted: list[Any], model: str) -> None:
    """Sixteen threads, three kinds of adapter, one load, and none before the first call."""
    fields: dict[str, Any] = {"model": model, "backend": "onnx", "device": "cpu", "max_length": 99}
    compressors = [CrossEncoderCompressor(**fields, top_n=n) for n in range(1, 15)]
    retriever = RerankingRetriever(base_retriever=ListRetriever(found=documents()), **fields)
    encoder = LangChainCrossEncoder(**fields)
    assert loads_counted == []
    calls = [lambda c=c: c.compress_documents(documents(), QUERY) for c in compressors]
    calls += [lambda: retriever.invoke(QUERY), lambda: encoder.score([(QUERY, "bread")])]
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads_counted) == 1


def test_a_configured_copy_does_not_load_again(loads_counted: list[Any], model: str) -> None:
    """configurable_fields makes an adapter per call; each uses the model of its origin."""
    fields: dict[str, Any] = {"model": model, "backend": "onnx", "device": "cpu", "max_length": 98}
    derived = CrossEncoderCompressor(**fields).configurable_fields(
        top_n=ConfigurableField(id="how_many")
    )
    for count in (1, 2, 3):
        found = derived.invoke(
            {"query": QUERY, "documents": documents()}, {"configurable": {"how_many": count}}
        )
        assert len(found) == count
    assert len(loads_counted) == 1


def test_a_closed_adapter_leaves_the_model_to_the_others(
    loads_counted: list[Any], model: str
) -> None:
    """One of two equal adapters closes: the other works on; after both, a new one finds it idle."""
    fields: dict[str, Any] = {"model": model, "backend": "onnx", "device": "cpu", "max_length": 97}
    first, second = CrossEncoderCompressor(**fields), CrossEncoderCompressor(**fields)
    first.compress_documents(documents(), QUERY)
    first.close()
    first.close()
    second.compress_documents(documents(), QUERY)
    with pytest.raises(ClosedError, match="CrossEncoderCompressor is closed: make a new one"):
        first.compress_documents(documents(), QUERY)
    second.close()
    with CrossEncoderCompressor(**fields) as third:
        third.compress_documents(documents(), QUERY)
    assert len(loads_counted) == 1
    sharing.close_all()
    with CrossEncoderCompressor(**fields) as fourth:
        fourth.compress_documents(documents(), QUERY)
    assert len(loads_counted) == 2


def in_both_frameworks(
    **fields: Any,
) -> tuple[CrossEncoderCompressor, CrossEncoderPostprocessor]:
    """Two adapters of the same fields, which score documents and nodes by their text alone."""
    return (
        CrossEncoderCompressor(top_n=None, **fields),
        CrossEncoderPostprocessor(top_n=None, metadata_mode=MetadataMode.NONE, **fields),
    )


def scored_documents(compressor: CrossEncoderCompressor) -> list[tuple[str, float]]:
    found = compressor.compress_documents(documents(), QUERY)
    return [(str(document.id), document.metadata[KEY]) for document in found]


def scored_nodes(postprocessor: CrossEncoderPostprocessor) -> list[tuple[str, float | None]]:
    nodes = [
        NodeWithScore(node=TextNode(id_=str(document.id), text=document.page_content))
        for document in documents()
    ]
    found = postprocessor.postprocess_nodes(nodes, query_str=QUERY)
    return [(node.node_id, node.score) for node in found]


def test_langchain_and_llama_index_around_one_reranker(model: str) -> None:
    """Equal scores from one engine, which both keep open, and whose end both are told of."""
    with Reranker.from_pretrained(model, backend="onnx", device="cpu") as reranker:
        compressor, postprocessor = in_both_frameworks(reranker=reranker)
        wanted = scored_documents(compressor)
        assert scored_nodes(postprocessor) == wanted
        stats = reranker.stats()
        assert (stats["requests"], stats["pairs"]) == (2, 2 * len(TEXTS))
        postprocessor.close()
        assert scored_documents(compressor) == wanted
        compressor.close()
        compressor, postprocessor = in_both_frameworks(reranker=reranker)
        assert scored_nodes(postprocessor) == wanted
        assert reranker.stats()["requests"] == 4
    with pytest.raises(ClosedError, match="the reranker is closed"):
        scored_documents(compressor)
    with pytest.raises(ClosedError):
        scored_nodes(postprocessor)


def test_langchain_and_llama_index_of_one_configuration_load_once(
    loads_counted: list[Any], model: str
) -> None:
    """One engine counts both; it outlives both adapters' close, until it is freed."""
    fields: dict[str, Any] = {"model": model, "backend": "onnx", "device": "cpu", "max_length": 96}
    compressor, postprocessor = in_both_frameworks(**fields)
    wanted = scored_documents(compressor)
    assert scored_nodes(postprocessor) == wanted
    assert compressor._ranker() is postprocessor._ranker()
    assert compressor._ranker().stats()["requests"] == 2
    compressor.close()
    assert scored_nodes(postprocessor) == wanted
    with pytest.raises(ClosedError, match="CrossEncoderCompressor is closed: make a new one"):
        scored_documents(compressor)
    assert len(loads_counted) == 1
    postprocessor.close()
    sharing.close_all()
    with CrossEncoderCompressor(top_n=None, **fields) as third:
        assert scored_documents(third) == wanted
    assert len(loads_counted) == 2


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_closed_reranker_is_the_error_of_what_it_should_score(
    model: str, asynchronous: bool
) -> None:
    """A batch gets its errors in place, and what needs no score its answer."""
    with Reranker.from_pretrained(model, backend="onnx", device="cpu") as closed:
        compressor = CrossEncoderCompressor(reranker=closed)
    given: Any = [{"query": QUERY, "documents": documents()}, {"query": QUERY, "documents": []}]
    if asynchronous:
        error, empty = await compressor.abatch(given, return_exceptions=True)
    else:
        error, empty = compressor.batch(given, return_exceptions=True)
    assert isinstance(error, ClosedError)
    assert empty == []


def test_what_a_type_checker_lets_pass_is_made_one_thing() -> None:
    """A Path, a list of devices, a plain token and a list of names."""
    given = CrossEncoderCompressor(
        model=Path("org/name"), device=["cpu", "cpu"], token=TOKEN, rank_fields=["title"]
    )
    assert given.model == str(Path("org/name"))
    assert given.device == ("cpu", "cpu")
    assert given.rank_fields == ("title",)
    assert isinstance(given.token, SecretStr)
    assert given.model_copy(update={"token": TOKEN})._prepared().config.token == TOKEN


def test_a_ready_reranker_is_left_open(ready: Reranker) -> None:
    """close() of the adapter is not close() of what it was given."""
    with CrossEncoderCompressor(reranker=ready) as compressor:
        wanted = compressor.compress_documents(documents(), QUERY)
    assert CrossEncoderCompressor(reranker=ready).compress_documents(documents(), QUERY) == wanted
