"""Held-out questions: nDCG@10 by set and by kind, of a student and of its teacher.

Three sorts, none trained on: each set's own held-out questions; questions of nq_open and
webquestions over BM25's hundred Wikipedia passages, where the answer string is the label; and real
queries without labels, where the teacher is.
"""

import math
from dataclasses import dataclass

import members as teacher
import model
import numpy as np
import torch
from corpus import Corpus
from groups import Asked, Found, Groups, Queries, kind
from mining import Lexical
from numpy.typing import NDArray
from ragged import Ragged

DEPTH = 50
PER_SET = 80
ANSWERED = 600


@dataclass
class Held:
    """Groups of up to 100 candidates, with the name of the sort and the kind of each."""

    groups: Groups
    names: list[str]
    kinds: list[str]
    members: NDArray[np.float32]


def held_groups(
    asked: Asked,
    found: Found,
    corpus: Corpus,
    table: Queries,
    query: teacher.Side,
    document: teacher.Side,
    lexical: Lexical,
    seed: int,
) -> Held:
    """All held-out groups. Sets without own candidate lists have BM25's and the base's in turn."""
    rng = np.random.default_rng(seed)
    rows, lists, labels, names, kinds = [], [], [], [], []

    def add(row: int, chosen: list[int], wanted: list[int], name: str, sort: str) -> None:
        rows.append(row)
        lists.append(chosen)
        labels.append([int(c in wanted) for c in chosen])
        names.append(name)
        kinds.append(sort)

    by_set: dict[str, list[int]] = {}
    for at, question in enumerate(asked.questions):
        if question is not None and question.positives:
            by_set.setdefault(question.source, []).append(at)
    for name, own in by_set.items():
        for at in rng.permutation(own)[:PER_SET]:
            question = asked.questions[at]
            merged = np.stack([found.lexical[at, :DEPTH], found.dense[at, :DEPTH]], 1).ravel()
            chosen = (
                question.listed or list(dict.fromkeys(m for m in merged.tolist() if m >= 0))[:DEPTH]
            )
            add(asked.rows[at], chosen, question.positives, name, kind(question.text, name))
    answered = np.array([table.add(text) for text, _ in corpus.answered])
    best = lexical.search(query.texts, answered, corpus.spans["wiki"], 100)
    for (text, answers), row, line in zip(corpus.answered, answered, best, strict=True):
        chosen = [c for c in line.tolist() if c >= 0]
        strings = [a.lower() for a in answers if len(a) > 2]
        wanted = [c for c in chosen if any(a in corpus.documents[c].lower() for a in strings)]
        if 0 < len(wanted) < 20 and names.count("answered") < ANSWERED:
            add(int(row), chosen, wanted, "answered", kind(text, "answered"))
    width = max(len(chosen) for chosen in lists)
    candidates = np.full((len(rows), width), -1, np.int32)
    marks = np.zeros((len(rows), width), np.int8)
    for i, (chosen, own_labels) in enumerate(zip(lists, labels, strict=True)):
        candidates[i, : len(chosen)], marks[i, : len(chosen)] = chosen, own_labels
    at = np.array(rows, np.int32)
    made = Groups(at, at, candidates, marks, np.ones(len(at), bool), np.zeros(len(at), np.int16))
    return Held(made, names, kinds, teacher.scored(query, document, at, candidates, size=16))


@torch.inference_mode()
def scored(
    student: model.Student,
    queries: Ragged,
    documents: Ragged,
    groups: Groups,
    limit: int = model.MAX_LENGTH,
) -> NDArray[np.float32]:
    """Logits of the model and of each exit, (1 + exits, groups, width); else nought."""
    at, column = np.nonzero(groups.there)
    rows, texts = groups.asked[at], groups.candidates[at, column]
    order = np.argsort(queries.lengths[rows] + documents.lengths[texts], kind="stable")
    flat = np.zeros((1 + len(model.EXITS), len(order)), np.float32)
    size = 4096 if queries.flat.device.type == "cuda" else 32
    for begin in range(0, len(order), size):
        part = order[begin : begin + size]
        pairs = model.pack(queries, documents, rows[part], texts[part], limit)
        flat[:, part] = model.logits(student, pairs).float().cpu().numpy()
    whole = np.zeros((len(flat), *groups.candidates.shape), np.float32)
    whole[:, at, column] = flat
    return whole


def ndcg(scores: NDArray, labels: NDArray, there: NDArray, depth: int = 10) -> NDArray[np.float64]:
    """nDCG@10 of each row within its list, binary labels; ties keep their order."""
    order = np.argsort(-np.where(there, scores, -np.inf), axis=1, kind="stable")[:, :depth]
    discount = 1 / np.log2(np.arange(2, depth + 2))[: order.shape[1]]
    gain = (np.take_along_axis(labels, order, 1) * discount).sum(1)
    ideal = np.array([discount[: min(depth, int(n))].sum() for n in labels.sum(1)])
    return gain / np.maximum(ideal, 1e-9)


def table(values: NDArray, held: Held) -> dict[str, float]:
    """Means by set and by kind, and `mean`: half the sets', half `answered`.

    Only questions with an answer among their candidates count.
    """
    valid = (held.groups.labels > 0).any(1)
    found: dict[str, float] = {}
    for prefix, keys in (("set", held.names), ("kind", held.kinds)):
        for key in sorted(set(keys)):
            own = valid & np.array([k == key for k in keys])
            if own.any():
                found[f"{prefix}:{key}"] = round(float(values[own].mean()), 4)
    sets = [v for k, v in found.items() if k.startswith("set:") and k != "set:answered"]
    web = found.get("set:answered", math.nan)
    return found | {"mean": round((sum(sets) / max(1, len(sets)) + web) / 2, 4)}
