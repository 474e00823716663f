"""The torch backend: the logits of sentence-transformers, unpadded or by a way that says so."""

from __future__ import annotations

import functools
import gc
import itertools
import json
import logging
import shutil
import threading
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AutoModelForSequenceClassification, AutoTokenizer

from rerank_adapters import BackendError, ClosedError, ConfigError, ModelError, Reranker
from rerank_adapters.backends.torch import (
    TorchBackend,
    attention,
    backend,
    convert_tokenizer,
    linears,
    loading,
    packing,
    parity,
    passes,
    render_chat,
    whole,
)
from rerank_adapters.backends.torch.loading import LoadedCrossEncoder, resolve_device, resolve_dtype
from rerank_adapters.backends.torch.traits import traits_of
from rerank_adapters.checkpoints import Checkpoint
from rerank_adapters.families import family_for
from rerank_adapters.loading import assemble
from rerank_adapters.protocols import BackendTraits
from rerank_adapters.tokenization import PairTokenizer
from rerank_adapters.tokens import PairText, TokenBatch
from tests.checkpoints import PAIRS, build, encoder_for, oracle

CLOSE = 1e-4  # law 1: float32 sums taken in another order
WRONG = 1e-2  # a mutant's logits are this far off at least; the logits' standard deviation is 1.5
PADDED = {"deberta_v2", "mpnet"}
ENCODERS = ["bert", "roberta", "xlm_roberta", "electra", "distilbert", "modernbert"]
BFLOAT16_HERE = resolve_device("cpu") and loading._cpu_runs(torch.bfloat16)


@functools.cache
def _tokenizer(kind: str) -> PairTokenizer:
    family = family_for(Checkpoint.read(build(kind)), render=render_chat)
    return PairTokenizer.from_folder(
        build(kind),
        prompt=family.prompt,
        template=family.template,
        position_limit=family.position_limit,
        special_tokens="as_tokens",  # as the oracle has it, in a template too
    )


@functools.cache
def _batch(kind: str) -> TokenBatch:
    return _tokenizer(kind).encode(PAIRS).batch


def _load(kind: str, folder: Path | None = None, **options) -> TorchBackend:
    tokenizer = _tokenizer(kind)
    return TorchBackend.from_folder(
        folder or build(kind),
        pad_id=tokenizer.pad_id,
        pad_side=tokenizer.pad_side,
        max_length=tokenizer.max_length,
        **{"device": "cpu", **options},
    )


@functools.cache
def _backend(kind: str) -> TorchBackend:
    return _load(kind)


@functools.cache
def _expected(kind: str):
    scores = encoder_for(build(kind)).predict(
        list(PAIRS), batch_size=8, show_progress_bar=False, activation_fn=torch.nn.Identity()
    )
    return np.asarray(scores, np.float32).reshape(len(PAIRS), -1)


# ------------------------------------------------------------------------------------- exactness


def test_logits_equal_sentence_transformers(kind: str) -> None:
    """Law 1, for every kind of checkpoint, empty, truncated and non-Latin pairs included."""
    logits = _backend(kind).logits(_batch(kind))
    assert logits.dtype == np.float32
    assert logits.shape == _expected(kind).shape
    np.testing.assert_allclose(logits, _expected(kind), rtol=0, atol=CLOSE)


def test_a_pair_scores_alone_as_in_company(kind: str) -> None:
    """Law 2: a pair by itself, and all pairs in another order, keep their logits."""
    batch, together = _batch(kind), _backend(kind).logits(_batch(kind))
    rows = range(0, len(batch), 3)
    alone = [_backend(kind).logits(batch.take([row])) for row in rows]
    np.testing.assert_allclose(np.concatenate(alone), together[rows], rtol=0, atol=CLOSE)
    order = np.random.default_rng(7).permutation(len(batch))
    np.testing.assert_allclose(
        _backend(kind).logits(batch.take(order)), together[order], rtol=0, atol=CLOSE
    )


def test_the_pass_is_packed_but_for_networks_that_cannot(kind: str) -> None:
    """DeBERTa and MPNet run padded and say why; every other kind runs without padding."""
    info = _backend(kind).info()
    assert info["layout"] == ("padded" if kind in PADDED else "packed")
    assert ("fallback" in info) == (kind in PADDED)
    traits = _backend(kind).traits
    assert (traits.wants, traits.pads) == ("tokens", kind in PADDED)


