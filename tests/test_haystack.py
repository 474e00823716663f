"""Haystack's own pipelines over our ranker: saved as YAML, loaded, run and awaited, offline."""

from __future__ import annotations

import asyncio
import copy
import os
import pickle
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from pytest_socket import disable_socket, enable_socket

from rerank_adapters import (
    BackendError,
    Cascade,
    ClosedError,
    ConfigError,
    InputError,
    RerankerConfig,
)
from rerank_adapters.errors import OptionError
from rerank_adapters.protocols import RerankRequest
from rerank_adapters.testing import ranker_from
from tests import checkpoints
from tests.exported import exported

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # read when it is imported

haystack = pytest.importorskip("haystack", reason="haystack is not installed: make test-neighbours")

from haystack import Document, Pipeline  # noqa: E402
from haystack.components.retrievers.in_memory import InMemoryBM25Retriever  # noqa: E402
from haystack.document_stores.in_memory import InMemoryDocumentStore  # noqa: E402
from haystack.utils import Secret  # noqa: E402
from haystack.utils.misc import _deduplicate_documents  # noqa: E402

from rerank_adapters.haystack import CrossEncoderRanker  # noqa: E402

pytestmark = pytest.mark.long("neighbours")

TEXTS = list(dict.fromkeys(text for _, text in checkpoints.PAIRS if text.strip()))[:12]
QUERY = "why is the sky blue"
TOLERANCE = 1e-4  # ONNX Runtime and sentence-transformers sum float32 in different orders (law 1)
LENGTHS = ranker_from(lambda query, document: float(len(document)))


@pytest.fixture(autouse=True)
def _no_network() -> Iterator[None]:
    disable_socket(allow_unix_socket=True)
    yield
    enable_socket()


def model() -> dict[str, Any]:
    """The tiny BERT as a mapping of a configuration's fields, as YAML has it."""
    return {"model": str(exported("bert")), "backend": "onnx", "device": "cpu"}


def documents() -> list[Any]:
    return [
        Document(id=f"d{index}", content=text, meta={"title": f"no. {index}", "pages": [index]})
        for index, text in enumerate(TEXTS)
    ]


def expected(texts: list[str] = TEXTS, query: str = QUERY) -> np.ndarray:
    return checkpoints.oracle(checkpoints.build("bert"), [(query, text) for text in texts])


def rag() -> Any:
    """BM25, then our ranker."""
    store = InMemoryDocumentStore()
    store.write_documents(documents())
    pipeline = Pipeline()
    pipeline.add_component("retriever", InMemoryBM25Retriever(store, top_k=12))
    pipeline.add_component("ranker", CrossEncoderRanker(model(), top_k=4))
    pipeline.connect("retriever.documents", "ranker.documents")
    return pipeline


def asked() -> dict[str, Any]:
    return {"retriever": {"query": QUERY}, "ranker": {"query": QUERY}}


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_pipeline_ranks_as_sentence_transformers_does(asynchronous: bool) -> None:
    """Copies with everything but the score as it was, best first, cut to top_k."""
    pipeline, known = rag(), dict(zip((f"d{it}" for it in range(12)), expected(), strict=True))
    given = pipeline.get_component("retriever").run(QUERY)["documents"]
    if asynchronous:
        found = asyncio.run(pipeline.run_async(asked()))["ranker"]["documents"]
    else:
        found = pipeline.run(asked())["ranker"]["documents"]
    order = sorted((one.id for one in given), key=lambda it: -known[it])[:4]
    assert [one.id for one in found] == order
    assert all(type(one.score) is float for one in found)
    np.testing.assert_allclose(
        [it.score for it in found], [known[it] for it in order], 0, TOLERANCE
    )
    by_id = {one.id: one for one in documents()}
    assert [replace(one, score=None) for one in found] == [by_id[it] for it in order]


def test_yaml_brings_back_the_same_pipeline() -> None:
    """Haystack loads no package that it was not told of; told, it ranks the same."""
    pipeline = rag()
    text = pipeline.dumps()
    loaded = Pipeline.loads(text, allowed_modules=["rerank_adapters"])
    assert loaded.dumps() == text
    ranker = loaded.get_component("ranker")
    assert ranker.config == RerankerConfig(**model())
    again = loaded.get_component("ranker").run(QUERY, documents())
    assert again == pipeline.get_component("ranker").run(QUERY, documents())
    with pytest.raises(haystack.core.errors.DeserializationError, match="rerank_adapters"):
        Pipeline.loads(text)


SAVED = [
    {},
    {"model": "BAAI/bge-reranker-base"},
    {
        "model": RerankerConfig(
            windows={"tokens": 64},
            calibration={"bias": 1.0},
            device=("cpu", "cuda"),
            answers=("a", "b"),
        )
    },
    {"token": Secret.from_env_var("NO_SUCH_TOKEN", strict=False)},
    {"top_k": None, "score_threshold": 0.0, "meta_fields_to_embed": ["title"]},
    {"embedding_separator": " / "},
]


