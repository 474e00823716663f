"""The ONNX backend: which file, device and threads; and scores that company cannot change."""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

from rerank_adapters import BackendError, ClosedError, ModelError, Reranker, backends
from rerank_adapters.backends import onnx as backend_module
from rerank_adapters.backends.onnx import OnnxBackend
from rerank_adapters.tokenization import PairTokenizer
from tests.checkpoints import PAIRS
from tests.exported import exported
from tests.fakes import CountingBackend, HeldBackend, queued_pairs, reranker_over
from tests.loading.test_hub import lay_out_cache


def _backend(file: Path, **options) -> OnnxBackend:
    tokenizer = PairTokenizer.from_folder(file.parent)
    return OnnxBackend(file, pad_id=tokenizer.pad_id, pad_side=tokenizer.pad_side, **options)


def _batch(folder: Path):
    return PairTokenizer.from_folder(folder).encode(PAIRS).batch


def test_a_device_that_is_not_there_is_an_error_with_the_cure() -> None:
    """Law 5: never a silent CPU."""
    file = exported("bert") / "model.onnx"
    with pytest.raises(
        BackendError, match=r"'cuda:1' was asked for .* pip install onnxruntime-gpu"
    ):
        OnnxBackend(file, device="cuda:1")
    with pytest.raises(BackendError, match='device "mps" needs backend "torch"'):
        OnnxBackend(file, device="mps")


@pytest.mark.parametrize(
    ("cpus", "asked", "workers", "threads"),
    [
        (1, {}, 1, 1),
        (2, {}, 2, 1),
        (4, {}, 2, 3),
        (16, {}, 8, 9),
        (64, {}, 8, 57),
        (16, {"num_threads": 3}, 1, 3),
        (16, {"num_workers": 4}, 4, 13),
        (2, {"num_workers": 4}, 4, 1),
        (2, {"num_workers": 4, "num_threads": 2}, 4, 2),
    ],
)
def test_workers_and_threads_share_the_cpus(cpus, asked, workers, threads, monkeypatch) -> None:
    """Workers and the rest of their pool are as many as the CPUs, unless asked otherwise."""
    monkeypatch.setattr(backend_module, "available_cpus", lambda: cpus)
    backend = _backend(exported("bert") / "model.onnx", **asked)
    options = backend._session.get_session_options()
    assert options.intra_op_num_threads == threads
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert backend.traits.workers == workers
    assert backend.info()["num_threads"] == threads


def test_batches_of_one_length_are_shared_among_workers() -> None:
    """20 chunks of 100 tokens, one batch by a GPU's budget, are several forwards on a CPU."""
    texts = [f"{number} " + "whale " * 60 for number in range(20)]
    workers = _backend(exported("bert") / "model.onnx").traits.workers
    with Reranker(exported("bert"), backend="onnx", device="cpu") as reranker:
        reranker.score("whale", texts)
        assert reranker.info().max_batch_tokens == 512
        assert reranker.info().workers == workers
        assert reranker.stats()["batches"] >= 4


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_cgroup_quotas_count(files, expected, tmp_path: Path) -> None:
    """Both cgroup versions, rounded up to whole CPUs; no quota is no bound."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert backends._cgroup_quota(tmp_path) == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no CPU affinity on this system")
def test_affinity_counts() -> None:
    """A process bound to one CPU counts one."""
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert backends.available_cpus() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_type_ids_are_fed_only_where_the_graph_wants_them() -> None:
    """BERT takes three inputs and DistilBERT two; both run from the same batch type."""
    assert "token_type_ids" in _backend(exported("bert") / "model.onnx")._inputs
    backend = _backend(exported("distilbert") / "model.onnx")
    assert "token_type_ids" not in backend._inputs
    assert backend.logits(_batch(exported("distilbert"))).shape == (len(PAIRS), 1)


def test_weights_beside_a_linked_graph_are_read(tmp_path: Path) -> None:
    """huggingface_hub's cache links every file; onnxruntime alone refuses the external data."""
    source, plain = exported("bert"), tmp_path / "plain"
    shutil.copytree(source, plain)
    for file in plain.glob("model*"):
        file.unlink()
    graph = onnx.load(source / "model.onnx")
    onnx.save_model(
        graph,
        plain / "model.onnx",
        save_as_external_data=True,
        location="model.onnx_data",
        size_threshold=1024,
    )
    names = {path.name: path.read_bytes() for path in plain.iterdir() if path.is_file()}
    linked = lay_out_cache(tmp_path / "hub", "org/x", names)
    expected = _backend(source / "model.onnx").logits(_batch(source))
    assert np.array_equal(_backend(linked / "model.onnx").logits(_batch(source)), expected)
    # A graph of one's own beside linked weights: what onnxruntime refuses in every version since.
    (linked / "model.onnx").unlink()
    shutil.copy(plain / "model.onnx", linked / "model.onnx")
    with pytest.raises(Exception, match=r"(?i)external"):
        ort.InferenceSession(str(linked / "model.onnx"), providers=["CPUExecutionProvider"])
    assert np.array_equal(_backend(linked / "model.onnx").logits(_batch(source)), expected)