def test_info_says_what_runs() -> None:
    """Device, dtype, layout, attention, the products of linear layers, the last layer, versions."""
    info = _backend("bert").info()
    assert info["backend"] == "torch"
    assert info["device"] == "cpu"
    assert info["dtype"] == "float32"
    assert info["attention"] == "per_sequence"
    assert info["last_layer"] == "[CLS] rows"
    assert info["network"] == "BertForSequenceClassification"
    assert torch.__version__ in info["runtime"]


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("cpu", BackendTraits(batch_tokens=2048, max_padding=0.03, free_padding=24, workers=1)),
        ("cuda", BackendTraits(batch_tokens=65_536, free_padding=4096, workers=2)),
        ("mps", BackendTraits(batch_tokens=8192, free_padding=1024, workers=1)),
    ],
)
@pytest.mark.parametrize("packed", [True, False])
def test_traits_are_the_devices(device: str, expected: BackendTraits, packed: bool) -> None:
    """What suits a device, and that a forked child cannot go on; 10 % padding but on the CPU."""
    wants = "tokens" if packed else "texts"
    assert traits_of(device, packed=packed, wants=wants, parts=None, why_whole="") == replace(
        expected, device_kind=device, pads=not packed, survives_fork=False, wants=wants
    )
    for kind, packs in (("bert", True), ("mpnet", False)):
        traits = _backend(kind).traits
        whole = replace(traits, exit_layers=(), why_whole="")  # early exit has tests of its own
        assert whole == traits_of("cpu", packed=packs, wants="tokens", parts=None, why_whole="")


@pytest.mark.parametrize("kind", [*ENCODERS, "qwen3", "modular_bert"])
def test_the_padded_rectangle_kernel_is_exact_too(kind: str, monkeypatch) -> None:
    """The kernel of devices without ragged attention, tried here on the CPU."""
    monkeypatch.setattr(parity, "_kernels", lambda device, dtype: (attention.rectangle,))
    backend = _load(kind)
    assert backend.info()["attention"] == "rectangle"
    np.testing.assert_allclose(backend.logits(_batch(kind)), _expected(kind), rtol=0, atol=CLOSE)


def _varlen_attn(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1),
    enable_gqa=False,
):  # fmt: skip
    """What `torch.nn.attention.varlen.varlen_attn` documents, written out for the CPU."""
    assert max_q == max_k == int(cu_seq_q.diff().max())
    assert enable_gqa or query.shape[1] == key.shape[1]
    groups, outputs = query.shape[1] // key.shape[1], []
    for start, end in itertools.pairwise(cu_seq_k.tolist()):
        q, k, v = (states[start:end].transpose(0, 1) for states in (query, key, value))
        weights = q @ k.repeat_interleave(groups, 0).mT * (scale or q.shape[-1] ** -0.5)
        behind = torch.arange(end - start)[:, None] - torch.arange(end - start)
        left, right = (side if side >= 0 else end - start for side in window_size)
        weights = weights.masked_fill((behind > left) | (-behind > right), -torch.inf)
        outputs.append(weights.softmax(-1) @ v.repeat_interleave(groups, 0))
    return torch.cat(outputs, dim=1).transpose(0, 1)


@pytest.mark.parametrize("kind", [*ENCODERS, "qwen3"])
def test_torchs_ragged_kernel_is_asked_for_the_right_thing(kind: str, monkeypatch) -> None:
    """Bounds, windows, causality and grouped heads, as the CUDA kernel documents its arguments."""
    monkeypatch.setattr(attention, "flash", _varlen_attn)
    monkeypatch.setattr(parity, "_kernels", lambda device, dtype: (attention.varlen,))
    backend = _load(kind)
    assert backend.info()["attention"] == "varlen"
    np.testing.assert_allclose(backend.logits(_batch(kind)), _expected(kind), rtol=0, atol=CLOSE)


