"""The fields: each changes what runs, and each is known to schemas and to type checkers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.runnables import Runnable
from numpy.typing import NDArray

from rerank_adapters import BackendError, ConfigError, Reranker, RerankerConfig, sharing
from rerank_adapters.config import OPTIONS
from rerank_adapters.langchain import (
    CrossEncoderCompressor,
    LangChainCrossEncoder,
    RerankingRetriever,
)
from rerank_adapters.langchain.settings import SETTINGS
from rerank_adapters.llama_index import CrossEncoderPostprocessor
from tests import type_checkers
from tests.langchain_adapter.samples import (
    KEY,
    QUERIES,
    TEXTS,
    TOLERANCE,
    ListRetriever,
    documents,
    ids,
)

CONFIGURATION = set(RerankerConfig.__dataclass_fields__)
COUNTS = (
    "num_workers",
    "num_threads",
    "max_length",
    "rerank_count",
    "query_max_tokens",
    "special_tokens",
    "max_batch_tokens",
    "max_queue_pairs",
    "max_queue_tokens",
)


class Run:
    """What a compressor of these fields finds for each query, and what its engine counts."""

    def __init__(self, **fields: Any) -> None:
        sharing.close_all()  # an engine counts for all that share it
        with CrossEncoderCompressor(top_n=None, **({"device": "cpu"} | fields)) as compressor:
            given = [{"query": query, "documents": documents()} for query in QUERIES]
            self.found = compressor.batch(given)
            self.info = compressor._ranker().info()
            self.stats = compressor._ranker().stats()

    @property
    def scores(self) -> NDArray[np.float64]:
        """Shape (queries, documents), in the order in which the documents were given."""
        by_id = [{one.id: one.metadata[KEY] for one in found} for found in self.found]
        return np.array([[scores[one.id] for one in documents()] for scores in by_id])


@pytest.fixture(scope="module")
def plain(model: str) -> Run:
    """The tiny ONNX model with no field set but the backend."""
    return Run(model=model, backend="onnx")


def test_both_backends_give_the_same() -> None:
    """The bundled model in float32: equal order, scores within 1e-4 (measured: 6e-7).

    The order is that of QUERY, whose scores are at least 2e-4 apart.
    """
    onnx, torch = (Run(backend=backend, dtype="float32") for backend in ("onnx", "torch"))
    assert (onnx.info.backend, torch.info.backend) == ("onnx", "torch")
    assert (onnx.info.dtype, torch.info.dtype) == ("float32", "float32")
    assert ids(onnx.found[0]) == ids(torch.found[0])
    np.testing.assert_allclose(onnx.scores, torch.scores, rtol=0, atol=TOLERANCE)


def test_dtype_changes_what_runs() -> None:
    """int8 moves the bundled model's probabilities, by at most 0.05 (measured: 0.027)."""
    exact, rounded = Run(backend="onnx", dtype="float32"), Run(backend="onnx", dtype="int8")
    assert (exact.info.dtype, rounded.info.dtype) == ("float32", "int8")
    assert 1e-3 < np.abs(exact.scores - rounded.scores).max() < 0.05


def test_max_batch_tokens_changes_the_batches_and_no_score(model: str, plain: Run) -> None:
    """64 in place of 2048: more than twice the batches for as many pairs (law 2: 1e-5)."""
    narrow = Run(model=model, backend="onnx", max_batch_tokens=64)
    assert narrow.info.max_batch_tokens == 64 < plain.info.max_batch_tokens
    assert narrow.stats["pairs"] == plain.stats["pairs"] == len(QUERIES) * len(TEXTS)
    assert narrow.stats["batches"] > 2 * plain.stats["batches"]
    np.testing.assert_allclose(narrow.scores, plain.scores, rtol=0, atol=1e-5)


def test_max_length_cuts_long_documents_alone(model: str, plain: Run) -> None:
    """With 32 tokens a pair the two long documents score anew, those of a few letters do not."""
    short = Run(model=model, backend="onnx", max_length=32)
    assert short.info.max_length == 32 < plain.info.max_length
    moved = np.abs(short.scores - plain.scores)
    lengths = np.array([len(text) for text in TEXTS])
    assert moved[:, lengths < 5].max() < 1e-5
    assert moved[:, lengths > 3000].min() > 1e-3


