"""Long documents are read in windows, and paragraphs where a document comes in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from ...document_tokens import Cut, DocumentTokens
from ...futures import then
from ...passages import Paragraphs, Windows
from ...protocols import Call, Pair, Scored, Scorer
from ...tokenization import Cursor, PairTokenizer
from ...tokens import KnownTokens, Scores
from .. import Wrapper
from .joining import Join
from .pieces import Bounds, Pieces
from .run import Run

__all__ = ["LongDocuments"]


class LongDocuments(Wrapper):
    """Scores each document by its windows, or by the paragraphs of it that are closest.

    All windows of all documents of a call are handed on together. `spans` holds the characters of
    the window that scored best, of what was not cut the whole. `truncated` says that tokens were
    dropped, in a window or behind the last one that was read. Without *windows* only documents
    given as Paragraphs are treated; all others go through as they are.
    """

    def __init__(
        self,
        inner: Scorer,
        windows: Windows | None,
        tokenizer: PairTokenizer,
        activate: Callable[[Scores], Scores],
        stored: DocumentTokens | None = None,
    ) -> None:
        """*activate* maps float32 (pairs,) of what rankings sort by to scores.

        *stored* keeps windows of documents, which are not cut again.
        """
        super().__init__(inner)
        self.windows = windows
        self._tokenizer = tokenizer
        self._activate = activate
        self._stored = stored

    def submit_pairs(self, pairs: Sequence[Pair], call: Call) -> Future[Scored]:
        """Score *pairs*, cut where they are long; one answer for each."""
        parts = {row: document.kept for row, document in _apart(pairs)}
        if self.windows is None and not parts:
            return self.inner.submit_pairs(pairs, call)
        call = replace(call, groups=None)  # windows come in pieces, which are no candidates
        if self.windows is None:
            pieces = Pieces(pairs, parts, {})
        else:
            cursors, known = self._cursors(pairs, call, self.windows)
            if not cursors:
                return self._whole(pairs, replace(call, tokens=known))
            cut, tokens = self._cut_already(pairs, call, self.windows, cursors)
            call = replace(call, tokens={**known, **tokens})
            most = 1 if self.windows.aggregate == "first" else self.windows.max_windows
            pieces = Pieces(pairs, cut, cursors, self._tokenizer.cutter(), most)
        join = Join(self.windows, pieces, self._activate)
        return Run(self.inner, pairs, call, pieces, join).start()

    def _whole(self, pairs: Sequence[Pair], call: Call) -> Future[Scored]:
        """Score documents none of which is cut."""
        spans = np.array([(0, len(document)) for _, document in pairs], np.int64).reshape(-1, 2)
        inner = self.inner.submit_pairs(pairs, call)
        return then(inner, lambda scored: replace(scored, spans=spans))

    def _cursors(
        self, pairs: Sequence[Pair], call: Call, windows: Windows
    ) -> tuple[dict[int, list[Cursor]], KnownTokens]:
        """What is to be cut of each row that is long, and the tokens of the others."""
        sizes = np.minimum(self._rooms(pairs, call), windows.tokens)
        documents = [str(document) for _, document in pairs]
        most = int(sizes.max(initial=1))
        read = self._tokenizer.read(documents, max(most, 1), call.tokens)
        long = read.cut | (read.lengths - self._tokenizer.text_around > sizes)
        kept = {row: document.kept for row, document in _apart(pairs)}
        cursors = {}
        for row, size in enumerate(sizes.tolist()):
            # Where the query leaves no room, what that means is the core's rule.
            if size >= 1 and (long[row] or row in kept):
                step, bounds = min(windows.step, size), kept.get(row, ((0, len(documents[row])),))
                cursors[row] = [Cursor(documents[row], *each, size, step) for each in bounds]
        return cursors, {**(call.tokens or {}), **read.known()}

    def _cut_already(
        self, pairs: Sequence[Pair], call: Call, windows: Windows, cursors: dict[int, list[Cursor]]
    ) -> tuple[dict[int, Bounds], KnownTokens]:
        """Stored windows of long documents, and their tokens; such rows leave *cursors*.

        Windows that a query makes smaller are not those in store, nor are those of paragraphs.
        """
        if self._stored is None or call.keys is None:
            return {}, {}
        apart = dict(_apart(pairs))
        whole = [row for row in cursors if row not in apart]
        rows = [row for row in whole if cursors[row][0].limit == windows.tokens]
        keys, documents = [call.keys[row] for row in rows], [pairs[row][1] for row in rows]
        found = self._stored.windows(keys, documents, Cut(windows.tokens, windows.step))
        bounds: dict[int, Bounds] = {}
        tokens: dict[str, NDArray[np.int32]] = {}
        for row, document, kept in zip(rows, documents, found, strict=True):
            if kept is not None:
                del cursors[row]
                bounds[row] = [(start, end) for start, end in kept[0].tolist()]
                texts = [document[start:end] for start, end in bounds[row]]
                tokens.update(zip(self._tokenizer.as_read(texts), kept[1], strict=True))
        return bounds, tokens

    def _rooms(self, pairs: Sequence[Pair], call: Call) -> NDArray[np.int64]:
        """How many tokens a document may have beside each query."""
        prompts = call.prompts or [None] * len(pairs)
        asked = [(query, prompt) for (query, _), prompt in zip(pairs, prompts, strict=True)]
        each = list(dict.fromkeys(asked))
        own = None if call.prompts is None else [prompt for _, prompt in each]
        rooms = self._tokenizer.room([query for query, _ in each], own)
        room = dict(zip(each, rooms.tolist(), strict=True))
        return np.array([room[one] for one in asked], np.int64)


def _apart(pairs: Sequence[Pair]) -> list[tuple[int, Paragraphs]]:
    """The documents that come in paragraphs."""
    if set(map(type, map(itemgetter(1), pairs))) <= {str}:  # no Python frame per document
        return []
    return [
        (row, document)
        for row, (_, document) in enumerate(pairs)
        if isinstance(document, Paragraphs)
    ]