def test_grouped_heads_are_asked_for_only_where_torch_has_the_argument(monkeypatch) -> None:
    """In torch 2.10 and 2.11 the kernel groups heads by itself and knows no `enable_gqa`."""
    calls = []

    def of_torch_2_11(
        query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *,
        return_aux=None, scale=None, window_size=(-1, -1),
    ):  # fmt: skip
        calls.append(query.shape[1] // key.shape[1])
        return _varlen_attn(
            query, key, value, cu_seq_q, cu_seq_k, max_q, max_k,
            scale=scale, window_size=window_size, enable_gqa=True,
        )  # fmt: skip

    monkeypatch.setattr(attention, "flash", of_torch_2_11)
    monkeypatch.setattr(parity, "_kernels", lambda device, dtype: (attention.varlen,))
    backend = _load("qwen3")
    assert backend.info()["layout"] == "packed"
    np.testing.assert_allclose(
        backend.logits(_batch("qwen3")), _expected("qwen3"), rtol=0, atol=CLOSE
    )
    assert set(calls) == {2}


def test_modernberts_cls_pooling_is_found(tmp_path: Path) -> None:
    """The head reads the row its config names, whichever row that is."""
    folder = _copy("modernbert", tmp_path, classifier_pooling="cls")
    backend = _load("modernbert", folder)
    assert backend.info()["layout"] == "packed"
    expected = _predict(folder)
    np.testing.assert_allclose(backend.logits(_batch("modernbert")), expected, rtol=0, atol=CLOSE)
    assert np.abs(expected - _expected("modernbert")).max() > WRONG


def test_pad_tokens_written_in_a_text_are_counted_as_roberta_counts_them() -> None:
    """RoBERTa's positions skip the padding id wherever it stands, also inside a text."""
    pairs = [("bread", "rye <pad> wheat <pad><pad> oat, and then the long end of the loaf")]
    batch = _tokenizer("roberta").encode(pairs).batch
    assert np.count_nonzero(batch.input_ids == _tokenizer("roberta").pad_id) == 3
    expected = encoder_for(build("roberta")).predict(pairs, activation_fn=torch.nn.Identity())
    np.testing.assert_allclose(
        _backend("roberta").logits(batch)[:, 0], expected, rtol=0, atol=CLOSE
    )


# --------------------------------------------------------------------------------------- mutants


@pytest.mark.parametrize("kind", ENCODERS)
def test_position_ids_alone_do_not_keep_sequences_apart(kind: str) -> None:
    """What packing by position_ids would score, through transformers' own attention: wrong."""
    loaded = _loaded(kind)
    mutant = passes.PackedPass(loaded, kernel=attention.per_sequence)
    mutant.pooling = packing.mean_row if kind == "modernbert" else packing.first_row
    packed = mutant.pack(_batch(kind).take(range(4)))
    with torch.inference_mode():
        hidden = loaded.network.base_model(**packed.inputs)[0][0]
        logits = mutant.head(hidden, packed, mutant.pooling).numpy()
    assert np.abs(logits - _expected(kind)[:4]).max() > WRONG


@pytest.mark.parametrize("kind", ["bert", "electra", "modular_bert"])
def test_token_types_are_read(kind: str) -> None:
    """Dropping token_type_ids, as sentence-transformers' flattening does, changes the logits."""
    batch = _batch(kind)
    dropped = TokenBatch(batch.input_ids, np.zeros_like(batch.type_ids), batch.lengths)
    assert np.abs(_backend(kind).logits(dropped) - _expected(kind)).max() > WRONG


def _across(query, key, value, packing, shape):
    """Attention over the whole row, sequences or not."""
    return scaled_dot_product_attention(query, key, value, scale=shape.scale).transpose(1, 2)


def _windowless(query, key, value, packing, shape):
    bare = attention.Shape(scale=shape.scale, window=None, causal=shape.causal)
    return attention.per_sequence(query, key, value, packing, bare)


def _acausal(query, key, value, packing, shape):
    bare = attention.Shape(scale=shape.scale, window=shape.window, causal=False)
    return attention.per_sequence(query, key, value, packing, bare)


@pytest.mark.parametrize(
    ("kind", "kernel"),
    [*((kind, _across) for kind in ENCODERS), ("modernbert", _windowless), ("qwen3", _acausal)],
)
def test_a_wrong_kernel_is_found_at_load(kind: str, kernel, monkeypatch) -> None:
    """Attention across sequences, past the window or into the future: padded runs, and is right."""
    monkeypatch.setattr(parity, "_kernels", lambda device, dtype: (kernel,))
    backend = _load(kind)
    assert backend.info()["layout"] == "padded"
    assert "logits differ by" in backend.info()["fallback"]
    np.testing.assert_allclose(backend.logits(_batch(kind)), _expected(kind), rtol=0, atol=CLOSE)


def test_a_pass_wrong_by_a_thousandth_is_found_at_load(monkeypatch) -> None:
    """Law 1 at load: in float32 a thousandth of a logit is no rounding, and the pass is refused."""

    def off(query, key, value, packing, shape):
        return attention.per_sequence(query, key, value, packing, shape) + 1e-3

    monkeypatch.setattr(parity, "_kernels", lambda device, dtype: (off,))
    info = _load("bert").info()
    assert info["layout"] == "padded"
    gap = float(info["fallback"].partition("differ by ")[2].partition(" ")[0])
    assert 1e-4 < gap < 1e-2


@pytest.mark.parametrize("kind", ["roberta", "xlm_roberta"])
def test_positions_without_robertas_offset_are_found_at_load(kind: str, monkeypatch) -> None:
    """Positions counted from 0, where the network counts from padding_idx + 1, are refused."""
    monkeypatch.setattr(passes, "_offset_positions", lambda backbone: None)
    assert _load(kind).info()["layout"] == "padded"


def test_an_argument_our_attention_lacks_is_found_at_load(monkeypatch) -> None:
    """An attention argument that changes scores makes the pass padded, never silently wrong."""
    usual = AttentionInterface._global_mapping[attention.NAME]

    def with_softcap(*args, **options):
        return usual(*args, **options, softcap=30.0)

    monkeypatch.setitem(AttentionInterface._global_mapping, attention.NAME, with_softcap)
    info = _load("bert").info()
    assert info["layout"] == "padded"
    assert "softcap" in info["fallback"]


def test_wrong_products_of_linear_layers_are_undone(monkeypatch) -> None:
    """Private operators are tried at load; where they err the network's own layers come back."""
    monkeypatch.setattr(linears, "can_pack", lambda device, dtype: True)
    monkeypatch.setattr(linears.PackedLinear, "forward", lambda self, states: states * 0)
    monkeypatch.setattr(parity, "can_pack", lambda device, dtype: True)
    backend = _load("bert")
    assert backend.info()["linears"] == "torch"
    np.testing.assert_allclose(
        backend.logits(_batch("bert")), _expected("bert"), rtol=0, atol=CLOSE
    )


def test_a_layout_onednn_refuses_leaves_the_layers_as_they_were(monkeypatch) -> None:
    """A CPU that cannot lay weights out for a dtype loses speed by it, not the checkpoint."""
    prepare, made = linears.PackedLinear.__init__, []

    def second_refused(self, linear) -> None:
        if made:
            raise RuntimeError("the bf16 path needs CPU support")
        made.append(linear)
        prepare(self, linear)

    monkeypatch.setattr(parity, "can_pack", lambda device, dtype: True)
    monkeypatch.setattr(linears.PackedLinear, "__init__", second_refused)
    backend = _load("bert")
    assert made
    assert backend.info()["linears"] == "torch"
    layers = backend._loaded.network.modules()
    assert not any(isinstance(layer, linears.PackedLinear) for layer in layers)
    np.testing.assert_allclose(
        backend.logits(_batch("bert")), _expected("bert"), rtol=0, atol=CLOSE
    )


def test_a_wrong_last_layer_is_undone(monkeypatch) -> None:
    """Where gathering before the last feed-forward errs, every row goes through it again."""

    def second_rows(module, inputs, options, output):
        if options.get("packing") is None:
            return output
        return (output[0].index_select(1, options["packing"].offsets[:-1] + 1), *output[1:])

    monkeypatch.setattr(passes, "_first_rows_only", second_rows)
    backend = _load("bert")
    assert backend.info()["last_layer"] == "every row"
    np.testing.assert_allclose(
        backend.logits(_batch("bert")), _expected("bert"), rtol=0, atol=CLOSE
    )


# ------------------------------------------------------------------------------------- fallbacks


def test_a_fallback_is_named_once_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """One warning at load by the module's own logger; scoring adds nothing."""
    with caplog.at_level(logging.INFO, logger="rerank_adapters"):
        backend = _load("deberta_v2")
        backend.logits(_batch("deberta_v2").take([0, 1]))
        backend.logits(_batch("deberta_v2").take([0, 1]))
    ours = [it for it in caplog.records if it.name.startswith("rerank_adapters")]
    assert [it.levelname for it in ours] == ["WARNING"]
    assert backend.info()["fallback"] in ours[0].getMessage()


def test_other_ids_than_the_checkpoints_own_ask_for_texts() -> None:
    """Where the caller writes pairs otherwise, the checkpoint's own tokenizer is there for them."""
    backend = _load("roberta", encode=_shouting)
    assert backend.traits.wants == "texts"
    assert not backend.traits.pads
    assert backend.info()["layout"] == "packed"
    assert "with other ids" in backend.info()["fallback"]
    logits = backend.logits(_texts(PAIRS, max_length=192))
    np.testing.assert_allclose(logits, _expected("roberta"), rtol=0, atol=CLOSE)
    assert backend.logits(_texts([])).shape == (0, 1)
    with pytest.raises(BackendError, match=r"scored from texts .*: the batch has 0 for"):
        backend.logits(_batch("roberta"))


@pytest.mark.parametrize("kind", ["roberta", "qwen3"])
def test_texts_of_several_prompts_and_lengths_share_a_batch(kind: str, monkeypatch) -> None:
    """One pass for each prompt and length; every row is the oracle's for its own, in order."""
    backend = _load(kind, encode=_shouting)
    ways = [("find: ", 120), (None, 120), ("find: ", 90), (None, 90), ("", 90)]
    texts = [
        text
        for row, pair in enumerate(PAIRS[:15])
        for text in _texts([pair], *ways[row % len(ways)]).texts
    ]
    sizes = []
    run = backend._run
    monkeypatch.setattr(backend, "_run", lambda batch: sizes.append(len(batch)) or run(batch))
    logits = backend.logits(_texts_of(texts))[:, 0]
    assert sizes == [3] * len(ways)
    for number, (prompt, max_length) in enumerate(ways):
        rows = list(range(number, 15, len(ways)))
        expected = oracle(
            build(kind),
            [PAIRS[row] for row in rows],
            prompt=prompt,
            max_length=max_length,
            activation="identity",
        )
        np.testing.assert_allclose(logits[rows], expected, rtol=0, atol=CLOSE)


def test_the_prompt_of_the_configuration_is_the_texts_own() -> None:
    """A text without a prompt gets the one the backend was loaded with."""
    backend = _load("roberta", encode=_shouting, prompt="find: ")
    expected = oracle(build("roberta"), PAIRS[:9], prompt="find: ", activation="identity")
    np.testing.assert_allclose(
        backend.logits(_texts(PAIRS[:9], max_length=192))[:, 0], expected, rtol=0, atol=CLOSE
    )


def test_a_limit_stored_for_each_call_does_not_win(tmp_path: Path) -> None:
    """sentence-transformers would cut at the limit of its own settings, above the one asked for."""
    folder = Path(shutil.copytree(build("modular_bert"), tmp_path / "modular"))
    file = folder / "sentence_bert_config.json"
    stored = json.loads(file.read_text())
    stored["processing_kwargs"] = {"text": {"max_length": 100}}
    file.write_text(json.dumps(stored))
    backend = _load("modular_bert", folder, encode=_shouting)
    logits = backend.logits(_texts(PAIRS, max_length=40))[:, 0]
    expected = oracle(build("modular_bert"), PAIRS, max_length=40, activation="identity")
    np.testing.assert_allclose(logits, expected, rtol=0, atol=CLOSE)


def test_the_same_ids_ask_for_no_texts(kind: str) -> None:
    """Our pair encoding is the checkpoint's own, chat template and default prompt included."""
    backend = _load(kind, encode=lambda pairs: _tokenizer(kind).encode(pairs).batch)
    assert backend.traits.wants == "tokens", backend.fallback
    np.testing.assert_allclose(
        backend.logits(_batch(kind).take(range(9))), _expected(kind)[:9], rtol=0, atol=CLOSE
    )


REMOTE_CODE = '''
import torch
from transformers import BertConfig, BertForSequenceClassification


class OddConfig(BertConfig):
    model_type = "odd"


class OddBertForSequenceClassification(BertForSequenceClassification):
    """Counts the tokens its attention mask lets through; no attention interface."""

    config_class = OddConfig
    _supports_attention_backend = False

    def forward(self, input_ids=None, attention_mask=None, token_type_ids=None, **options):
        output = super().forward(
            input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        )
        output.logits = output.logits + 0.01 * attention_mask.sum(dim=1, keepdim=True)
        return output
'''


@pytest.fixture
def remote_code(tmp_path: Path, monkeypatch) -> Path:
    """A checkpoint whose network is code in its own folder."""
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules")
    )
    name = "OddBertForSequenceClassification"
    folder = _copy(
        "bert",
        tmp_path,
        model_type="odd",
        auto_map={
            "AutoConfig": "modeling_odd.OddConfig",
            "AutoModelForSequenceClassification": f"modeling_odd.{name}",
        },
        architectures=[name],
    )
    (folder / "modeling_odd.py").write_text(REMOTE_CODE)
    return folder