def test_device_is_where_it_runs(model: str, plain: Run) -> None:
    """Two devices are two workers on one queue; one that is not there is an error (law 5)."""
    two = Run(model=model, backend="onnx", device=["cpu", "cpu"])
    assert two.info.devices == ("cpu", "cpu")
    np.testing.assert_allclose(two.scores, plain.scores, rtol=0, atol=1e-5)
    with pytest.raises(BackendError, match="cuda:99"):
        Run(model=model, backend="onnx", device="cuda:99")


def retriever(**fields: Any) -> RerankingRetriever:
    return RerankingRetriever(base_retriever=ListRetriever(found=[]), **fields)


def assert_refused(**field: Any) -> None:
    """By Reranker and by each adapter, by its name."""
    (name,) = field
    with pytest.raises(ConfigError, match=name):
        Reranker.from_pretrained(**field)
    for make in (CrossEncoderCompressor, retriever, CrossEncoderPostprocessor):
        with pytest.raises(ConfigError, match=name):
            make(**field)


@pytest.mark.parametrize("value", [True, False, 64.0, "64"])
@pytest.mark.parametrize("name", COUNTS)
def test_a_count_is_an_int(name: str, value: object) -> None:
    """What Reranker refuses, no adapter makes an int of: True is no 1, "64" no 64."""
    assert_refused(**{name: value})
    compressor = CrossEncoderCompressor()
    before = getattr(compressor, name)
    with pytest.raises(ConfigError, match=name):
        setattr(compressor, name, value)
    assert getattr(compressor, name) is before


@pytest.mark.parametrize("value", [1, "yes", None])
@pytest.mark.parametrize("name", ["local_files_only", "trust_remote_code"])
def test_a_yes_or_no_is_a_bool(name: str, value: object) -> None:
    """Nobody trusts remote code by a word that was meant otherwise."""
    assert_refused(**{name: value})


@pytest.mark.parametrize("name", ["top_n", "rerank_count"])
@pytest.mark.parametrize("value", [True, 3.0, "3"])
def test_a_retriever_s_counts_are_ints(name: str, value: object) -> None:
    """Of what it asks for and of what it gives back."""
    with pytest.raises(ConfigError, match=name):
        retriever(**{name: value})
    assert getattr(retriever(**{name: 3}), name) == 3


@pytest.mark.parametrize("value", [True, 3.0, "3"])
def test_a_postprocessor_s_count_is_an_int(value: object) -> None:
    """LlamaIndex's own base would take True for 1."""
    with pytest.raises(ConfigError, match="top_n"):
        CrossEncoderPostprocessor(top_n=value)


@pytest.mark.parametrize("mode", ["validation", "serialization"])
def test_json_schemas_name_what_is_data(mode: Any) -> None:
    """Every field but the four that hold code or a loaded model."""
    ranking = CONFIGURATION | set(SETTINGS) - {"text_fn"}
    inherited = {"name", "tags", "metadata"}
    schema = CrossEncoderCompressor.model_json_schema(mode=mode)
    assert set(schema["properties"]) - inherited == ranking - _secret(mode)
    schema = RerankingRetriever.model_json_schema(mode=mode)
    assert set(schema["properties"]) - inherited == ranking - _secret(mode)
    schema = LangChainCrossEncoder.model_json_schema(mode=mode)
    assert set(schema["properties"]) == CONFIGURATION - _secret(mode)
    assert schema["properties"]["num_workers"] == {
        "anyOf": [{"type": "integer"}, {"type": "null"}],
        "default": None,
        "description": OPTIONS["num_workers"].text,
        "title": "Num Workers",
    }


def _secret(mode: str) -> set[str]:
    """A dump leaves the token and what is alive out."""
    return {"token", "cache", "document_tokens"} if mode == "serialization" else set()


