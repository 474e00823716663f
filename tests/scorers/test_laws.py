"""The laws of scoring, for every kind of checkpoint on every backend.

The numbers to meet are sentence-transformers' own. Tolerances are on logits whose standard
deviation over PAIRS is 1.5 (`checkpoints.TARGET_STD`).
"""

from __future__ import annotations

import functools
import itertools
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper

from rerank_adapters import Reranker, RerankerConfig
from rerank_adapters.backends import BACKENDS as REGISTRY
from rerank_adapters.backends.onnx import OnnxBackend
from rerank_adapters.backends.torch import loading
from rerank_adapters.protocols import Backend, BackendTraits
from rerank_adapters.tokens import Scores, TokenBatch
from tests.checkpoints import KINDS, PAIRS, TARGET_STD, Activation, build, encoder_for, oracle
from tests.exported import exported
from tests.parts import Parts, parts_of

OPENVINO = pytest.param(
    "openvino",
    marks=pytest.mark.skipif(
        not REGISTRY["openvino"].installed, reason="openvino is not installed: make test-neighbours"
    ),
)
BACKENDS = ("onnx", "torch", OPENVINO)
ORACLE_ATOL = 1e-4  # law 1: float32 sums in another order, through two or three layers
MATES_ATOL = {
    "onnx": 1e-5,
    "openvino": 1e-5,
    "torch": 1e-4,
}  # law 2: the same graph; other kernels for other shapes

# Kinds whose models have more than one token type; in the others type ids change nothing.
TYPED = ("bert", "electra", "bert_two_labels", "bert_128", "modular_bert", "bert_half")
# Where both backends run the same code before or after the network, torch is asked for these alone.
SOME = ("bert", "modernbert", "bert_two_labels", "qwen3")
# The chat template alone is longer than the others' short limit.
SHORT = {kind: 150 if kind == "qwen3" else 48 for kind in KINDS}

Load = Callable[..., Reranker]


def _config(
    kind: str,
    backend: str,
    *,
    dtype: str = "float32",
    activation: str = "default",
    max_length: int | None = None,
    truncation: str = "longest_first",
    prompt: str | None = None,
) -> RerankerConfig:
    folder = exported(kind, "int8" if dtype == "int8" else "float32")
    return RerankerConfig(
        model=str(build(kind) if REGISTRY[backend].reads == "weights" else folder),
        backend=backend,
        dtype=dtype,
        device="cpu",
        num_threads=None if backend == "torch" else 1,
        activation=activation,
        max_length=max_length,
        truncation=truncation,
        prompt=prompt,
        special_tokens="as_tokens",  # as the oracle has it, in a template too
        local_files_only=True,
    )


PARTS: dict[Reranker, Parts] = {}
"""The tokenizer, family and backends of each reranker that `load` gave out."""


@pytest.fixture(scope="module")
def load() -> Iterator[Load]:
    """`load(kind, backend, ...)`: a Reranker; each configuration is loaded once."""
    loaded: dict[RerankerConfig, Parts] = {}

    def get(kind: str, backend: str, **options: object) -> Reranker:
        config = _config(kind, backend, **options)
        if config not in loaded:
            loaded[config] = parts_of(config)
            PARTS[loaded[config].reranker] = loaded[config]
        return loaded[config].reranker

    yield get
    for parts in loaded.values():
        parts.reranker.close()


@functools.cache
def expected(
    kind: str,
    activation: Activation = "default",
    max_length: int | None = None,
    truncation: Literal["longest_first", "only_second"] = "longest_first",
    prompt: str | None = None,
) -> Scores:
    """sentence-transformers' scores of PAIRS, computed once."""
    return oracle(
        build(kind),
        PAIRS,
        activation=activation,
        max_length=max_length,
        truncation=truncation,
        prompt=prompt,
    )


def agree(scores: Scores, wanted: Scores, *, atol: float = ORACLE_ATOL) -> None:
    """The comparison of laws 1 and 2; the mutants below show what it catches."""
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, wanted, rtol=0, atol=atol)


# ---------------------------------------------------------------- the checkpoints are worth asking


def test_logits_are_spread(kind: str):
    """Logits over PAIRS have a standard deviation of at least 0.5, so agreement means something."""
    assert expected(kind, "identity").std() == pytest.approx(TARGET_STD, rel=0.01)


