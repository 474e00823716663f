"""Windows of many documents, cut some at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...protocols import Pair
from ...tokenization import Cursor, Cutter

WINDOWS_AT_ONCE = 1024
"""Windows of one call that are queued at once: one plan of batches for all of them. Of a call with
more the next ones are cut while these are scored, so that memory stays flat."""

Bounds = Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Windows that are handed on together.

    rows   int64 (windows,): which pair each is of, ascending
    spans  int64 (windows, 2): its characters
    ended  pairs that have no window after these, and had one before or in these
    last   whether no windows follow
    """

    rows: NDArray[np.int64]
    spans: NDArray[np.int64]
    ended: int
    last: bool


class Pieces:
    """Cuts windows: a document's in order, those of several side by side, read together.

    `unread` is bool (pairs,): whether text was left behind a document's last window.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        parts: Mapping[int, Bounds],
        cursors: dict[int, list[Cursor]],
        cutter: Cutter | None = None,
        most: int | None = None,
    ) -> None:
        """*parts* are windows by pair that stand already; *most*, those that a pair may have."""
        self.unread = np.zeros(len(pairs), np.bool_)
        self.unread[[row for row, bounds in parts.items() if len(bounds[:most]) < len(bounds)]] = (
            True
        )
        self._pairs = pairs
        self._cursors = cursors
        self._cutter = cutter
        self._most = most
        self._taken = dict.fromkeys(cursors, 0)
        self._found = [
            (row, start, end)
            for row, (_, document) in enumerate(pairs)
            if row not in cursors
            for start, end in parts.get(row, ((0, len(document)),))[:most]
        ]

    def __iter__(self) -> Iterator[Piece]:
        counted = 0
        while self._cursors or self._found:
            while self._cursors and len(self._found) < WINDOWS_AT_ONCE:
                self._round()
            taken, self._found = self._found[:WINDOWS_AT_ONCE], self._found[WINDOWS_AT_ONCE:]
            waiting = self._cursors.keys() | {row for row, _, _ in self._found}
            total = len(self._pairs) - len(waiting)
            table = np.array(sorted(taken), np.int64).reshape(-1, 3)
            last = not self._cursors and not self._found
            yield Piece(table[:, 0], table[:, 1:], total - counted, last)
            counted = total

    def _round(self) -> None:
        """Cut the next window of each document."""
        assert self._cutter is not None  # noqa: S101  # there are no cursors without one
        asked = [(row, cursors[0]) for row, cursors in self._cursors.items() if self._begun(row)]
        spans = self._cutter.advance([cursor for _, cursor in asked])
        for (row, _), span in zip(asked, spans, strict=True):
            self._taken[row] += 1
            self._found.append((row, span.start, span.end))
        for row in list(self._cursors):
            if self._finished(row):
                del self._cursors[row]

    def _begun(self, row: int) -> bool:
        """Whether there is something to cut; a document of blanks alone goes on as it is."""
        cursors = self._cursors[row]
        while cursors and cursors[0].ended:
            del cursors[0]
        if not cursors:
            self._found.append((row, 0, len(self._pairs[row][1])))
        return bool(cursors)

    def _finished(self, row: int) -> bool:
        cursors = self._cursors[row]
        while cursors and cursors[0].ended:
            del cursors[0]
        if cursors and self._taken[row] == self._most:
            self.unread[row] = True
            cursors.clear()
        return not cursors
