"""The torch backend on a real CUDA device: right, never waiting, standing when memory runs out."""

from __future__ import annotations

import functools
import gc
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForSequenceClassification

from rerank_adapters import Reranker
from rerank_adapters.backends.torch import TorchBackend, attention, parity, passes
from rerank_adapters.tokens import TokenBatch
from tests.backends.test_torch import _batch, _load, _loaded, _tokenizer
from tests.checkpoints import PAIRS, build

pytestmark = pytest.mark.gpu

PACKED = [
    "bert", "roberta", "xlm_roberta", "electra", "distilbert", "modernbert", "qwen3", "modular_bert"
]  # fmt: skip
CLOSE = 1e-4  # law 1
HALF = {"float16": 0.06, "bfloat16": 0.5}
"""How far half precision may be from float32: on the CPU these tiny networks, whose weights are ten
times the usual size, are off by 0.02 (11 bits) and 0.2 (8 bits) on logits of deviation 1.5."""


def _on_cuda(kind: str, dtype: str = "auto") -> TorchBackend:
    return _load(kind, device="cuda", dtype=dtype)


@functools.cache
def _expected(kind: str):
    """sentence-transformers' own forward on the CPU, float32, of the very ids the GPU is given.

    Its tokenizer is left out: some versions of `tokenizers` cut two long texts one token elsewhere.
    DeBERTa runs on CUDA here too: transformers rounds a logarithm up to find its position buckets,
    and where that should be a whole number the two devices' logarithms fall on either side of it.
    """
    tokenizer = _tokenizer(kind)
    device = torch.device("cuda" if kind == "deberta_v2" else "cpu")
    padded = passes.PaddedPass(
        _loaded(kind, device=device), pad_id=tokenizer.pad_id, pad_side=tokenizer.pad_side
    )
    with torch.inference_mode():
        return padded(_batch(kind)).cpu().numpy()


def test_float32_equals_the_cpu(kind: str) -> None:
    """Law 1 across devices: CUDA in float32 gives sentence-transformers' logits of the CPU."""
    backend = _on_cuda(kind, "float32")
    np.testing.assert_allclose(backend.logits(_batch(kind)), _expected(kind), rtol=0, atol=CLOSE)
    assert backend.info()["device"] == "cuda:0"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_near_the_cpus_float32(kind: str, dtype: str) -> None:
    """Both half dtypes, for every kind, within what their bits can tell."""
    backend = _on_cuda(kind, dtype)
    np.testing.assert_allclose(
        backend.logits(_batch(kind)), _expected(kind), rtol=0, atol=HALF[dtype]
    )


@pytest.mark.parametrize("kind", PACKED)
def test_auto_is_float16_by_ragged_flash_attention(kind: str) -> None:
    """What runs by default: nothing padded, torch's own varlen kernel where torch has it."""
    info = _on_cuda(kind).info()
    assert info["dtype"] == "float16"
    assert info["layout"] == "packed", info
    assert info["attention"] == ("rectangle" if attention.flash is None else "varlen")


@pytest.mark.parametrize("kind", PACKED)
def test_the_ragged_kernel_agrees_with_the_rectangle(kind: str, monkeypatch) -> None:
    """Two kernels, one meaning; windows, causality and grouped heads included."""
    ragged = _on_cuda(kind).logits(_batch(kind))
    monkeypatch.setattr(parity, "_kernels", lambda device, dtype: (attention.rectangle,))
    padded = _on_cuda(kind).logits(_batch(kind))
    np.testing.assert_allclose(ragged, padded, rtol=0, atol=HALF["float16"])


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize(("dtype", "drift"), [("float32", CLOSE), ("float16", HALF["float16"])])
def test_company_does_not_change_a_score(kind: str, dtype: str, drift: float) -> None:
    """Law 2 on CUDA: each pair alone against all together; half precision rounds products anew."""
    backend, batch = _on_cuda(kind, dtype), _batch(kind)
    alone = np.concatenate([backend.logits(batch.take([row])) for row in range(len(batch))])
    np.testing.assert_allclose(alone, backend.logits(batch), rtol=0, atol=drift)


def test_auto_goes_on_to_bfloat16_where_float16_overflows(tmp_path: Path) -> None:
    """Logits beyond 65504 are finite in bfloat16, so that is what runs."""
    folder = Path(shutil.copytree(build("bert"), tmp_path / "bert"))
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        model.classifier.weight *= 1e6
    model.save_pretrained(folder)
    backend = _load("bert", folder, device="cuda")
    wide = torch.cuda.is_bf16_supported(including_emulation=False)
    assert backend.info()["dtype"] == ("bfloat16" if wide else "float32")
    assert np.isfinite(backend.logits(_batch("bert"))).all()


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")  # said once
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("kind", PACKED)
def test_nothing_waits_for_the_device_inside_a_batch(kind: str, dtype: str) -> None:
    """Any wait raises while a batch is copied and run; fetching the logits comes after."""
    backend = _on_cuda(kind, dtype)
    backend.logits(_batch(kind))  # lazy initialisation may wait, once
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.inference_mode():
            logits = backend._run(_batch(kind))
    finally:
        torch.cuda.set_sync_debug_mode(before)
    assert logits.device.type == "cuda"


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_batch_is_fetched_once(dtype: str) -> None:
    """By the profiler's count: one copy back, one wait, and no value read on the way."""
    backend = _on_cuda("bert", dtype)
    backend.logits(_batch("bert"))
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        backend.logits(_batch("bert"))
    names = [event.name for event in recorded.events()]
    assert sum(name.startswith("Memcpy DtoH") for name in names) == 1
    assert names.count("aten::_local_scalar_dense") == 0
    assert names.count("aten::nonzero") == 0
    assert names.count("cudaStreamSynchronize") <= 1
    copies = [name for name in names if name.startswith("Memcpy HtoD")]
    assert copies
    assert all("Pinned" in name for name in copies)


