"""The teacher: what each member says of a query and its candidates, and their weighted sum.

Member scores are divided by their own mean deviation within a group, taken over the unlabelled
groups: constants of a run, not of a query. The sum is scaled so that its mean deviation is SPREAD.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import teachers
import torch
from numpy.typing import NDArray
from ragged import Batch, Ragged, batches, tokenised, vectors
from tokenizers import Tokenizer
from torch import Tensor

MEMBERS = ("maxsim", "cosine", "e5", "mpnet", "splade")
WEIGHTS = {"maxsim": 0.3, "cosine": 0.2, "e5": 0.2, "mpnet": 0.2, "splade": 0.25}
SPREAD = 3.0
TEXT_LIMIT, QUERY_LIMIT = 250, 62  # tokens of their own that the teachers read
TERMS = {"document": 192, "query": 64}


@dataclass
class Terms:
    """The heaviest words of each text by SPLADE: ids (n, k) int32 and weights (n, k) float16."""

    ids: Tensor
    weights: Tensor


@dataclass
class Side:
    """Queries or documents as the members see them.

    tokens: (T, 384) float16 unit vectors of every token, at the places of `texts.flat`.
    """

    texts: Ragged
    cosine: Tensor
    tokens: Tensor
    e5: Tensor | None = None
    mpnet: Tensor | None = None
    splade: Terms | None = None


def half(model: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """On the device, in float16 where it is a GPU."""
    return model.to(device).half() if device.type == "cuda" else model.to(device)


def by_base(folder: Path, texts: Ragged, limit: int) -> tuple[Tensor, Tensor]:
    """(mean vectors, token vectors) of all-MiniLM-L6-v2."""
    device = texts.flat.device
    model = half(teachers.base(folder), device)
    tokens = torch.zeros(len(texts.flat), 384, dtype=torch.float16, device=device)

    def keep(batch: Batch, hidden: Tensor) -> None:
        unit = torch.nn.functional.normalize(hidden, dim=-1).half()
        starts = torch.from_numpy(texts.starts[batch.rows]).to(device)[:, None]
        step = torch.arange(batch.ids.shape[1], device=device)[None] - 1
        tokens[(starts + step)[batch.content]] = unit[batch.content]

    return vectors(model, texts, [101], [102], limit, keep), tokens


def by_e5(folder: Path, texts: list[str], prefix: str, limit: int, device: torch.device) -> Tensor:
    """Mean vectors of multilingual-e5-small, which wants "query: " or "passage: " before a text."""
    model, tokenizer = teachers.e5(folder)
    words = tokenised(tokenizer, [prefix + text for text in texts], limit)
    return vectors(half(model, device), Ragged.of(words, device), [0], [2], limit)


def by_mpnet(folder: Path, texts: Ragged, tokenizer: Tokenizer, limit: int) -> Tensor:
    """Mean vectors of all-mpnet-base-v2, whose vocabulary is BERT's in another order."""
    model, vocabulary = teachers.mpnet(folder)
    number = {word: i for i, word in enumerate(vocabulary)}
    unknown = number["[UNK]"] if "[UNK]" in number else number["<unk>"]
    table = torch.tensor([number.get(tokenizer.id_to_token(i), unknown) for i in range(30522)])
    flat = table.to(texts.flat.device)[texts.flat.long()].int()
    moved = Ragged(flat, texts.starts, texts.lengths)
    return vectors(half(model, flat.device), moved, [number["<s>"]], [number["</s>"]], limit)