@pytest.mark.parametrize("options", SAVED, ids=lambda it: ",".join(it) or "none")
def test_saved_options_come_back(options: dict[str, Any]) -> None:
    """Every option, by plain values; a configuration's token is left out."""
    first = CrossEncoderRanker(**options)
    data = first.to_dict()
    before = copy.deepcopy(data)
    second = CrossEncoderRanker.from_dict(data)
    assert data == before
    assert second.to_dict() == data
    names = ("config", "token", "top_k", "score_threshold", "meta_fields_to_embed")
    for name in (*names, "embedding_separator"):
        assert getattr(second, name) == getattr(first, name), name


def test_a_token_is_read_at_loading_and_never_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Secret names its variable; a token inside a configuration is dropped from what is saved."""
    ranker = CrossEncoderRanker(token=Secret.from_env_var("OUR_TEST_TOKEN"))
    monkeypatch.setenv("OUR_TEST_TOKEN", "hf_swordfish")
    assert ranker._source.config.token == "hf_swordfish"
    hidden = CrossEncoderRanker(RerankerConfig(token="hf_swordfish"))
    for one in (ranker, hidden):
        assert "swordfish" not in f"{one.to_dict()}{one!r}"
        assert b"swordfish" not in pickle.dumps(one.config)
    unset = CrossEncoderRanker(token=Secret.from_env_var("NO_SUCH_TOKEN"))
    with pytest.raises(ValueError, match="NO_SUCH_TOKEN"):
        unset.warm_up()


async def test_scores_that_documents_come_with_are_fused() -> None:
    """Linear: of model 3, 2, 1 and first stage 0, 10, 5, spread: 1 + 0, 1/2 + 1, 0 + 1/2."""

    class Scored:
        """Has the requests it was asked, and ranks by the length of texts, as the model would."""

        asked: ClassVar[list[RerankRequest]] = []

        def rerank_many(self, requests, **options):
            self.asked += requests
            return LENGTHS.rerank_many(requests, **options)

        async def arerank_many(self, requests, **options):
            self.asked += requests
            return LENGTHS.rerank_many(requests, **options)

        def info(self):
            return LENGTHS.info()

        def close(self):
            pass

    given = [Document(content=text) for text in ("aaa", "bb", "c")]
    scored = [replace(one, score=it) for one, it in zip(given, (0.0, 10.0, 5.0), strict=True)]
    ready = Scored()
    ranker = CrossEncoderRanker(reranker=Cascade([ready], fuse="linear"))
    for found in (ranker.run(QUERY, scored), await ranker.run_async(QUERY, scored)):
        assert [one.content for one in found["documents"]] == ["bb", "aaa", "c"]
        assert [one.score for one in found["documents"]] == pytest.approx([1.5, 1.0, 0.5])
    assert [it.retrieval_scores for it in ready.asked] == [[0.0, 10.0, 5.0]] * 2
    CrossEncoderRanker(reranker=ready).run(QUERY, given)
    assert ready.asked[-1].retrieval_scores is None


def test_metadata_are_scored_before_the_content() -> None:
    """In the order named; falsy values count, missing ones do not; blank stays blank."""
    seen: list[str] = []
    ranker = ranker_from(lambda query, document: seen.append(document) or 0.0)
    given = [
        Document(content="body", meta={"year": 0, "title": "T"}),
        Document(content="other", meta={"title": None}),
        Document(content=None, meta={"title": "T"}),
    ]
    made = CrossEncoderRanker(
        reranker=ranker, meta_fields_to_embed=["title", "year"], embedding_separator=" | "
    )
    found = made.run("q", given)["documents"]
    assert seen == ["T | 0 | body", "other"]
    assert [one.content for one in found] == ["body", "other", None]


def test_metadata_change_the_score_by_the_oracle() -> None:
    """The text that is scored is title, newline, content."""
    ranker = CrossEncoderRanker(model(), top_k=None, meta_fields_to_embed=["title"])
    scores = {one.id: one.score for one in ranker.run(QUERY, documents())["documents"]}
    texts = [f"no. {index}\n{text}" for index, text in enumerate(TEXTS)]
    mine = [scores[f"d{index}"] for index in range(12)]
    np.testing.assert_allclose(mine, expected(texts), 0, TOLERANCE)
    assert np.abs(np.array(mine) - expected()).max() > 100 * TOLERANCE


@pytest.mark.parametrize("asynchronous", [False, True])
def test_cuts_of_a_call_go_before_the_components(asynchronous: bool) -> None:
    """A bound of 0 is a bound; the bound acts before the cut."""
    ranker = CrossEncoderRanker(reranker=LENGTHS, top_k=3, score_threshold=2.0)
    given = [Document(id=str(size), content="x" * size) for size in (1, 2, 3, 4, 5)]

    def ran(**cut: Any) -> list[str]:
        if asynchronous:
            found = asyncio.run(ranker.run_async("q", given, **cut))
        else:
            found = ranker.run("q", given, **cut)
        return [one.id for one in found["documents"]]

    assert ran() == ["5", "4", "3"]
    assert ran(top_k=5) == ["5", "4", "3", "2"]
    assert ran(top_k=5, score_threshold=0) == ["5", "4", "3", "2", "1"]
    assert ran(score_threshold=4.5) == ["5"]


def test_one_document_of_each_id_as_haystack_chooses() -> None:
    """The best scored of equal ids, in the place of the first."""
    given = [
        Document(id="a", content="one", score=0.1),
        Document(id="b", content="two"),
        Document(id="a", content="three", score=0.9),
        Document(id="b", content="four", score=-1.0),
        Document(id="a", content="five", score=0.9),
    ]
    ranker = CrossEncoderRanker(reranker=ranker_from(lambda query, document: 0.0))
    found = ranker.run("q", given)["documents"]
    assert [one.content for one in found] == [it.content for it in _deduplicate_documents(given)]


def test_callers_documents_are_left_alone() -> None:
    """Equal before and after, and what comes back shares no metadata with them."""
    given = documents()
    before = copy.deepcopy(given)
    found = CrossEncoderRanker(model()).run(QUERY, given)["documents"]
    found[0].meta["seen"] = True
    assert given == before


BAD = [
    ({"top_k": 0}, ConfigError, "top_k must be an int of at least 1"),
    ({"score_threshold": "high"}, ConfigError, "score_threshold must be a number"),
    ({"meta_fields_to_embed": "title"}, ConfigError, "meta_fields_to_embed must be a list"),
    ({"token": "hf_x"}, ConfigError, "token must be a Secret"),
    ({"model": 3}, ConfigError, "model must be a hub id"),
    ({"model": {"top_k": 3}}, OptionError, "top_k is called top_n"),
    ({"model": {"max_length": 0}}, ConfigError, "max_length must be an int"),
    ({"model": LENGTHS}, ConfigError, "a ready ranker is given as reranker="),
    ({"model": "x/y", "reranker": LENGTHS}, ConfigError, "give either"),
    ({"reranker": "x/y"}, ConfigError, "reranker must be a ranker"),
]


@pytest.mark.parametrize(("options", "kind", "words"), BAD)
def test_wrong_options_name_the_argument(
    options: dict[str, Any], kind: type[Exception], words: str
) -> None:
    """ConfigError at construction."""
    with pytest.raises(kind, match=words):
        CrossEncoderRanker(**options)


WRONG = [
    ((" ", []), "query must be a str that is not blank"),
    (("q", "text"), "documents must be a list of Documents"),
    (("q", ["text"]), r"documents\[0\] must be a Document"),
    (("q", [], 0), "top_k must be an int of at least 1"),
    (("q", [], None, float("nan")), "score_threshold must be a number"),
]


@pytest.mark.parametrize(("given", "words"), WRONG)
def test_wrong_calls_are_input_errors(given: tuple[Any, ...], words: str) -> None:
    """Sync and awaited, even where there is nothing to rank."""
    ranker = CrossEncoderRanker(reranker=LENGTHS)
    with pytest.raises(InputError, match=words):
        ranker.run(*given)
    with pytest.raises(InputError, match=words):
        asyncio.run(ranker.run_async(*given))


def test_no_documents_load_no_model() -> None:
    """An empty retrieval costs nothing, whatever the model."""
    ranker = CrossEncoderRanker("no/such/folder/")
    assert ranker.run("q", []) == {"documents": []}
    assert asyncio.run(ranker.run_async("q", [])) == {"documents": []}


def test_warming_loads_and_closing_ends() -> None:
    """After warm_up the run finds it loaded; after close it is refused."""
    ranker = CrossEncoderRanker(RerankerConfig(**model(), max_length=61))  # no other test's view
    assert ranker._source.loaded is None
    ranker.warm_up()
    assert ranker._source.loaded is not None
    asyncio.run(ranker.warm_up_async())
    ranker.close()
    with pytest.raises(ClosedError, match="the CrossEncoderRanker is closed"):
        ranker.run(QUERY, documents())


def test_a_ready_ranker_is_checked_and_cannot_be_saved() -> None:
    """Anybody's Ranker may be given; weights in memory are no YAML."""
    ranker = CrossEncoderRanker(reranker=ranker_from(lambda query, document: float("nan")))
    with pytest.raises(BackendError):
        ranker.run("q", documents())
    with pytest.raises(ConfigError, match="cannot be saved"):
        ranker.to_dict()


def test_the_migration_pages_example_runs() -> None:
    """As it stands there."""
    page = (Path(__file__).parents[1] / ".docs/migration-neighbours.md").read_text("utf-8")
    (example,) = re.findall(r"```python\n(from haystack.*?)```", page, re.DOTALL)
    made: dict[str, Any] = {}
    exec(compile(example, "migration-neighbours.md", "exec"), made)
    assert made["again"].get_component("ranker").config == RerankerConfig(backend="onnx")
