"""What a pair scored before it does not score again; what is being scored is not scored twice."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from ..futures import done, opened, prepare, preparing, settle
from ..passages import Paragraphs
from ..protocols import Call, Pair, Queue, Scored, Scorer
from ..score_cache import CachedScore, ScoreCache, feed
from . import Wrapper

Places = list[tuple[int, int]]
"""(row of a call, row of a flight) for each pair of the call that the flight carries."""


@dataclass(eq=False)
class Flight:
    """Pairs that are being scored, for whoever waits for them: no caller's deadline ends it."""

    keys: list[bytes]
    answers: Future[Scored] = field(default_factory=opened)
    inner: Future[Scored] | None = None
    waiters: int = 0
    shared: bool = False


class Cached(Wrapper):
    """Answers from a ScoreCache what it knows: no tokens, no pass, every number as it was.

    A pair that another call is having scored is waited for. That work belongs to no caller: it is
    cancelled when the last one has left. Where it fails, and several waited, the pairs of each are
    submitted once more alone.
    """

    def __init__(
        self, inner: Scorer, cache: ScoreCache, context: bytes, *, by_query: bool = False
    ) -> None:
        """*context* names everything but the texts and the prompt that changes a number.

        by_query: a pair's answer depends on the other pairs of its group, so it is known with all
        of these or not at all.
        """
        super().__init__(inner)
        self._by_query = by_query
        self.cache = cache
        self._context = context
        self._queue: Any = inner
        while self._queue is not None and not isinstance(self._queue, Queue):
            self._queue = getattr(self._queue, "inner", None)
        self._lock = threading.Lock()
        self._flights: dict[bytes, tuple[Flight, int]] = {}

    def submit_pairs(self, pairs: Sequence[Pair], call: Call) -> Future[Scored]:
        """Score what is not known of *pairs*; answers in their order."""
        keys = self._keys(pairs, call)
        found = self.cache.get(keys)
        for start, end in self._bounds(call):
            if any(entry is None for entry in found[start:end]):
                found[start:end] = [None] * (end - start)
        rows = [row for row, entry in enumerate(found) if entry is None]
        if call.ticket is not None:  # its place is not this call's alone: flights take their own
            settle(call.ticket, np.empty(0, np.float32))
        if call.on_progress is not None and len(rows) < len(pairs):
            call.on_progress(len(pairs) - len(rows))
        if not rows:
            return done(_scored(found, pairs))
        return _Wait(self, pairs, replace(call, ticket=None), keys, found).start(rows)

    def cache_stats(self) -> dict[str, int]:
        """Hits, misses, evictions and bytes of the cache, all that use it together."""
        return {f"cache_{name}": value for name, value in self.cache.stats().items()}

    def join(
        self, keys: Sequence[bytes], rows: Sequence[int]
    ) -> tuple[dict[Flight, Places], Flight | None]:
        """The flights that carry *rows*, and the one among them that the caller has to launch."""
        fresh = Flight([])
        found: dict[Flight, Places] = {}
        with self._lock:
            for row in rows:
                flight, at = self._flights.setdefault(keys[row], (fresh, len(fresh.keys)))
                if flight is fresh and at == len(fresh.keys):
                    fresh.keys.append(keys[row])
                found.setdefault(flight, []).append((row, at))
            for flight in found:
                flight.waiters += 1
                flight.shared = flight is not fresh
        return found, fresh if fresh in found else None

    def launch(self, flight: Flight, pairs: Sequence[Pair], call: Call) -> None:
        """Submit *flight*'s pairs; what keeps them from being submitted is its end."""
        try:
            inner = self.inner.submit_pairs(pairs, replace(call, deadline=None))
        except BaseException as error:  # noqa: BLE001  # all its waiters' to raise
            self._forget(flight)
            settle(flight.answers, error)
            return
        with self._lock:
            flight.inner = inner
            left = not flight.waiters
        inner.add_done_callback(lambda ended: self._landed(flight, ended))
        if left:
            inner.cancel()

    def leave(self, flight: Flight) -> None:
        """One waiter less; the last one ends the work."""
        with self._lock:
            flight.waiters -= 1
            inner = flight.inner
            if flight.waiters or flight.answers.done():
                return
            self._remove(flight)
        if inner is not None:
            inner.cancel()

    def _landed(self, flight: Flight, ended: Future[Scored]) -> None:
        """In a worker: hand the answers out, and keep them from another thread."""
        try:
            scored = ended.result()
        except BaseException as error:  # noqa: BLE001  # all its waiters' to raise
            self._forget(flight)
            settle(flight.answers, error)
            return
        if self.cache.quick:
            self._keep(flight, scored)
            settle(flight.answers, scored)
        else:
            settle(flight.answers, scored)
            prepare(lambda: self._keep(flight, scored), ticket=None)

    def _keep(self, flight: Flight, scored: Scored) -> Future[None]:
        """Keep the answers; from now on they are found there, not in flight."""
        self.cache.put(dict(zip(flight.keys, _entries(scored), strict=True)))
        self._forget(flight)
        return done(None)

    def _forget(self, flight: Flight) -> None:
        with self._lock:
            self._remove(flight)

    def _remove(self, flight: Flight) -> None:
        for key in flight.keys:
            if self._flights.get(key, (None, 0))[0] is flight:
                del self._flights[key]

    def watch(self, deadline: float | None) -> Future[Any] | None:
        """What fails when *deadline* passes, None where nothing does."""
        if deadline is None or self._queue is None:
            return None
        future: Future[Any] = self._queue.reserve(0, deadline)
        return future

    def _keys(self, pairs: Sequence[Pair], call: Call) -> list[bytes]:
        """A keyed hash of everything that makes each pair's number."""
        start = self.cache.hasher(self._context)
        prompts = call.prompts or [None] * len(pairs)
        asked: dict[tuple[str | None, str], Any] = {}
        keys = []
        for (query, document), prompt in zip(pairs, prompts, strict=True):
            if (digest := asked.get((prompt, query))) is None:
                digest = asked[prompt, query] = start.copy()
                feed(digest, b"" if prompt is None else b"prompt" + _bytes(prompt))
                feed(digest, _bytes(query))
            own = digest.copy()
            feed(own, _bytes(document))
            if isinstance(document, Paragraphs):
                feed(own, repr(document.kept).encode())
            keys.append(own.digest())
        for first, end in self._bounds(call):
            keys[first:end] = self._with_company(keys[first:end])
        return keys

    def _bounds(self, call: Call) -> list[tuple[int, int]]:
        """The bounds of groups that are known whole or not at all."""
        if call.groups is None or not self._by_query:
            return []
        return list(itertools.pairwise(call.groups.tolist()))

    def _with_company(self, keys: Sequence[bytes]) -> list[bytes]:
        """The keys of a group's pairs, told apart from those of the same pairs in another group."""
        start = self.cache.hasher(b"".join(keys))
        found = []
        for key in keys:
            own = start.copy()
            feed(own, key)
            found.append(own.digest())
        return found