@torch.inference_mode()
def by_splade(folder: Path, texts: Ragged, limit: int, keep: int) -> Terms:
    """log(1 + relu(logit)), the largest over the tokens (Formal et al. 2021, arXiv:2109.10086)."""
    device = texts.flat.device
    model = half(teachers.splade(folder), device)
    ids = torch.zeros(len(texts), keep, dtype=torch.int32, device=device)
    weights = torch.zeros(len(texts), keep, dtype=torch.float16, device=device)
    for whole in batches(texts, [101], [102], limit):
        size = max(1, 16384 // whole.ids.shape[1])
        for begin in range(0, len(whole.rows), size):
            part = slice(begin, begin + size)
            mask = whole.mask[part]
            logits = model(input_ids=whole.ids[part], attention_mask=mask.to(torch.int64)).logits
            heavy = (logits.relu() * mask[..., None]).amax(1).float().log1p()
            values, at = heavy.topk(keep, dim=1)
            rows = torch.from_numpy(whole.rows[part]).to(device)
            ids[rows], weights[rows] = at.int(), values.half()
    return Terms(ids, weights)


def overlap(query: Terms, document: Terms, rows: Tensor, at: Tensor) -> Tensor:
    """Inner products of SPLADE's weights: rows (B,), at (B, K) → (B, K)."""
    dense = torch.zeros(len(rows), 30522, device=at.device)
    dense.scatter_(1, query.ids[rows].long(), query.weights[rows].float())
    words = document.ids[at].long().flatten(1)
    found = dense.gather(1, words).view(*at.shape, -1)
    return (found * document.weights[at].float()).sum(-1)


def maxsim(query: Side, document: Side, rows: NDArray[np.int64], at: NDArray[np.int64]) -> Tensor:
    """Mean over the query's tokens of the best cosine with a document's token: (B, K)."""
    device = query.tokens.device
    asked, asked_mask = _padded(query, rows, QUERY_LIMIT, device)
    texts, mask = _padded(document, at.ravel(), TEXT_LIMIT, device)
    texts = texts.view(len(rows), -1, *texts.shape[1:])
    best = torch.einsum("bqd,bktd->bkqt", asked, texts).float()
    best = best.masked_fill(~mask.view(len(rows), at.shape[1], 1, -1), -1).amax(-1)
    count = asked_mask.sum(1).clamp(min=1)[:, None]
    return (best * asked_mask[:, None]).sum(-1) / count


def _padded(
    side: Side, rows: NDArray[np.int64], limit: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    lengths = np.minimum(side.texts.lengths[rows], limit)
    longest = max(1, int(lengths.max()))
    step = torch.arange(longest, device=device)[None]
    mask = step < torch.from_numpy(lengths).to(device)[:, None]
    at = torch.from_numpy(side.texts.starts[rows]).to(device)[:, None] + step
    found = side.tokens[torch.where(mask, at, 0)]
    return (found if device.type == "cuda" else found.float()), mask


def score(query: Side, document: Side, rows: NDArray[np.int64], at: NDArray[np.int64]) -> Tensor:
    """(B, K, members) of queries (B,) and candidates (B, K); nought for members left out."""
    device = query.cosine.device
    r, c = torch.from_numpy(rows).to(device), torch.from_numpy(at).to(device)

    def dot(a: Tensor | None, b: Tensor | None) -> Tensor:
        if a is None or b is None:
            return torch.zeros(at.shape, device=device)
        return torch.einsum("bd,bkd->bk", a[r].float(), b[c].float())

    spread = [
        maxsim(query, document, rows, at),
        dot(query.cosine, document.cosine),
        dot(query.e5, document.e5),
        dot(query.mpnet, document.mpnet),
    ]
    both = query.splade is not None and document.splade is not None
    spread.append(
        overlap(query.splade, document.splade, r, c) if both else torch.zeros_like(spread[0])
    )
    return torch.stack(spread, -1)


def scored(
    query: Side, document: Side, rows: NDArray, at: NDArray, size: int = 256
) -> NDArray[np.float32]:
    """`score` of many groups; candidates that are not there (-1) get nought."""
    parts = []
    with torch.inference_mode():
        for begin in range(0, len(rows), size):
            part = at[begin : begin + size].astype(np.int64)
            found = score(
                query, document, rows[begin : begin + size].astype(np.int64), part.clip(0)
            )
            parts.append(found.float().cpu().numpy() * (part >= 0)[..., None])
    return np.concatenate(parts)


def coefficients(
    members: NDArray, there: NDArray, weights: dict[str, float]
) -> NDArray[np.float32]:
    """What each member's score is multiplied by: (members,), from groups (n, k, members)."""
    found = np.zeros(len(MEMBERS), np.float32)
    for i, name in enumerate(MEMBERS):
        deviation = mean_deviation(members[:, :, i], there)
        if weights.get(name) and deviation > 0:
            found[i] = weights[name] / deviation
    return found * np.float32(SPREAD / mean_deviation(members @ found, there))


def mean_deviation(values: NDArray, there: NDArray) -> float:
    """The mean over groups of the standard deviation within a group."""
    count = there.sum(1).clip(1)
    centred = (values - ((values * there).sum(1) / count)[:, None]) * there
    return float(np.sqrt((centred**2).sum(1) / count).mean())
