"""One call's windows on their way: handed on in pieces, gathered as they come back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace

from ...futures import done, opened, prepare, settle
from ...protocols import Call, Pair, Scored, Scorer
from .joining import Join
from .pieces import Piece, Pieces


class Run:
    """Two pieces are in flight at once, so that a device that is done with one finds the next.

    The first is handed on in the caller's thread, the others from the preparing threads.
    """

    def __init__(
        self, inner: Scorer, pairs: Sequence[Pair], call: Call, pieces: Pieces, join: Join
    ) -> None:
        self._inner = inner
        self._pairs = pairs
        self._call = call
        self._join = join
        self._pieces = iter(pieces)
        self._outer: Future[Scored] = opened()
        self._cutting = threading.Lock()
        self._lock = threading.Lock()
        self._flying: set[Future[Scored]] = set()
        self._last = False

    def start(self) -> Future[Scored]:
        """A Future of the answers, one per pair; cancelling it drops what is in flight."""
        self._outer.add_done_callback(lambda _: self._drop())
        self._hand_on()
        if not self._last:
            prepare(self._follow_up, ticket=None)
        return self._outer

    def _hand_on(self) -> None:
        """Cut the next windows, if there are any, and pass them on."""
        with self._cutting:
            if self._last or self._outer.done():
                return
            piece = next(self._pieces)
            future = self._inner.submit_pairs(*self._asked(piece))
            with self._lock:
                self._flying.add(future)
                self._last = piece.last
        future.add_done_callback(lambda ended: self._arrived(piece, ended))
        if self._outer.done():
            future.cancel()

    def _follow_up(self) -> Future[None]:
        try:
            self._hand_on()
        except BaseException as error:  # noqa: BLE001  # the waiter's to raise
            settle(self._outer, error)
        return done(None)

    def _asked(self, piece: Piece) -> tuple[list[Pair], Call]:
        pairs = []
        for row, (start, end) in zip(piece.rows.tolist(), piece.spans.tolist(), strict=True):
            query, document = self._pairs[row]
            pairs.append((query, document[start:end]))
        report = _share(self._call.on_progress, piece)
        return pairs, replace(self._call.take(piece.rows), on_progress=report)

    def _arrived(self, piece: Piece, ended: Future[Scored]) -> None:
        """In a worker: keep the answers, and have the next windows cut elsewhere."""
        try:
            answers = ended.result()
        except BaseException as error:  # noqa: BLE001  # the waiter's to raise
            settle(self._outer, error)
            return
        with self._lock:
            self._join.add(piece, answers)
            self._flying.discard(ended)
            whole, more = self._last and not self._flying, not self._last
        if whole and not self._outer.done():
            settle(self._outer, self._join.scored())
        elif more:
            prepare(self._follow_up, ticket=None)

    def _drop(self) -> None:
        with self._lock:
            flying = list(self._flying)
        for future in flying:
            future.cancel()


def _share(report: Callable[[int], None] | None, piece: Piece) -> Callable[[int], None] | None:
    """*report* of pairs, from counts of windows: all of those that end with *piece*, in the end."""
    if report is None:
        return None
    lock = threading.Lock()
    done = reported = 0

    def count(windows: int) -> None:
        nonlocal done, reported
        with lock:
            done += windows
            pairs = done * piece.ended // len(piece.rows) - reported
            reported += pairs
        if pairs:
            report(pairs)

    return count
