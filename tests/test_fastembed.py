"""fastembed's way beside fastembed itself, on the same local model, and by its names alone."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rerank_adapters import BackendError, ClosedError, ConfigError, InputError, ModelError
from rerank_adapters.fastembed import Device, ModelSource, TextCrossEncoder
from rerank_adapters.loading.catalogue import KNOWN
from rerank_adapters.published import FASTEMBED_MODELS, PUBLISHED
from rerank_adapters.sharing import acquire
from tests import checkpoints
from tests.exported import exported

PAIRS = [pair for pair in checkpoints.PAIRS if pair[0].strip()][:40]
TOLERANCE = 1e-4  # fastembed pads to a batch's longest: float32 sums in another order (law 2)
NAME = "tests/tiny-bert"


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    """The tiny BERT under a name, which both libraries ask for."""
    before = list(TextCrossEncoder._custom)
    TextCrossEncoder.add_custom_model(NAME, ModelSource(hf=NAME), "model.onnx")
    yield
    TextCrossEncoder._custom[:] = before


def encoder(**options: Any) -> TextCrossEncoder:
    return TextCrossEncoder(NAME, specific_model_path=exported("bert"), **options)


@pytest.fixture(scope="module")
def ours() -> Iterator[TextCrossEncoder]:
    made = encoder(threads=1)
    yield made
    made.close()


def expected(pairs: list[tuple[str, str]]) -> np.ndarray:
    """The raw logits of sentence-transformers."""
    return checkpoints.oracle(checkpoints.build("bert"), pairs, activation="identity")


@pytest.fixture(scope="module")
def theirs() -> Any:
    """Fastembed's own class over the same files."""
    reason = "fastembed is not installed: make test-neighbours"
    library = pytest.importorskip("fastembed.rerank.cross_encoder", reason=reason)
    source = pytest.importorskip("fastembed.common.model_description").ModelSource
    library.TextCrossEncoder.add_custom_model(NAME, source(hf=NAME), "model.onnx")
    return library.TextCrossEncoder(NAME, specific_model_path=str(exported("bert")), threads=1)


beside = pytest.mark.long("neighbours")


def test_scores_are_the_logits_in_the_order_given(ours: TextCrossEncoder) -> None:
    """Plain floats, equal to the oracle's logits; blank documents have the model's number."""
    found = list(ours.rerank_pairs(PAIRS))
    assert all(type(score) is float for score in found)
    np.testing.assert_allclose(found, expected(PAIRS), 0, TOLERANCE)
    query = PAIRS[0][0]
    documents = [document for _, document in PAIRS[:6]]
    one = list(ours.rerank(query, documents))
    np.testing.assert_allclose(one, expected([(query, it) for it in documents]), 0, TOLERANCE)
    assert list(ours.rerank(query, [])) == []


@beside
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_both_libraries_give_the_same_numbers(
    ours: TextCrossEncoder, theirs: Any, batch_size: int
) -> None:
    """rerank, rerank_pairs and token_count, blank documents and truncated ones among them."""
    long = [(PAIRS[0][0], " ".join(document for _, document in PAIRS) * 3), (PAIRS[1][0], "")]
    pairs = PAIRS + long
    mine = list(ours.rerank_pairs(pairs, batch_size=batch_size))
    np.testing.assert_allclose(
        mine, list(theirs.rerank_pairs(pairs, batch_size=batch_size)), 0, TOLERANCE
    )
    query, documents = PAIRS[0][0], [document for _, document in pairs]
    np.testing.assert_allclose(
        list(ours.rerank(query, documents, batch_size)),
        list(theirs.rerank(query, documents, batch_size)),
        0,
        TOLERANCE,
    )
    assert ours.token_count(pairs, batch_size) == theirs.token_count(pairs, batch_size)


