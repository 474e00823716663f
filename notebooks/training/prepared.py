"""What preparation hands to training: groups of candidates, and the token ids of every text."""

import gzip
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TEACHER_SCALE = 20.0
"""What the base's cosine is multiplied by: the scale that it was trained with."""

Ids = NDArray[np.uint16]


@dataclass(frozen=True)
class Group:
    """One query and its candidates.

    query and candidates: (k,) are positions in the token ids. cosine: (k,) the base's similarity.
    lexical: (k,) BM25 as a share of the query's best. labels: (k,) 1 for an answer and 0 for none,
    or empty for an unlabelled group.
    """

    source: str
    query: int
    candidates: tuple[int, ...]
    cosine: tuple[float, ...]
    lexical: tuple[float, ...]
    labels: tuple[int, ...] = ()


@dataclass(frozen=True)
class TokenIds:
    """Token ids of many texts end to end, without special tokens: text i is `self[i]`."""

    flat: Ids
    ends: NDArray[np.int64]

    @classmethod
    def of(cls, texts: Sequence[Sequence[int]]) -> "TokenIds":
        """From one list of ids a text."""
        ends = np.cumsum([len(ids) for ids in texts])
        return cls(np.concatenate([np.asarray(ids, np.uint16) for ids in texts]), ends)

    def __getitem__(self, index: int) -> Ids:
        begin = int(self.ends[index - 1]) if index else 0
        return self.flat[begin : int(self.ends[index])]


@dataclass(frozen=True)
class Prepared:
    """All that a run reads. `held` are groups of questions that no run trains on."""

    groups: list[Group]
    held: list[Group]
    queries: TokenIds
    documents: TokenIds

    def save(self, path: Path) -> None:
        """Write the file whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(path.with_suffix(".new"), "wb", compresslevel=6) as stream:
            pickle.dump(self, stream, protocol=5)
        path.with_suffix(".new").replace(path)

    @staticmethod
    def load(path: Path) -> "Prepared":
        """Read what `save` wrote: a pickle, so only ever a file of one's own."""
        with gzip.open(path, "rb") as stream:
            return pickle.load(stream)

    def tokens(self, group: Group) -> int:
        """About what the group costs."""
        query = len(self.queries[group.query]) + 3
        return sum(query + len(self.documents[p]) for p in group.candidates)

    def pairs(self, group: Group, limit: int) -> list[tuple[Ids, Ids]]:
        """The group's (query ids, document ids), cut to `limit` tokens with their specials."""
        query = self.queries[group.query]
        return [truncate(query, self.documents[p], limit) for p in group.candidates]


def truncate(query: Ids, document: Ids, limit: int) -> tuple[Ids, Ids]:
    """Cut to `limit` tokens, specials included, always from the longer side (longest_first)."""
    room = limit - 3
    excess = len(query) + len(document) - room
    if excess <= 0:
        return query, document
    kept_query = min(len(query), max(room - len(document), (room + 1) // 2))
    return query[:kept_query], document[: room - kept_query]


def with_long_pairs(groups: list[Group], prepared: Prepared, share: float) -> list[Group]:
    """The groups in order, thinned so that pairs above 256 tokens are a `share` of all.

    A group without a long pair is left out whenever the groups kept so far hold too few.
    """
    kept, long, total = [], 0, 0
    for group in groups:
        lengths = [len(q) + len(d) + 3 for q, d in prepared.pairs(group, 512)]
        own = sum(length > 256 for length in lengths)
        if own or long >= share * (total + len(lengths)):
            kept.append(group)
            long, total = long + own, total + len(lengths)
    return kept