def test_remote_code_runs_padded_and_is_right(remote_code: Path) -> None:
    """A network of the checkpoint's own making goes the fallback way."""
    backend = _load("bert", remote_code, trust_remote_code=True)
    assert backend.info()["network"] == "OddBertForSequenceClassification"
    assert backend.info()["layout"] == "padded"
    expected = _expected("bert") + 0.01 * _batch("bert").lengths[:, None]
    np.testing.assert_allclose(backend.logits(_batch("bert")), expected, rtol=0, atol=CLOSE)


class _OldCrossEncoder(torch.nn.Module):
    """The shape of a CrossEncoder in early 5.x: one transformers model and its tokenizer."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.model = AutoModelForSequenceClassification.from_pretrained(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)


def test_a_cross_encoder_of_early_5x_is_packed_as_well() -> None:
    """Which API sentence-transformers has is asked of the object."""
    loaded = LoadedCrossEncoder(_OldCrossEncoder(build("bert")))
    backend = TorchBackend(loaded, pad_id=0, pad_side="right", encode=_shouting)
    assert backend.info()["layout"] == "packed"
    np.testing.assert_allclose(backend.logits(_texts(PAIRS)), _expected("bert"), rtol=0, atol=CLOSE)
    expected = oracle(build("bert"), PAIRS[:9], prompt="find: ", activation="identity")
    prompted = backend.logits(_texts(PAIRS[:9], "find: "))[:, 0]
    np.testing.assert_allclose(prompted, expected, rtol=0, atol=CLOSE)


def test_a_network_that_wants_more_than_ids_gets_its_own_features(monkeypatch) -> None:
    """Where padded ids do not give the right logits, sentence-transformers' preprocessing runs."""
    preprocess, forward = LoadedCrossEncoder.preprocess, LoadedCrossEncoder.forward

    def with_extra(self, pairs, prompt, max_length=None):
        return {**preprocess(self, pairs, prompt, max_length), "extra": torch.ones(1)}

    def needs_extra(self, features):
        known = dict(features)
        return forward(self, known) if known.pop("extra", None) is not None else None

    monkeypatch.setattr(LoadedCrossEncoder, "preprocess", with_extra)
    monkeypatch.setattr(LoadedCrossEncoder, "forward", needs_extra)
    backend = _load("bert")
    assert backend.info()["layout"] == "features"
    assert (backend.traits.wants, backend.traits.pads) == ("texts", True)
    np.testing.assert_allclose(backend.logits(_texts(PAIRS)), _expected("bert"), rtol=0, atol=CLOSE)
    with pytest.raises(BackendError, match=r"scored from texts \(it wants more than"):
        backend.logits(_batch("bert"))