@pytest.mark.parametrize("location", ["../secret", "{absolute}", "link", "sub/../../secret"])
@pytest.mark.parametrize("cached", [False, True], ids=["folder", "hub cache"])
def test_weights_outside_the_folder_are_never_read(
    tmp_path: Path, location: str, cached: bool
) -> None:
    """A graph that names them, by a path or by a link, is refused: not with what they hold."""
    folder = Path(shutil.copytree(exported("bert"), tmp_path / "plain"))
    if cached:
        names = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        folder = lay_out_cache(tmp_path / "hub", "org/x", names)
    outside = folder.parent / "secret"
    outside.write_bytes(bytes(4 * 100_000))
    (folder / "sub").mkdir()
    (folder / "link").symlink_to("../secret")
    model = onnx.load(folder / "model.onnx")
    weight = max(model.graph.initializer, key=lambda it: len(it.raw_data))
    stated = {"location": location.format(absolute=outside), "length": str(len(weight.raw_data))}
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in stated.items():
        weight.external_data.add(key=key, value=value)
    (folder / "model.onnx").unlink()  # in a cache it is a link
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"(?i)external data|link out of"):
        Reranker.from_pretrained(str(folder), backend="onnx")


def test_file_name_changes_what_runs(tmp_path: Path) -> None:
    """Two graphs in one folder score differently, and file_name picks."""
    shutil.copytree(exported("bert"), tmp_path, dirs_exist_ok=True)
    graph = onnx.load(tmp_path / "model.onnx")
    output = graph.graph.output[0].name
    for node in graph.graph.node:
        node.output[:] = ["raw" if name == output else name for name in node.output]
    graph.graph.node.append(onnx.helper.make_node("Neg", ["raw"], [output]))
    onnx.save(graph, tmp_path / "other.onnx")
    with Reranker.from_pretrained(str(tmp_path), backend="onnx") as one:
        expected = one.score_pairs(PAIRS[:5])
    with Reranker.from_pretrained(str(tmp_path), file_name="other.onnx") as two:
        assert two.info().backend == "onnx"
        assert np.array_equal(two.score_pairs(PAIRS[:5]), -expected)


def test_logits_are_taken_by_name_where_a_graph_has_more_outputs(tmp_path: Path) -> None:
    """Hidden states listed before the logits are not taken for them."""
    shutil.copytree(exported("bert"), tmp_path, dirs_exist_ok=True)
    graph = onnx.load(tmp_path / "model.onnx")
    own = onnx.helper.make_tensor_value_info("mask", onnx.TensorProto.INT64, ["batch", "tokens"])
    graph.graph.node.append(onnx.helper.make_node("Identity", ["attention_mask"], ["mask"]))
    graph.graph.output.insert(0, own)
    onnx.save(graph, tmp_path / "more.onnx")
    batch = _batch(exported("bert"))
    assert np.array_equal(
        _backend(tmp_path / "more.onnx").logits(batch),
        _backend(tmp_path / "model.onnx").logits(batch),
    )


def test_info_names_weights_of_few_bits(tmp_path: Path) -> None:
    """A 4-bit file of the hub is not called float32."""
    shutil.copytree(exported("bert"), tmp_path, dirs_exist_ok=True)
    quantizer = MatMulNBitsQuantizer(onnx.load(tmp_path / "model.onnx"), block_size=32)
    quantizer.process()
    onnx.save(quantizer.model.model, tmp_path / "model_q4.onnx")
    with Reranker.from_pretrained(str(tmp_path), file_name="model_q4.onnx") as reranker:
        assert reranker.info().dtype == "q4"
    assert _backend(tmp_path / "model.onnx").info()["dtype"] == "float32"