def test_a_runnable_s_schemas() -> None:
    """What graphs and servers ask of a Runnable: input, output and config, as JSON schemas."""
    given = CrossEncoderCompressor().get_input_jsonschema()
    fields = given["$defs"]["RerankInput"]
    assert fields["properties"]["query"]["type"] == "string"
    assert fields["properties"]["documents"]["items"] == {"$ref": "#/$defs/Document"}
    assert sorted(fields["required"]) == ["documents", "query"]
    assert retriever().get_input_jsonschema()["type"] == "string"
    runnables: list[Runnable[Any, Any]] = [CrossEncoderCompressor(), retriever()]
    for runnable in runnables:
        assert runnable.get_output_jsonschema()["items"] == {"$ref": "#/$defs/Document"}
        configurable = runnable.get_config_jsonschema()["$defs"]["Configurable"]["properties"]
        assert {"top_n", "score_threshold"} <= set(configurable)
        shown = runnable.config_schema(include=["tags"]).model_fields
        assert shown.keys() == {"tags", "configurable"}


METHODS: list[tuple[Callable[..., Any], Any]] = [
    (CrossEncoderCompressor.compress_documents, list[Document]),
    (CrossEncoderCompressor.acompress_documents, list[Document]),
    (CrossEncoderCompressor.invoke, list[Document]),
    (CrossEncoderCompressor.abatch, list[list[Document]]),
    (RerankingRetriever.invoke, list[Document]),
    (RerankingRetriever.abatch, list[list[Document]]),
    (LangChainCrossEncoder.score, list[float]),
]


@pytest.mark.parametrize(("method", "gives"), METHODS, ids=lambda it: getattr(it, "__name__", ""))
def test_hints_can_be_read(method: Callable[..., Any], gives: Any) -> None:
    """get_type_hints finds every name in them: tools and graphs build schemas from hints."""
    assert get_type_hints(method)["return"] == gives


USER = """\
from langchain_core.documents import Document
from rerank_adapters import Reranker, RerankerConfig
from rerank_adapters.langchain import CrossEncoderCompressor
from rerank_adapters.llama_index import CrossEncoderPostprocessor
compressor = CrossEncoderCompressor(model="org/name", device=["cpu"], max_length=256, top_n=None)
reveal_type(compressor.compress_documents([Document("text")], "query", top_n=1))
reveal_type(compressor.max_length)
compressor.compress_documents([], "query", top_k=1)
CrossEncoderCompressor(max_length="256")
CrossEncoderCompressor(max_lenght=256)
CrossEncoderPostprocessor(max_lenght=256)
RerankerConfig(max_lenght=256)
Reranker.from_pretrained("org/name", max_lenght=256)
Reranker("org/name", max_lenght=256)
"""
MISSPELT = range(10, 15)


def assert_warned(lines: list[str], *beginnings: str) -> None:
    """These lines and no other."""
    assert len(lines) == len(beginnings), lines
    for line, beginning in zip(lines, beginnings, strict=True):
        assert line.startswith(beginning)


def test_mypy_sees_them(tmp_path: Path) -> None:
    """On a user's module, with --strict: what comes back, what is refused, and nothing else."""
    misspelt = 'error: Unexpected keyword argument "max_lenght"'
    assert_warned(
        type_checkers.mypy(USER, tmp_path),
        '6: note: Revealed type is "list[langchain_core.documents.base.Document]"',
        '7: note: Revealed type is "int | None"',
        '8: error: Unexpected keyword argument "top_k"',
        '8: note: "compress_documents" defined in',
        '9: error: Argument "max_length" to "CrossEncoderCompressor" has incompatible type "str"',
        *(f"{line}: {misspelt}" for line in MISSPELT),
        '14: note: "Reranker" defined in',
    )


def test_pyright_sees_them(tmp_path: Path) -> None:
    """The same from the other checker that is widely used."""
    misspelt = 'error: No parameter named "max_lenght"'
    assert_warned(
        type_checkers.pyright(USER, tmp_path),
        '6: information: Type of "compressor.compress_documents',
        '7: information: Type of "compressor.max_length" is "int | None"',
        '8: error: No parameter named "top_k"',
        "9: error: Argument of type \"Literal['256']\" cannot be assigned to parameter",
        *(f"{line}: {misspelt}" for line in MISSPELT),
    )