def test_pairs_hold_the_hard_cases(kind: str):
    """Among PAIRS are empty, blank, non-Latin, duplicate and truncated texts for every kind."""
    encoder = encoder_for(build(kind))
    lengths = [
        len(encoder.tokenizer(query, text, verbose=False)["input_ids"]) for query, text in PAIRS
    ]
    assert sum(length > encoder.max_seq_length for length in lengths) >= 5
    assert len(set(PAIRS)) < len(PAIRS)
    assert {"", " \n\t "} <= {text for _, text in PAIRS}
    for script in ("日", "م", "서", "🙂"):
        assert any(script in query + text for query, text in PAIRS)


# ------------------------------------------------------------------------------------------- law 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_equal_sentence_transformers(load: Load, kind: str, backend: str):
    """Law 1: float32 logits are those of CrossEncoder.predict without an activation."""
    scores = load(kind, backend, activation="identity").score_pairs(PAIRS)
    agree(scores, expected(kind, "identity"))


@pytest.mark.parametrize(
    ("kind", "backend"),
    [*((kind, "onnx") for kind in KINDS), *((kind, "torch") for kind in SOME)],
)
def test_scores_equal_sentence_transformers(load: Load, kind: str, backend: str):
    """Law 1: after the checkpoint's own activation too; it is the same code on both backends."""
    agree(load(kind, backend).score_pairs(PAIRS), expected(kind))


def test_onnx_equals_torch(load: Load, kind: str):
    """Law 1: the two backends agree directly, not only each with the oracle."""
    onnx, torch = (
        load(kind, it, activation="identity").score_pairs(PAIRS) for it in ("onnx", "torch")
    )
    agree(onnx, torch)


@pytest.mark.parametrize(
    ("kind", "backend"),
    [*((kind, "onnx") for kind in KINDS), *((kind, "torch") for kind in SOME)],
)
def test_a_shorter_max_length_truncates_as_sentence_transformers_does(
    load: Load, kind: str, backend: str
):
    """Law 1, truncation: with a short max_length most pairs are cut, longest text first."""
    limit = SHORT[kind]
    reranker = load(kind, backend, activation="identity", max_length=limit)
    agree(reranker.score_pairs(PAIRS), expected(kind, "identity", limit))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "qwen3"])
def test_only_second_truncates_as_transformers_does(load: Load, kind: str):
    """truncation="only_second" cuts the document alone, where the query leaves it room."""
    reranker = load(kind, "onnx", activation="identity", max_length=48, truncation="only_second")
    short = [index for index, (query, _) in enumerate(PAIRS) if len(query) < 40]
    scores = reranker.score_pairs([PAIRS[index] for index in short])
    wanted = oracle(
        build(kind),
        [PAIRS[index] for index in short],
        activation="identity",
        max_length=48,
        truncation="only_second",
    )
    agree(scores, wanted)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("prompt", ["find the passage: ", ""])
@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_prompt_equals_sentence_transformers(load: Load, kind: str, backend: str, prompt: str):
    """A prompt stands where sentence-transformers puts it; "" drops the stored one."""
    scores = load(kind, backend, activation="identity", prompt=prompt).score_pairs(PAIRS)
    agree(scores, expected(kind, "identity", None, "longest_first", prompt))


@pytest.mark.parametrize("prompt", ["Find the passage that answers.", ""])
def test_prompt_of_a_causal_reranker_is_its_instruction(load: Load, prompt: str):
    """The prompt of a chat-template reranker becomes its system message."""
    scores = load("qwen3", "torch", activation="identity", prompt=prompt).score_pairs(PAIRS)
    agree(scores, expected("qwen3", "identity", None, "longest_first", prompt))


def test_half_precision_weights_run_in_float32_on_cpu():
    """A checkpoint stored in float16 scores as float32 on CPU unless half was asked for."""
    with Reranker.from_pretrained(
        str(build("bert_half")), backend="torch", device="cpu", activation="identity"
    ) as reranker:
        agree(reranker.score_pairs(PAIRS), expected("bert_half", "identity"))
        assert reranker.info().dtype == "float32"


# ------------------------------------------------------------------------------------------- law 2


