"""The answers to a document's windows, made into one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ...passages import Windows
from ...protocols import Scored
from ...tokens import Scores
from .pieces import Piece, Pieces


class Join:
    """Gathers answers, and makes one of each document's."""

    def __init__(
        self, windows: Windows | None, pieces: Pieces, activate: Callable[[Scores], Scores]
    ) -> None:
        self._aggregate = "max" if windows is None else windows.aggregate
        self._topk = windows.topk if windows and windows.aggregate == "topk_mean" else None
        self._pieces = pieces
        self._activate = activate
        self._found: list[tuple[Piece, Scored]] = []

    def add(self, piece: Piece, scored: Scored) -> None:
        """Keep the answers to *piece*."""
        self._found.append((piece, scored))

    def scored(self) -> Scored:
        """One answer per pair: of its best window, the first of those with the highest key."""
        rows = np.concatenate([piece.rows for piece, _ in self._found])
        spans = np.concatenate([piece.spans for piece, _ in self._found])
        keys = np.concatenate([scored.keys for _, scored in self._found])
        scores = np.concatenate([scored.scores for _, scored in self._found])
        order = np.lexsort((spans[:, 0], -keys, rows))
        firsts = np.flatnonzero(np.diff(rows[order], prepend=-1))
        best = order[firsts]
        truncated = self._pieces.unread.copy()
        cut = np.concatenate([scored.truncated for _, scored in self._found])
        np.logical_or.at(truncated, rows, cut)
        answer = Scored(scores[best], keys[best], truncated, spans[best])
        if self._aggregate not in ("mean", "topk_mean"):
            return answer
        return self._mean(answer, keys[order], np.append(firsts, len(order)))

    def _mean(self, answer: Scored, keys: Scores, bounds: NDArray[np.int64]) -> Scored:
        """*answer* with means of *keys*, each pair's best first, where it has several windows."""
        logits, scores = answer.keys.copy(), answer.scores.copy()
        several = np.flatnonzero(np.diff(bounds) > 1)
        for row in several.tolist():
            taken = keys[bounds[row] : bounds[row + 1]][: self._topk]
            logits[row] = taken.mean(dtype=np.float64)
        scores[several] = self._activate(logits[several])
        return replace(answer, logits=logits, scores=scores)