# --------------------------------------------------------------------------------- dtype, device


def test_a_half_precision_checkpoint_is_upcast_on_the_cpu() -> None:
    """Dtype "auto" is float32 on the CPU, whatever the file is stored in."""
    stored = json.loads((build("bert_half") / "config.json").read_text())["dtype"]
    assert stored in ("float16", "bfloat16")
    assert _backend("bert_half").info()["dtype"] == "float32"


@pytest.mark.skipif(not BFLOAT16_HERE, reason="this CPU has no bfloat16 instructions")
@pytest.mark.parametrize("kind", ["bert", "xlm_roberta", "modernbert", "deberta_v2", "qwen3"])
def test_bfloat16_on_a_cpu_that_has_it(kind: str) -> None:
    """Explicit bfloat16 runs, packed where float32 is, near the float32 logits."""
    backend = _load(kind, dtype="bfloat16")
    assert backend.info()["dtype"] == "bfloat16"
    assert backend.info()["layout"] == _backend(kind).info()["layout"]
    # bfloat16 keeps 8 bits: a few hundredths on logits of standard deviation 1.5, some layers deep.
    np.testing.assert_allclose(backend.logits(_batch(kind)), _expected(kind), rtol=0, atol=0.25)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_a_half_dtype_this_cpu_lacks_is_an_error(name: str, monkeypatch) -> None:
    """Law 5: not a silent float32, and not a pass that is slower for the asking."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    with pytest.raises(BackendError, match=f"'{name}' was asked for and this CPU has none of"):
        _load("bert", dtype=name)


def _overflowing(tmp_path: Path) -> Path:
    folder = _copy("bert", tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        model.classifier.weight *= 1e6  # beyond float16's 65504
    model.save_pretrained(folder)
    return folder


def test_auto_goes_on_to_a_wider_dtype_where_one_overflows(tmp_path: Path, monkeypatch) -> None:
    """What "auto" does on CUDA, tried with the dtypes the CPU has."""
    monkeypatch.setattr(backend, "_dtypes", lambda name, device: (torch.float16, torch.float32))
    assert _load("bert", _overflowing(tmp_path)).info()["dtype"] == "float32"


def test_an_explicit_dtype_that_overflows_is_an_error(tmp_path: Path, monkeypatch) -> None:
    """float16 was asked for: no other dtype is put in its place."""
    monkeypatch.setattr(loading, "_cpu_runs", lambda dtype: True)
    with pytest.raises(BackendError, match=r"not finite in torch\.float16: pass another dtype"):
        _load("bert", _overflowing(tmp_path), dtype="float16")


def test_weights_that_are_not_finite_are_the_checkpoints_fault(tmp_path: Path) -> None:
    """No dtype helps: the error does not send its reader through all of them."""
    model = AutoModelForSequenceClassification.from_pretrained(build("bert"))
    with torch.no_grad():
        model.classifier.weight[0, 0] = torch.nan
    folder = shutil.copytree(build("bert"), tmp_path / "damaged")
    model.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"weights must give finite logits.*get them again"):
        _load("bert", folder)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dtype": "int8"}, ConfigError, 'dtype "int8" needs backend "onnx"'),
        ({"dtype": "float8"}, ConfigError, "dtype must be one of .*: got 'float8'"),
        ({"device": "tpu"}, ConfigError, "device must be .*: got 'tpu'"),
        ({"num_threads": 4}, ConfigError, "num_threads must be None .*: got 4"),
    ],
)
def test_arguments_out_of_range_are_refused(options, error, message) -> None:
    """Law 7: the field, the rule, the value, the cure."""
    with pytest.raises(error, match=message):
        _load("bert", **options)


def test_a_device_that_is_not_there_is_an_error_with_the_cure(monkeypatch) -> None:
    """Law 5: never a silent CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(BackendError, match=r"'cuda:1' was asked for .* CUDA build of torch"):
        resolve_device("cuda:1")
    with pytest.raises(BackendError, match=r'"mps" was asked for .* pass device="cpu"'):
        resolve_device("mps")
    assert resolve_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(BackendError, match=r"'cuda:1' .* sees 1 CUDA device\(s\)"):
        resolve_device("cuda:1")
    assert resolve_device("auto") == torch.device("cuda")
    assert resolve_dtype("auto", torch.device("cuda")) is torch.float16