class _Wait:
    """One call's wait: answers from the cache and from flights, put together."""

    def __init__(
        self,
        cached: Cached,
        pairs: Sequence[Pair],
        call: Call,
        keys: Sequence[bytes],
        found: list[CachedScore | None],
    ) -> None:
        self._cached = cached
        self._pairs = pairs
        self._call = call
        self._keys = keys
        self._found = found
        self._outer: Future[Scored] = opened()
        self._lock = threading.Lock()
        self._left = 0

    def start(self, rows: Sequence[int]) -> Future[Scored]:
        """A Future of all answers; *rows* are those to be waited for."""
        watch = self._cached.watch(self._call.deadline)
        flights, fresh = self._cached.join(self._keys, rows)
        self._left = len(flights)
        self._outer.add_done_callback(lambda _: self._end(flights, watch))
        if watch is not None:
            watch.add_done_callback(self._late)
        if fresh is not None:
            pairs, call = self._asked(flights[fresh])
            # Its progress is this call's, and so is its place among the queries; nothing else is.
            self._launch(fresh, pairs, call)
        for flight, places in flights.items():
            flight.answers.add_done_callback(partial(self._arrived, flight, places, fresh))
        return self._outer

    def _launch(self, flight: Flight, pairs: Sequence[Pair], call: Call) -> None:
        """Submit *flight*; a caller with a deadline does not wait for room in a full queue."""
        if call.deadline is None or preparing():
            self._cached.launch(flight, pairs, call)
            return

        def work() -> Future[None]:
            self._cached.launch(flight, pairs, call)
            return done(None)

        prepare(work, ticket=None)

    def _asked(self, places: Places) -> tuple[list[Pair], Call]:
        """The first of the pairs at each row of a flight, as a call of their own."""
        firsts = {at: row for row, at in reversed(places)}
        rows = np.array(sorted(firsts.values()), np.int64)
        return [self._pairs[row] for row in rows.tolist()], self._call.take(rows)

    def _arrived(
        self, flight: Flight, places: Places, fresh: Flight | None, ended: Future[Scored]
    ) -> None:
        """In a worker: take the answers; where a shared flight failed, ask once more alone."""
        if self._outer.done():
            return
        error = ended.exception()
        if error is not None and flight.shared:
            prepare(lambda: self._again(places), ticket=None)
        elif error is not None:
            settle(self._outer, error)
        else:
            if flight is not fresh and self._call.on_progress is not None:
                self._call.on_progress(len(places))
            self._fill(places, ended.result())

    def _again(self, places: Places) -> Future[None]:
        """In a preparing thread: submit this call's own pairs of a flight that failed."""
        rows = np.array([row for row, _ in places], np.int64)
        try:
            inner = self._cached.inner.submit_pairs(
                [self._pairs[row] for row in rows.tolist()],
                replace(self._call.take(rows), on_progress=None),
            )
        except BaseException as error:  # noqa: BLE001  # the waiter's to raise
            settle(self._outer, error)
            return done(None)
        alone = [(row, at) for at, row in enumerate(rows.tolist())]
        self._outer.add_done_callback(lambda _: inner.cancel())
        inner.add_done_callback(partial(self._answered, alone))
        return done(None)

    def _answered(self, places: Places, ended: Future[Scored]) -> None:
        if self._outer.done():
            return
        if (error := ended.exception()) is not None:
            settle(self._outer, error)
        else:
            self._fill(places, ended.result())

    def _fill(self, places: Places, scored: Scored) -> None:
        entries = _entries(scored)
        with self._lock:
            for row, at in places:
                self._found[row] = entries[at]
            self._left -= 1
            whole = not self._left
        if whole:
            settle(self._outer, _scored(self._found, self._pairs))

    def _late(self, watch: Future[Any]) -> None:
        if not watch.cancelled() and (error := watch.exception()) is not None:
            settle(self._outer, error)

    def _end(self, flights: dict[Flight, Places], watch: Future[Any] | None) -> None:
        if watch is not None:
            watch.cancel()
        for flight in flights:
            self._cached.leave(flight)


def _entries(scored: Scored) -> list[CachedScore]:
    spans = None if scored.spans is None else [tuple(span) for span in scored.spans.tolist()]
    exits = [0] * len(scored.scores) if scored.exits is None else scored.exits.tolist()
    columns = scored.scores.tolist(), scored.keys.tolist(), scored.truncated.tolist()
    return [
        CachedScore(score, logit, truncated, None if spans is None else spans[row], exits[row])
        for row, (score, logit, truncated) in enumerate(zip(*columns, strict=True))
    ]


def _scored(found: Sequence[CachedScore | None], pairs: Sequence[Pair]) -> Scored:
    """*found*, all of which are there."""
    entries = [entry for entry in found if entry is not None]
    spans = None
    if any(entry.span is not None for entry in entries):
        whole = [(0, len(document)) for _, document in pairs]
        spans = [entry.span or whole[row] for row, entry in enumerate(entries)]
    return Scored(
        scores=np.array([entry.score for entry in entries], np.float32),
        logits=np.array([entry.logit for entry in entries], np.float32),
        truncated=np.array([entry.truncated for entry in entries], np.bool_),
        spans=None if spans is None else np.array(spans, np.int64),
        exits=np.array([entry.exit for entry in entries], np.int64),
    )


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