@beside
def test_names_and_defaults_are_theirs(theirs: Any) -> None:
    """Every parameter they write out is ours, in their order, with their default."""
    kind = type(theirs)
    for name in ("__init__", "rerank", "rerank_pairs", "token_count", "add_custom_model"):
        mine = inspect.signature(inspect.unwrap(getattr(TextCrossEncoder, name))).parameters
        known = inspect.signature(getattr(kind, name)).parameters
        written = [it for it in known.values() if it.kind is not it.VAR_KEYWORD]
        assert [it.name for it in written] == list(mine)[: len(written)], name
        assert [it.default for it in written] == [mine[it.name].default for it in written], name


@beside
def test_the_list_of_models_is_theirs(theirs: Any) -> None:
    """Names, files, licences and sizes; descriptions are our own words."""

    def bare(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{k: v for k, v in row.items() if k != "description"} for row in rows][:8]

    mine = bare(TextCrossEncoder.list_supported_models())
    assert mine == bare(type(theirs).list_supported_models())
    assert [row["model"] for row in mine] == [one.id for one in FASTEMBED_MODELS]


@beside
def test_their_own_sources_and_devices_are_taken(theirs: Any) -> None:
    """An import that stays behind is no error."""
    source = pytest.importorskip("fastembed.common.model_description").ModelSource
    device = pytest.importorskip("fastembed.common.types").Device
    TextCrossEncoder.add_custom_model("tests/their-source", source(hf=NAME))
    assert TextCrossEncoder.list_supported_models()[-1]["sources"]["hf"] == NAME
    assert encoder(cuda=device.CPU, lazy_load=True)._config.device == "cpu"


MISTAKES = [
    lambda kind: kind("no/such-model"),
    lambda kind: kind(NAME, specific_model_path="no/such/folder"),
    lambda kind: list(kind(NAME, specific_model_path=exported("bert")).rerank_pairs([], 0)),
    lambda kind: kind.add_custom_model(NAME.upper(), ModelSource(hf=NAME)),
    lambda kind: ModelSource(),
    lambda kind: kind(NAME, specific_model_path=exported("bert"), providers=["NoProvider"]),
    lambda kind: kind(
        NAME, specific_model_path=exported("bert"), providers=["CUDAExecutionProvider"]
    ),
]


@beside
@pytest.mark.parametrize("mistake", MISTAKES[:1] + MISTAKES[3:])
def test_their_mistakes_are_value_errors_with_both(theirs: Any, mistake: Any) -> None:
    """Whoever catches ValueError today goes on doing so."""
    for kind in (type(theirs), TextCrossEncoder):
        with pytest.raises(ValueError):
            mistake(kind)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_our_errors_and_value_errors(mistake: Any) -> None:
    """The class says what is wrong; a ValueError it is in every case."""
    with pytest.raises(ValueError) as caught:  # the classes are checked next
        mistake(TextCrossEncoder)
    assert isinstance(caught.value, ConfigError | InputError | ModelError | BackendError)


WRONG = [
    ({"batch": 3}, TypeError, "batch"),
    ({"model_path": "x"}, TypeError, "model_path"),
    ({"cuda": "gpu"}, ConfigError, "cuda must be True, False"),
    ({"cuda": True, "providers": ["CPUExecutionProvider"]}, ConfigError, "providers says the dev"),
    ({"device_ids": [0], "providers": ["CPUExecutionProvider"]}, ConfigError, "providers says"),
    ({"device_ids": []}, ConfigError, "device_ids must be a list of numbers"),
    ({"device_ids": [0], "cuda": False}, ConfigError, "device_ids are GPUs"),
    ({"providers": [("CPUExecutionProvider", {"arena": 1})]}, ConfigError, "providers must begin"),
    ({"threads": 0}, ConfigError, "num_threads must be an int"),
]


@pytest.mark.parametrize(("options", "kind", "words"), WRONG)
def test_wrong_options_name_the_argument(
    options: dict[str, Any], kind: type[Exception], words: str
) -> None:
    """At construction, before anything is loaded; unknown ones are not swallowed."""
    with pytest.raises(kind, match=words):
        encoder(lazy_load=True, **options)