def test_a_checkpoint_that_cannot_be_loaded_is_a_model_error(
    tmp_path: Path, remote_code: Path
) -> None:
    """An empty folder, damaged weights, and remote code that was not trusted."""
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        _load("bert", empty)
    with pytest.raises(ModelError, match="trust_remote_code"):
        _load("bert", remote_code)
    cut = _copy("roberta", tmp_path)
    with (cut / "model.safetensors").open("r+b") as file:
        file.truncate(2000)
    with pytest.raises(ModelError, match="cannot load"):
        _load("roberta", cut)


@pytest.mark.parametrize("kind", ["qwen3", "modular_bert"])
def test_no_head_is_made_up_where_sentence_transformers_is_too_old(kind, monkeypatch) -> None:
    """Before 5.4 it knows no modules, ignores what it does not know and starts a head at random."""

    class Old(CrossEncoder):
        preprocess = property()  # hasattr says no

    monkeypatch.setattr(whole, "CrossEncoder", Old)
    with pytest.raises(ModelError, match=r"need sentence-transformers 5\.6 or later: .* makes up"):
        _load(kind)


# ------------------------------------------------------------------------------ threads, lifetime


def test_threads_score_as_one_does() -> None:
    """Eight threads on one backend, each with its own batches: the logits of a serial run."""
    names = ["bert", "deberta_v2"]
    failures: list[str] = []

    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        for kind in names * 3:
            rows = random.permutation(len(PAIRS))[:12]
            got = _backend(kind).logits(_batch(kind).take(rows))
            if np.abs(got - _expected(kind)[rows]).max() > CLOSE:
                failures.append(f"{kind} in thread {seed}")

    for kind in names:
        _backend(kind)
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize(
    "options", [{"device": ["cpu", "cpu"]}, {"device": "cpu", "num_workers": 2}]
)
def test_devices_and_workers_share_one_plan(options, monkeypatch) -> None:
    """Two forwards of one call run at the same time, and the scores are those of one device."""
    both, inside, logits = threading.Barrier(2), threading.local(), TorchBackend.logits

    def meeting(self, batch):
        if not hasattr(inside, "met"):  # a thread's first batch waits until the other has one too
            inside.met = both.wait(timeout=60)
        return logits(self, batch)

    with Reranker.from_pretrained(
        str(build("bert")), backend="torch", max_batch_tokens=1024, **options
    ) as reranker:
        monkeypatch.setattr(TorchBackend, "logits", meeting)
        scores = reranker.score_pairs(PAIRS)
        assert reranker.stats()["batches"] > 2
        assert reranker.stats()["pairs"] == len(set(PAIRS))
    expected = encoder_for(build("bert")).predict(PAIRS, activation_fn=torch.nn.Identity())
    np.testing.assert_allclose(scores, expected, rtol=0, atol=CLOSE)