@pytest.mark.parametrize("workers", [None, 1])
def test_the_next_batch_is_copied_while_one_is_computed(workers: int | None) -> None:
    """By the profiler's times: copies begin inside kernels, unless one worker does all in turn."""
    texts = [f"{number} " + "the ferry sails at noon " * 80 for number in range(400)]
    with Reranker.from_pretrained(
        device="cuda", backend="torch", max_batch_tokens=16_384, num_workers=workers
    ) as reranker:
        expected = reranker.score("when does the ferry sail", texts)
        with profile(activities=[ProfilerActivity.CUDA]) as recorded:
            scores = reranker.score("when does the ferry sail", texts)
        assert reranker.stats()["batches"] > 8
    np.testing.assert_allclose(scores, expected, rtol=0, atol=HALF["float16"])
    spans = [
        (event.name.startswith("Memcpy HtoD"), event.time_range.start, event.time_range.end)
        for event in recorded.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    ]
    kernels = [(start, end) for copy, start, end in spans if not copy]
    copies = [start for copy, start, _ in spans if copy]
    inside = sum(any(start < at < end for start, end in kernels) for at in copies)
    assert len(copies) > 16
    assert inside == 0 if workers == 1 else inside > 0


def test_memory_that_runs_out_halves_the_batch() -> None:
    """On the real device: a batch too large for its memory is split until it fits; scores hold."""
    pairs = PAIRS * 60
    reranker = Reranker.from_pretrained(
        str(build("bert")), backend="torch", device="cuda", dtype="float32",
        activation="identity", max_batch_tokens=10**7, max_queue_pairs=10**5,
        max_queue_tokens=10**7,
    )  # fmt: skip
    total = torch.cuda.get_device_properties(0).total_memory
    try:
        reranker.score_pairs(PAIRS)  # kernels and workspaces are there before the limit is
        torch.cuda.empty_cache()
        # Room for cuBLAS's 32 MiB and some of the pairs; all of them at once need gigabytes.
        torch.cuda.set_per_process_memory_fraction(
            (torch.cuda.memory_reserved() + 128 * 2**20) / total
        )
        # Distinct texts: identical pairs would be scored once.
        marked = [(query, f"{text} {number}") for number, (query, text) in enumerate(pairs)]
        scores = reranker.score_pairs(marked)
        assert reranker.stats()["splits"] > 0
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    np.testing.assert_allclose(scores, reranker.score_pairs(marked), rtol=0, atol=CLOSE)
    reranker.close()


def test_out_of_memory_keeps_its_name() -> None:
    """The backend lets torch.OutOfMemoryError through and scores on afterwards."""
    backend = _on_cuda("bert", "float32")
    expected = backend.logits(_batch("bert"))
    total = torch.cuda.get_device_properties(0).total_memory
    large = TokenBatch.join([_batch("bert")] * 200)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 8 * 2**20) / total)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            backend.logits(large)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    np.testing.assert_allclose(backend.logits(_batch("bert")), expected, rtol=0, atol=CLOSE)


def test_close_gives_the_memory_back() -> None:
    """After close the device holds what it held before the load."""
    _on_cuda("bert").close()  # workspaces that torch keeps for the process are there now
    gc.collect()
    before = torch.cuda.memory_allocated()
    backend = _on_cuda("bert")
    backend.logits(_batch("bert"))
    assert torch.cuda.memory_allocated() > before
    backend.close()
    assert torch.cuda.memory_allocated() == before


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device is not two")
def test_several_devices_share_one_queue() -> None:
    """Two devices score what one does, and both take part."""
    options = {"backend": "torch", "dtype": "float32", "max_batch_tokens": 2048}
    both = Reranker.from_pretrained(str(build("bert")), device=["cuda:0", "cuda:1"], **options)
    one = Reranker.from_pretrained(str(build("bert")), device="cuda:0", **options)
    assert json.loads(json.dumps(both.info()))["devices"] == ["cuda:0", "cuda:1"]
    np.testing.assert_allclose(both.score_pairs(PAIRS), one.score_pairs(PAIRS), rtol=0, atol=CLOSE)
    both.close()
    one.close()