@pytest.fixture(scope="module")
def foreign_int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny BERT as onnxruntime's own dynamic int8: one activation scale per batch."""
    folder = tmp_path_factory.mktemp("foreign")
    shutil.copytree(exported("bert"), folder, dirs_exist_ok=True)
    graph = onnx.load(folder / "model.onnx")
    del graph.graph.value_info[:]  # the quantiser infers shapes afresh and trips over stored ones
    quantize_dynamic(graph, folder / "model_quantized.onnx", weight_type=QuantType.QInt8)
    return folder


def test_foreign_int8_runs_one_by_one_so_company_changes_nothing(
    foreign_int8: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Law 2 and law 10: bit for bit alone and in company, said once in the log and in info()."""
    with caplog.at_level(logging.WARNING, logger="rerank_adapters"):
        backend = _backend(foreign_int8 / "model_quantized.onnx")
        batch = _batch(foreign_int8)
        together = backend.logits(batch)
        backend.logits(batch)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "one pair per forward" in backend.info()["fallback"]
    alone = [backend.logits(batch.take([row]))[0] for row in range(len(batch))]
    assert np.array_equal(together, np.stack(alone))
    backend.one_by_one = False
    assert not np.array_equal(backend.logits(batch), together), "else the rule would be needless"


def test_our_int8_needs_no_such_rule() -> None:
    """Per-row scales: one forward for the whole batch."""
    assert not _backend(exported("bert", "int8") / "model_int8.onnx").one_by_one


def test_a_damaged_file_is_refused_by_name(tmp_path: Path) -> None:
    """Truncated, empty, or no graph at all: ModelError with the path."""
    shutil.copytree(exported("bert"), tmp_path, dirs_exist_ok=True)
    data = (tmp_path / "model.onnx").read_bytes()
    for content in (data[: len(data) // 2], b"", b"no graph"):
        (tmp_path / "model.onnx").write_bytes(content)
        with pytest.raises(ModelError, match=r"could not load .*model\.onnx"):
            OnnxBackend(tmp_path / "model.onnx")


def test_a_graph_that_is_no_text_model_is_refused(tmp_path: Path) -> None:
    """Its inputs are named in the error."""
    node = onnx.helper.make_node("Identity", ["pixel_values"], ["logits"])
    kind = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node], "g", [kind("pixel_values", 1, [1])], [kind("logits", 1, [1])]
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    model.ir_version = 10
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(ModelError, match=r"no text cross-encoder: its inputs are .*pixel_values"):
        OnnxBackend(tmp_path / "model.onnx")


def test_a_closed_backend_says_so() -> None:
    """Later calls raise ClosedError."""
    backend = _backend(exported("bert") / "model.onnx")
    backend.close()
    with pytest.raises(ClosedError):
        backend.logits(_batch(exported("bert")))


def test_workers_run_forwards_at_once() -> None:
    """With num_workers=2 a second request is served while the first one's forward is held."""
    backend = HeldBackend()
    with reranker_over(CountingBackend()) as one:
        assert one.info().workers == 1
    with reranker_over(backend, num_workers=2) as two:
        assert two.info().workers == 2
        held = two.submit("q", ["a"])
        assert backend.entered.wait(60)
        assert len(two.submit("q", ["b"]).result(60)) == 1
        assert not held.done()
        backend.release.set()
        assert len(held.result(60)) == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_a_backend_says_how_many_workers_suit_it(workers) -> None:
    """While one forward is held, a second request is served by the second worker or waits."""
    backend = HeldBackend()
    backend.traits = replace(backend.traits, workers=workers)
    with reranker_over(backend) as reranker:
        held = reranker.submit("q", ["a"])
        assert backend.entered.wait(60)
        second = reranker.submit("q", ["b"])
        if workers == 2:
            assert len(second.result(60)) == 1
        else:
            assert queued_pairs(reranker) == 1
        assert not held.done()
        backend.release.set()
        assert len(held.result(60)) == len(second.result(60)) == 1
