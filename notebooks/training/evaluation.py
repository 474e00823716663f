"""Scoring groups and nDCG on them."""

import math

import parallel
import torch
from model import logits
from prepared import Group, Prepared
from transformers import BertForSequenceClassification


@torch.inference_mode()
def score_groups(
    model: BertForSequenceClassification, groups: list[Group], prepared: Prepared, limit: int
) -> list[list[float]]:
    """Logits of every group's candidates, in order of length, shared between the workers."""
    mine = groups[parallel.rank() :: parallel.world()]
    pairs = [pair for group in mine for pair in prepared.pairs(group, limit)]
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
    flat = [0.0] * len(pairs)
    size = 32 if model.device.type == "cpu" else 512
    for begin in range(0, len(order), size):
        rows = order[begin : begin + size]
        for row, z in zip(rows, logits(model, [pairs[i] for i in rows]).tolist(), strict=True):
            flat[row] = z
    numbers = iter(flat)
    parts = parallel.gather([[next(numbers) for _ in group.candidates] for group in mine])
    return [parts[i % len(parts)][i // len(parts)] for i in range(len(groups))]


def ndcg(scores: list[float], labels: tuple[int, ...], depth: int = 10) -> float:
    """NDCG at `depth` within the list, binary labels; ties keep their order."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    gain = sum(labels[i] / math.log2(at + 2) for at, i in enumerate(order[:depth]))
    ideal = sum(1 / math.log2(at + 2) for at in range(min(depth, sum(labels))))
    return gain / ideal


def by_set(groups: list[Group], scores: list[list[float]]) -> dict[str, float]:
    """Mean nDCG@10 of each set's groups, and `mean` over the sets."""
    names = sorted({g.source for g in groups})
    table = {}
    for name in names:
        values = [
            ndcg(s, g.labels) for g, s in zip(groups, scores, strict=True) if g.source == name
        ]
        table[name] = round(sum(values) / len(values), 4)
    return table | {"mean": round(sum(table.values()) / len(table), 4)}