def _companies(pairs: int) -> list[NDArray[np.int64]]:
    """Random batches of 2 to 11 rows that together hold every row three times, shuffled."""
    rng = np.random.default_rng(7)
    companies = []
    for _ in range(3):
        order = rng.permutation(pairs)
        cuts = np.cumsum(rng.integers(2, 12, size=pairs))
        companies += [part for part in np.split(order, cuts[cuts < pairs]) if len(part)]
    return companies


def _assert_company_does_not_matter(
    reranker: Reranker, same: Callable[[Scores, Scores], None]
) -> None:
    parts = PARTS[reranker]
    batch = parts.encode(PAIRS)
    alone = parts.alone(batch)
    for rows in _companies(len(batch)):
        same(parts.forward(batch.take(rows)), alone[rows])
    same(reranker.score_pairs(PAIRS), alone)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_float32_score_does_not_depend_on_its_batch(load: Load, kind: str, backend: str):
    """Law 2: alone, in random company of all lengths, and through the queue: one score."""
    atol = MATES_ATOL[backend]
    _assert_company_does_not_matter(
        load(kind, backend, activation="identity"), functools.partial(agree, atol=atol)
    )


def test_an_int8_score_does_not_depend_on_its_batch(load: Load, kind: str):
    """Law 2: our int8 scales activations per row, so company changes no bit."""
    _assert_company_does_not_matter(
        load(kind, "onnx", activation="identity", dtype="int8"), np.testing.assert_array_equal
    )


@pytest.mark.skipif(
    not loading._cpu_runs(torch.bfloat16), reason="this CPU has no bfloat16 instructions"
)
@pytest.mark.parametrize("kind", ["bert", "roberta", "modernbert", "qwen3"])
def test_bfloat16_keeps_the_ranking_up_to_its_drift(load: Load, kind: str):
    """Law 2, half precision: pairs further apart than twice the drift keep their order.

    The drift itself stays under a tenth of the logits' spread (bfloat16 keeps 8 bits: 2**-8 per
    operation, through three layers).
    """
    half = load(kind, "torch", activation="identity", dtype="bfloat16")
    parts = PARTS[half]
    alone, together = parts.alone(parts.encode(PAIRS)), half.score_pairs(PAIRS)
    exact = expected(kind, "identity")
    drift = max(np.abs(alone - exact).max(), np.abs(together - exact).max())
    assert drift < 0.1 * TARGET_STD
    apart = np.subtract.outer(exact, exact) > 2 * drift
    assert np.all(np.subtract.outer(together, together)[apart] > 0)


# --------------------------------------------------- mutants: what the comparison above must catch


@dataclass(frozen=True, eq=False, kw_only=True)
class _Arrays(TokenBatch):
    """A TokenBatch whose padded arrays went through *change*, before any backend sees them."""

    change: Callable[..., tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]

    def padded(self, pad_id: int, side: Literal["left", "right"] = "right"):
        return self.change(*super().padded(pad_id, side))


@dataclass
class Mutant:
    """A Backend that hands a changed batch to the real one."""

    inner: Backend
    change: Callable[[TokenBatch], TokenBatch]

    @property
    def traits(self) -> BackendTraits:
        return self.inner.traits

    def logits(self, batch: TokenBatch) -> NDArray[np.float32]:
        return self.inner.logits(self.change(batch))

    def info(self) -> dict[str, str]:
        return self.inner.info()

    def close(self) -> None:
        """The real backend belongs to its reranker."""


def _types_zeroed(batch: TokenBatch) -> TokenBatch:
    return TokenBatch(batch.input_ids, np.zeros_like(batch.type_ids), batch.lengths)


def _one_token_less(batch: TokenBatch) -> TokenBatch:
    """Each pair without the last token of its text, the closing special token kept."""
    last = batch.offsets[1:] - 2
    return TokenBatch(
        np.delete(batch.input_ids, last), np.delete(batch.type_ids, last), batch.lengths - 1
    )


def _padding_attended(batch: TokenBatch) -> TokenBatch:
    def change(ids, mask, types):
        return ids, np.ones_like(mask), types

    return _Arrays(batch.input_ids, batch.type_ids, batch.lengths, change=change)


