"""Texts as token ids in one flat tensor, and encoders run over them in batches of one length."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

TOKENS_PER_BATCH = {"cuda": 65536, "cpu": 4096}


@dataclass
class Ragged:
    """Token ids of many texts without special tokens: flat (T,) int32 on the device.

    starts, lengths: (n,) int64 on the host.
    """

    flat: Tensor
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]

    @classmethod
    def of(cls, ids: Sequence[NDArray], device: torch.device) -> "Ragged":
        """From one array of ids a text."""
        lengths = np.array([len(each) for each in ids], np.int64)
        flat = np.concatenate([np.zeros(0, np.int32), *ids]).astype(np.int32)
        starts = np.concatenate([[0], lengths.cumsum()[:-1]])
        return cls(torch.from_numpy(flat).to(device), starts, lengths)

    def __len__(self) -> int:
        return len(self.starts)


def tokenised(tokenizer: Tokenizer, texts: Sequence[str], limit: int) -> list[NDArray[np.int32]]:
    """Ids of each text without special tokens, cut at `limit`."""
    found = []
    for begin in range(0, len(texts), 20000):
        part = tokenizer.encode_batch_fast(
            list(texts[begin : begin + 20000]), add_special_tokens=False
        )
        found += [np.asarray(encoding.ids[:limit], np.int32) for encoding in part]
    return found


@dataclass
class Batch:
    """Framed texts of similar length.

    rows: (n,) which texts. ids, mask: (n, longest). content: (n, longest) True on the text's own.
    """

    rows: NDArray[np.int64]
    ids: Tensor
    mask: Tensor
    content: Tensor


def batches(
    texts: Ragged, before: Sequence[int], after: Sequence[int], limit: int
) -> Iterator[Batch]:
    """Every text between its special tokens, cut to `limit` of its own, shortest first."""
    device = texts.flat.device
    lengths = np.minimum(texts.lengths, limit)
    order, begin = np.argsort(lengths, kind="stable"), 0
    frame = len(before) + len(after)
    first, last = (torch.tensor(list(part), device=device) for part in (before, after))
    while begin < len(order):
        size = max(1, TOKENS_PER_BATCH[device.type] // (int(lengths[order[begin]]) + frame + 8))
        rows = order[begin : begin + size]
        begin += size
        own = torch.from_numpy(lengths[rows]).to(device)[:, None]
        starts = torch.from_numpy(texts.starts[rows]).to(device)[:, None]
        step = torch.arange(int(lengths[rows].max()) + frame, device=device)[None] - len(before)
        content = (step >= 0) & (step < own)
        at = (starts + step).clamp(0, max(0, len(texts.flat) - 1))
        ids = torch.where(content, texts.flat[at].long() if len(texts.flat) else 0, 0)
        for i, token in enumerate(first):
            ids[:, i] = token
        for i, token in enumerate(last):
            ids = torch.where(step == own + i, token, ids)
        yield Batch(rows, ids, step < own + len(after), content)


@torch.inference_mode()
def vectors(
    model: Callable[..., Tensor],
    texts: Ragged,
    before: Sequence[int],
    after: Sequence[int],
    limit: int,
    each: Callable[[Batch, Tensor], None] | None = None,
) -> Tensor:
    """Mean of the last hidden states over all tokens, unit length: (n, width) float16.

    `each` is shown every batch with its hidden states.
    """
    found: Tensor | None = None
    for batch in batches(texts, before, after, limit):
        hidden = model(input_ids=batch.ids, attention_mask=batch.mask.to(batch.ids.dtype))[
            0
        ].float()
        mask = batch.mask[..., None]
        mean = (hidden * mask).sum(1) / mask.sum(1)
        if found is None:
            found = torch.empty(
                len(texts), hidden.shape[-1], dtype=torch.float16, device=hidden.device
            )
        found[torch.from_numpy(batch.rows).to(hidden.device)] = torch.nn.functional.normalize(
            mean, dim=-1
        ).half()
        if each:
            each(batch, hidden)
    assert found is not None, "no text"
    return found
