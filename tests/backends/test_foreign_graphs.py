"""ONNX files of others: judged when they are loaded, and read for what they are.

The graphs are made by hand, so that what they give is worked out by hand too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

from rerank_adapters import ModelError, Reranker
from rerank_adapters.backends.onnx import OnnxBackend, _Memory
from rerank_adapters.tokenization import PairTokenizer
from rerank_adapters.tokens import TokenBatch
from tests.checkpoints import PAIRS
from tests.exported import exported
from tests.replicas import save_decoder

WORDS = 40
TABLE = np.random.default_rng(7).normal(size=(WORDS, WORDS)).astype(np.float32)
"""Row: the last token; column: the logit of each word of the vocabulary after it."""


def batch_of(rows: Sequence[Sequence[int]]) -> TokenBatch:
    """Token ids, row after row."""
    ids = np.array([it for row in rows for it in row], dtype=np.int32)
    return TokenBatch(ids, np.zeros_like(ids), np.array([len(row) for row in rows]))


def graph(
    file: Path,
    nodes: Sequence[onnx.NodeProto],
    outputs: dict[str, Sequence[int | str]],
    *,
    shape: Sequence[int | str] = ("batch", "tokens"),
    mask: int = TensorProto.INT64,
    constants: dict[str, NDArray[Any]] | None = None,
) -> Path:
    """Save *nodes* over `input_ids` and `attention_mask` of *shape*."""
    made = helper.make_graph(
        list(nodes),
        "by_hand",
        [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, shape),
            helper.make_tensor_value_info("attention_mask", mask, shape),
        ],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes)
            for name, sizes in outputs.items()
        ],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, file)
    return file


def sums(file: Path, **options: Any) -> Path:
    """A graph whose logit is the sum of a row's ids that are not masked."""
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["ids"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["attention_mask"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["ids", "real"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "axis"], ["logits"], keepdims=1),
    ]
    axis = {"axis": np.array([1], dtype=np.int64)}
    return graph(file, nodes, {"logits": ("batch", 1)}, constants=axis, **options)


def whole_vocabulary(file: Path, table: NDArray[np.float32] = TABLE) -> Path:
    """A language model that looks at the last token alone."""
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["logits"], axis=0)]
    size = table.shape[1]
    outputs = {"logits": ("batch", "tokens", size)}
    return graph(file, nodes, outputs, constants={"table": table})


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("answers", [(3, 9), (3, None)])
def test_logits_of_a_vocabulary_are_read_at_the_answers(
    tmp_path: Path, side: Any, answers: tuple[int, int | None]
) -> None:
    """The lead of yes over no after each row's last real token, padded on either side."""
    file = whole_vocabulary(tmp_path / "model.onnx")
    backend = OnnxBackend(file, answers=answers, pad_side=side, pad_id=0, labels=1)
    rows, (yes, no) = [[5, 6, 7], [8], [0, 30, 0]], answers
    expected = [TABLE[row[-1], yes] - (0 if no is None else TABLE[row[-1], no]) for row in rows]
    np.testing.assert_array_equal(backend.logits(batch_of(rows))[:, 0], np.float32(expected))


def test_a_language_model_of_others_scores_by_its_words(tmp_path: Path) -> None:
    """Through Reranker: template and answers as arguments, no torch, no manifest."""
    save_decoder(tmp_path)
    size = len(PairTokenizer.from_folder(tmp_path)._plain.tokenizer.get_vocab())
    table = np.random.default_rng(1).normal(size=(size, size)).astype(np.float32)
    whole_vocabulary(tmp_path / "model.onnx", table)
    options: dict[str, Any] = {"answers": ("yes", "no"), "activation": "identity"}
    with Reranker(str(tmp_path), backend="onnx", template="{document} {query}", **options) as it:
        pairs = [("lamp", "one"), ("bread", "two"), ("lamp oil", "three")]
        tokenizer = PairTokenizer.from_folder(tmp_path)
        words = [tokenizer._plain.tokenizer.token_to_id(word) for word in ("yes", "no")]
        last = [tokenizer._plain.ids(f"{document} {query}")[-1] for query, document in pairs]
        expected = [table[token, words[0]] - table[token, words[1]] for token in last]
        np.testing.assert_allclose(it.score_pairs(pairs), expected, rtol=0, atol=1e-6)


def test_what_is_not_a_reranker_s_graph_is_refused_when_loaded(tmp_path: Path) -> None:
    """Hidden states, a vocabulary without answers, labels that config.json does not state."""
    file = whole_vocabulary(tmp_path / "model.onnx")
    with pytest.raises(ModelError, match=r"shape \(batch, sequence, 40\).*without its head.*answ"):
        OnnxBackend(file)
    with pytest.raises(ModelError, match=r"shape \(1, 1\).*states 3 label"):
        OnnxBackend(sums(tmp_path / "sums.onnx"), labels=3)