CALLS = [
    (lambda it: it.rerank(" ", ["a"]), "query of pair 0 must be a str that is not blank"),
    (lambda it: it.rerank("q", "text"), "documents must be an iterable of str"),
    (lambda it: it.rerank("q", ["a"] * 9 + [3], 4), "document of pair 9 must be a str"),
    (lambda it: it.rerank("q", ["a"], True), "batch_size must be an int of at least 1"),
    (lambda it: it.rerank_pairs([("q",)]), r"pairs\[0\] must be a \(query, document\) pair"),
    (lambda it: it.rerank_pairs([("q", "a")] * 3, 2, -1), "parallel must be an int of at least 0"),
    (lambda it: it.rerank_pairs(3), "pairs must be an iterable"),
]


@pytest.mark.parametrize(("call", "words"), CALLS)
def test_wrong_calls_are_input_errors(ours: TextCrossEncoder, call: Any, words: str) -> None:
    """With the index in the whole iterable, not in its batch."""
    with pytest.raises(InputError, match=words):
        list(call(ours))


DEVICES = [
    ({}, "onnx", ("auto",)),
    ({"cuda": False}, "onnx", ("cpu",)),
    ({"cuda": Device.CUDA}, "onnx", ("cuda",)),
    ({"device_ids": [1, 0], "cuda": True}, "onnx", ("cuda:1", "cuda:0")),
    ({"providers": ["CPUExecutionProvider"]}, "onnx", ("cpu",)),
    ({"providers": ["CUDAExecutionProvider", "CPUExecutionProvider"]}, "onnx", ("cuda",)),
    ({"providers": [("CUDAExecutionProvider", {"device_id": 2})]}, "onnx", ("cuda:2",)),
    ({"providers": ["OpenVINOExecutionProvider"]}, "openvino", ("cpu",)),
]