def test_a_packed_batch_holds_any_lengths() -> None:
    """Nothing is padded, so 20 texts of 20 lengths are one forward, and several by padding."""
    texts = ["whale " * words for words in range(1, 21)]
    batches, scores = {}, {}
    family = family_for(Checkpoint.read(build("bert")))
    for kind in ("packed", "padded"):
        backend = _load("bert")
        assert not backend.traits.pads
        if kind == "padded":
            backend.traits = replace(backend.traits, pads=True, free_padding=0)
        with Reranker.over(assemble(_tokenizer("bert"), family, [backend])) as reranker:
            scores[kind] = reranker.score("whale", texts)
            batches[kind] = reranker.stats()["batches"]
            assert reranker.info().details["layout"] == "packed"
    assert batches["packed"] == 1 < batches["padded"]
    np.testing.assert_allclose(scores["packed"], scores["padded"], atol=CLOSE, rtol=0)


def test_close_frees_the_network() -> None:
    """After close there is no reference left to the weights; scoring says it is closed."""
    backend = _load("bert")
    alive = weakref.ref(backend._loaded.network)
    backend.logits(_batch("bert").take([0]))
    backend.close()
    backend.close()
    gc.collect()
    assert alive() is None
    with pytest.raises(ClosedError, match="closed"):
        backend.logits(_batch("bert"))
    with pytest.raises(ClosedError, match="closed"):
        backend.logits(_texts(PAIRS))