@pytest.mark.parametrize("shape", [(1, 6), (4, 6), ("batch", 6), (2, "tokens")])
def test_fixed_shapes_are_padded_to(tmp_path: Path, shape: tuple[int | str, int | str]) -> None:
    """Rows that the graph wants more are repeated, columns are masked; scores are by hand."""
    backend = OnnxBackend(sums(tmp_path / "model.onnx", shape=shape), pad_id=9, max_length=6)
    rows = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10], [11, 12], [13]]
    assert backend.logits(batch_of(rows))[:, 0].tolist() == [sum(row) for row in rows]


def test_a_fixed_length_below_the_limit_is_refused(tmp_path: Path) -> None:
    """The cure is max_length; what it takes is said when it is loaded."""
    file = sums(tmp_path / "model.onnx", shape=("batch", 6))
    with pytest.raises(ModelError, match=r"takes exactly 6 tokens.*may have 8: pass max_length=6"):
        OnnxBackend(file, max_length=8)


@pytest.mark.parametrize("mask", [TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.INT32])
def test_inputs_are_fed_in_the_types_asked_for(tmp_path: Path, mask: int) -> None:
    """Half precision masks of float16 exports, and int32."""
    backend = OnnxBackend(sums(tmp_path / "model.onnx", mask=mask))
    assert backend.logits(batch_of([[1, 2], [4, 5, 6]]))[:, 0].tolist() == [3, 15]


def test_of_several_outputs_the_one_that_scores_is_read(tmp_path: Path) -> None:
    """The only one with a number per pair; where two have, it cannot be told."""
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["hidden"], axis=0),
        helper.make_node("ReduceSum", ["hidden", "axes"], ["one"], keepdims=0),
        helper.make_node("Neg", ["one"], ["two"]),
    ]
    constants = {"table": TABLE, "axes": np.array([1, 2], dtype=np.int64)}
    hidden, row = {"hidden": ("batch", "tokens", WORDS)}, ("batch",)
    file = graph(tmp_path / "a.onnx", nodes, {**hidden, "one": row}, constants=constants)
    found = OnnxBackend(file, labels=1).logits(batch_of([[3, 4], [5, 6]]))
    expected = [TABLE[[3, 4]].sum(), TABLE[[5, 6]].sum()]
    np.testing.assert_allclose(found[:, 0], expected, rtol=0, atol=1e-4)
    file = graph(tmp_path / "b.onnx", nodes, {"one": row, "two": row}, constants=constants)
    with pytest.raises(ModelError, match="several outputs and none is called 'logits': one, two"):
        OnnxBackend(file)


def test_four_bits_rank_near_float32(tmp_path: Path) -> None:
    """A 4-bit file runs, and its scores follow those of the file it was made of."""
    quantizer = MatMulNBitsQuantizer(onnx.load(exported("bert") / "model.onnx"), block_size=32)
    quantizer.process()
    onnx.save(quantizer.model.model, tmp_path / "model_q4.onnx")
    batch = PairTokenizer.from_folder(exported("bert")).encode(PAIRS).batch
    ours = OnnxBackend(tmp_path / "model_q4.onnx").logits(batch)[:, 0]
    expected = OnnxBackend(exported("bert") / "model.onnx").logits(batch)[:, 0]
    assert not np.array_equal(ours, expected)
    # 16 steps a block of 32 weights, random ones: the order is kept on the whole.
    assert np.corrcoef(ours, expected)[0, 1] > 0.9


def outer(file: Path) -> Path:
    """A graph that takes tokens² float32 of memory, as attention does."""
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["ids"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["ids", "last"], ["column"]),
        helper.make_node("Unsqueeze", ["ids", "first"], ["row"]),
        helper.make_node("MatMul", ["column", "row"], ["square"]),
        helper.make_node("ReduceMax", ["square"], ["most"], axes=[1, 2], keepdims=0),
    ]
    constants = {"last": np.array([2], dtype=np.int64), "first": np.array([1], dtype=np.int64)}
    return graph(file, nodes, {"most": ("batch",)}, constants=constants)


def resident() -> int:
    """Megabytes of memory that the process holds."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) // 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_comes_back_after_a_long_document(tmp_path: Path) -> None:
    """One of 8,192 tokens takes 256 MB here; onnxruntime's arena would keep them for good."""
    long, short = batch_of([[3] * 8192]), batch_of([[2] * 20])
    kept = {}
    for gives_back in (True, False):
        backend = OnnxBackend(outer(tmp_path / "model.onnx"), num_threads=1)
        if not gives_back:
            backend._memory = _Memory(None)
        backend.logits(short)
        before = resident()
        assert backend.logits(long)[0, 0] == 9
        backend.logits(short)
        kept[gives_back] = resident() - before
        backend.close()
    assert kept[True] < 60
    assert kept[False] > 200


def test_forwards_of_the_usual_size_do_not_shrink_the_arena() -> None:
    """Asked for after a long one, until a forward that asked ended with none beside it."""
    memory = _Memory(512)
    with memory.around(512) as options:
        assert options is None
    with memory.around(20) as early:
        with memory.around(513) as options:
            assert options is not None
        assert early is None
    with memory.around(20) as options:  # what ran beside the long one kept its part of the arena
        assert options is not None
    with memory.around(20) as options:
        assert options is None