@pytest.mark.parametrize(("options", "backend", "devices"), DEVICES)
def test_devices_are_named_as_they_are_meant(
    options: dict[str, Any], backend: str, devices: tuple[str, ...]
) -> None:
    """The first of them serves calls, all of them what is parallel."""
    made = encoder(lazy_load=True, **options)
    assert (made._config.backend, made._config.device) == (backend, devices[0])
    assert made._parallel(3).devices == devices
    assert made._parallel(3).num_workers == -(-3 // len(devices))


def test_batches_are_read_as_they_are_scored(ours: TextCrossEncoder) -> None:
    """A generator of any length: no more than batch_size pairs ahead of what was asked for."""
    read: list[int] = []

    def stream() -> Iterator[tuple[str, str]]:
        for index, pair in enumerate(PAIRS[:12]):
            read.append(index)
            yield pair

    found = ours.rerank_pairs(stream(), batch_size=4)
    assert read == []
    next(found)
    assert read == [0, 1, 2, 3]
    assert len(list(found)) == 11
    single = list(ours.rerank_pairs(PAIRS[0]))
    assert single == list(ours.rerank_pairs(PAIRS[:1]))


def test_parallel_has_so_many_workers_and_the_same_scores(ours: TextCrossEncoder) -> None:
    """A network of two workers with a thread each; a short list does without."""
    config = ours._parallel(2)
    assert (config.num_workers, config.num_threads) == (2, 1)
    assert list(ours.rerank_pairs(PAIRS[:3], batch_size=8, parallel=2))
    assert acquire(config).serving is None
    found = list(ours.rerank_pairs(PAIRS, batch_size=8, parallel=2))
    np.testing.assert_allclose(found, list(ours.rerank_pairs(PAIRS)), 0, 1e-5)  # law 2
    running = acquire(config).serving
    assert running is not None
    assert running.info().workers == 2
    assert running.stats()["pairs"] >= len(set(PAIRS))


def test_lazy_models_load_at_the_first_score(ours: TextCrossEncoder) -> None:
    """Counting tokens loads none; without lazy_load it is there at once."""
    lazy = encoder(lazy_load=True, threads=2)
    assert lazy.token_count(PAIRS) == ours.token_count(PAIRS) > 0
    assert lazy._source.loaded is None
    next(iter(lazy.rerank_pairs(PAIRS[:1])))
    assert lazy._source.loaded is not None
    assert ours._source.loaded is not None
    for twin in (copy.copy(lazy), pickle.loads(pickle.dumps(lazy))):
        assert list(twin.rerank_pairs(PAIRS[:2])) == list(lazy.rerank_pairs(PAIRS[:2]))
    lazy.close()
    with pytest.raises(ClosedError):
        list(lazy.rerank("q", ["a"]))


def test_the_cache_is_where_fastembed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """cache_dir, else FASTEMBED_CACHE_PATH, else the hub's; offline no network is asked."""
    options: dict[str, Any] = {"lazy_load": True, "local_files_only": True}
    monkeypatch.delenv("FASTEMBED_CACHE_PATH", raising=False)
    assert TextCrossEncoder(NAME, **options)._config.cache_folder is None
    monkeypatch.setenv("FASTEMBED_CACHE_PATH", "/somewhere")
    assert TextCrossEncoder(NAME, **options)._config.cache_folder == "/somewhere"
    made = TextCrossEncoder(NAME, "/elsewhere", **options)
    assert made._config.cache_folder == "/elsewhere"
    assert made._config.local_files_only
    with pytest.raises(ModelError, match="tests/tiny-bert"):
        list(made.rerank("q", ["a"]))


def test_the_same_model_is_loaded_once(ours: TextCrossEncoder) -> None:
    """Law 9: two encoders of equal options serve from one ranker."""
    other = encoder(threads=1)
    assert other._source.get() is ours._source.get()


def test_fastembed_itself_is_not_needed() -> None:
    """Our module has its name and not its library."""
    code = "import sys; sys.modules['fastembed'] = None; import rerank_adapters.fastembed"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
    assert sys.modules["rerank_adapters.fastembed"].TextCrossEncoder is TextCrossEncoder


def test_every_number_published_has_its_source() -> None:
    """Nothing is said without one; the catalogue's ids are all known; ids come once."""
    ids = [one.id for one in PUBLISHED]
    assert len(set(ids)) == len(ids)
    assert set(KNOWN) <= set(ids)
    for one in PUBLISHED:
        said = [getattr(one, it.name) for it in dataclasses.fields(one) if it.name != "sources"]
        assert one.sources, one.id
        assert all(value not in (0, 0.0) for value in said)
        assert json.loads(json.dumps(one.to_dict()))["id"] == one.id


SBERT_TABLE = """
TinyBERT-L2-v2 69.84 32.56 | MiniLM-L2-v2 71.01 34.85 | MiniLM-L4-v2 73.04 37.70
MiniLM-L6-v2 74.30 39.01 | MiniLM-L12-v2 74.31 39.02 | electra-base 71.99 36.41
"""


def test_the_numbers_are_those_of_sentence_transformers_table() -> None:
    """As its page of pretrained models has them, and no others are given."""
    rows = [row.split() for row in SBERT_TABLE.replace("\n", "|").split("|") if row.strip()]
    wanted = {f"cross-encoder/ms-marco-{name}": (float(a), float(b)) for name, a, b in rows}
    given = {one.id: (one.ndcg10, one.mrr10) for one in PUBLISHED if one.ndcg10 is not None}
    assert given == wanted


def test_the_migration_pages_example_runs(ours: TextCrossEncoder) -> None:
    """Its options and calls are ours."""
    page = (Path(__file__).parents[1] / ".docs/migration-neighbours.md").read_text("utf-8")
    example = page.split("```python\nfrom rerank_adapters.fastembed")[1].split("```")[0]
    code = "from rerank_adapters.fastembed" + example
    made: dict[str, Any] = {"folder": exported("bert")}
    exec(compile(code, "migration-neighbours.md", "exec"), made)
    query, documents = made["query"], made["documents"]
    assert made["scores"] == list(ours.rerank(query, documents))