def _positions_shifted(batch: TokenBatch) -> TokenBatch:
    """The second half of each pair stands one position on, behind a token nobody attends to.

    Moving a whole text would change nothing where positions are relative; moving half of it does,
    for every kind. The filler is a real token, because RoBERTa counts tokens that are not padding.
    """

    def change(ids, mask, types):
        rows = np.arange(len(ids))
        width = ids.shape[1]
        first = mask.argmax(axis=1)  # left padding comes before, right padding after
        middle = first + mask.sum(axis=1) // 2
        source = np.arange(width + 1)[None, :] - (np.arange(width + 1)[None, :] > middle[:, None])
        moved = [np.take_along_axis(array, source, axis=1) for array in (ids, mask, types)]
        moved[1][rows, middle] = 0
        return tuple(moved)

    return _Arrays(batch.input_ids, batch.type_ids, batch.lengths, change=change)


def _causal_positions_shifted(file: Path) -> Path:
    """A copy of a causal graph in which every token after the 60th stands one position further on.

    Our causal exports count positions by the mask, so no input can shift them: the graph must.
    """
    model = onnx.load(file)
    counting = next(node for node in model.graph.node if node.op_type == "CumSum")
    right, counting.output[0] = counting.output[0], "counted"
    nodes = [
        helper.make_node("Constant", [], ["sixty"], value_int=60),
        helper.make_node("Greater", ["counted", "sixty"], ["late"]),
        helper.make_node("Cast", ["late"], ["one_more"], to=onnx.TensorProto.INT64),
        helper.make_node("Add", ["counted", "one_more"], [right]),
    ]
    index = list(model.graph.node).index(counting) + 1
    for offset, node in enumerate(nodes):
        model.graph.node.insert(index + offset, node)
    shifted = file.with_name("shifted.onnx")
    onnx.save(model, shifted)
    return shifted


MUTANTS = {
    "type ids zeroed": _types_zeroed,
    "positions shifted": _positions_shifted,
    "padding attended": _padding_attended,
    "one token less": _one_token_less,
}


def _mutant(kind: str, mutant: str, parts: Parts, folder: Path) -> Backend:
    if (kind, mutant) == ("qwen3", "positions shifted"):
        file = shutil.copy(exported(kind) / "model.onnx", folder)
        tokenizer = parts.meaning.tokenizer
        return OnnxBackend(
            _causal_positions_shifted(Path(file)),
            device="cpu",
            pad_id=tokenizer.pad_id,
            pad_side=tokenizer.pad_side,
        )
    return Mutant(parts.loaded.backends[0], MUTANTS[mutant])


def _scores_of(parts: Parts, backend: Backend, pairs: Sequence[tuple[str, str]]) -> Scores:
    """Scores of *pairs* by *backend* instead of the model's own, in batches of 8 mixed lengths."""
    batch = parts.encode(pairs)
    slices = [range(at, min(at + 8, len(batch))) for at in range(0, len(batch), 8)]
    logits = np.concatenate([backend.logits(batch.take(rows)) for rows in slices])
    return parts.meaning.family.scores(logits)


def _uncut(parts: Parts) -> list[int]:
    """Indices of the pairs that leave a position free: the shifted mutant needs one more."""
    most = parts.meaning.tokenizer.max_length
    return [row for row, length in enumerate(parts.encode(PAIRS).lengths) if length < most]


@pytest.mark.parametrize(
    ("kind", "mutant"),
    [
        (kind, mutant)
        for kind, mutant in itertools.product(KINDS, MUTANTS)
        if mutant != "type ids zeroed" or kind in TYPED
    ],
)
def test_mutant_fails_the_comparison(load: Load, tmp_path: Path, kind: str, mutant: str):
    """Each mutant fails where the unchanged backend, driven the same way, passes."""
    parts = PARTS[load(kind, "onnx", activation="identity")]
    rows = _uncut(parts)
    pairs, wanted = [PAIRS[row] for row in rows], expected(kind, "identity")[rows]
    agree(_scores_of(parts, parts.loaded.backends[0], pairs), wanted)
    broken = _mutant(kind, mutant, parts, tmp_path)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        agree(_scores_of(parts, broken, pairs), wanted)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in TYPED])
def test_type_ids_change_nothing_where_a_model_has_one_type(load: Load, kind: str):
    """The kinds left out above: their scores are the same with type ids zeroed."""
    parts = PARTS[load(kind, "onnx", activation="identity")]
    zeroed = Mutant(parts.loaded.backends[0], _types_zeroed)
    agree(_scores_of(parts, zeroed, PAIRS), expected(kind, "identity"))