def test_nothing_global_changes() -> None:
    """Law 8: torch's threads, grad mode, default dtype, seed, attention and warnings stay put."""

    def state():
        return (
            torch.get_num_threads(),
            torch.get_num_interop_threads(),
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.get_default_dtype(),
            torch.initial_seed(),
            torch.backends.cuda.matmul.allow_tf32,
            {k: v for k, v in AttentionInterface._global_mapping.items() if k != attention.NAME},
            logging.getLogger("sentence_transformers").handlers,
        )

    before = state()
    _load("bert").logits(_batch("bert"))
    assert state() == before


def test_no_pairs_give_no_logits() -> None:
    """An empty batch keeps its number of labels."""
    empty = _batch("bert_two_labels").take([])
    assert _backend("bert_two_labels").logits(empty).shape == (0, 2)


def test_a_pass_that_fails_says_where() -> None:
    """A pair beyond the network's positions, and one without tokens, are errors of our own."""
    ids = np.ones(500, np.int32)
    long = TokenBatch(ids, np.zeros_like(ids), np.array([500]))
    with pytest.raises(BackendError, match="the forward pass failed on cpu"):
        _backend("bert_128").logits(long)
    none = TokenBatch(ids[:0], ids[:0], np.array([0]))
    with pytest.raises(BackendError, match="at least 1 token: got 0"):
        _backend("bert").logits(none)


def test_out_of_memory_surfaces_as_it_is(monkeypatch) -> None:
    """The scheduler halves the batch by this error, so it is not dressed as another."""
    backend = _load("bert")

    def full(batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(backend, "_run", full)
    with pytest.raises(torch.OutOfMemoryError):
        backend.logits(_batch("bert"))


# ------------------------------------------------------------------------------------- templates


def test_the_chat_template_is_rendered_around_a_pair() -> None:
    """The text is what sentence-transformers feeds a causal reranker, prompt included."""
    folder, (query, document) = build("qwen3"), PAIRS[0]
    tokenizer = encoder_for(folder).tokenizer
    messages = [
        {"role": "system", "content": "Find it"},
        {"role": "query", "content": query},
        {"role": "document", "content": document},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert render_chat(Checkpoint.read(folder), "Find it").text(query, document) == text
    assert "Find it" not in render_chat(Checkpoint.read(folder), None).prefix


def test_a_missing_tokenizer_json_is_converted(tmp_path: Path) -> None:
    """From the vocabulary file alone come the ids of the checkpoint's own tokenizer.json."""
    folder = _copy("bert", tmp_path)
    vocabulary = AutoTokenizer.from_pretrained(folder).get_vocab()
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.__getitem__)))
    converted = PairTokenizer.from_folder(folder, convert=convert_tokenizer)
    batch = converted.encode(PAIRS).batch
    np.testing.assert_array_equal(batch.input_ids, _batch("bert").input_ids)
    with pytest.raises(ModelError, match=r"config\.json is missing or empty"):
        convert_tokenizer(tmp_path / "nothing")
    (folder / "vocab.txt").unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    with pytest.raises(ModelError, match="tokenizer"):
        convert_tokenizer(folder)


# --------------------------------------------------------------------------------------- helpers


def _copy(kind: str, tmp_path: Path, **config) -> Path:
    """The checkpoint *kind*, its config.json changed by *config*."""
    folder = Path(shutil.copytree(build(kind), tmp_path / kind))
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    return folder


def _predict(folder: Path):
    encoder = CrossEncoder(str(folder), device="cpu", local_files_only=True)
    scores = encoder.predict(list(PAIRS), batch_size=8, activation_fn=torch.nn.Identity())
    return np.asarray(scores, np.float32).reshape(len(PAIRS), -1)


def _shouting(pairs) -> TokenBatch:
    """A way to write pairs that is no checkpoint's own."""
    return _tokenizer("roberta").encode([(q.upper(), d) for q, d in pairs]).batch


def _texts(pairs, prompt: str | None = None, max_length: int = 256) -> TokenBatch:
    """What a backend that wants texts is handed."""
    return _texts_of([PairText(q, d, prompt, max_length) for q, d in pairs])


def _texts_of(texts) -> TokenBatch:
    ids = np.zeros(len(texts), np.int32)
    return TokenBatch(ids, ids, np.ones(len(texts), np.int64), tuple(texts))


def _loaded(kind: str, device: torch.device | None = None) -> LoadedCrossEncoder:
    return LoadedCrossEncoder.load(
        build(kind),
        device=device or torch.device("cpu"),
        dtype=torch.float32,
        max_length=_tokenizer(kind).max_length,
        trust_remote_code=False,
    )
