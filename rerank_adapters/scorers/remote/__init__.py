"""Scores from a server: the same seam as a model in this process."""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import Future
from time import monotonic
from typing import Any

import numpy as np

from ...errors import BackendError, ClosedError, ConfigError, InputError
from ...families.activations import scores as activated
from ...protocols import Call, ModelInfo, Pair, Scored
from ...remote import NEEDS_MODEL, RemoteConfig
from ...texts import whole_pairs
from ...tokens import Scores
from .dialects import DIALECTS, HOSTS, Dialect, told_by
from .transport import TooMuchError, Transport

__all__ = ["Remote"]

REQUEST_BYTES = 1_800_000
"""Of the texts in one request: text-embeddings-inference takes two million."""

PUBLIC_PAGES = ("/info", "/v1/models", "/models")


class Remote:
    """Asks a server for the scores of pairs: a request for each query, in parts.

    It has one thread of its own with an event loop, so that a call that is cancelled or late ends
    at once whatever the server does. After a fork it begins anew.

    activation: "default" and "sigmoid" are applied here to the raw outputs of TEI, vLLM and
        Infinity, "identity" leaves them. Cohere's and Jina's scores are theirs: "default" alone.
    """

    def __init__(self, remote: RemoteConfig, *, activation: str = "default") -> None:
        self._remote = remote
        self._activation = activation
        self._ended = False
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._running: _Running | None = None

    def submit_pairs(self, pairs: Sequence[Pair], call: Call) -> Future[Scored]:
        """Ask for the scores of *pairs*: a Future of them, in order.

        InputError for prompts, which no server takes here.
        """
        if call.prompts is not None and any(prompt is not None for prompt in call.prompts):
            raise InputError("prompt must be None where a server scores: it takes none")
        left = self._remote.timeout
        if call.deadline is not None:
            left = call.deadline - monotonic()
        running = self._started()
        return running.submit(self._scored(running, whole_pairs(pairs), call, monotonic() + left))

    def info(self) -> ModelInfo:
        """Whom it asks, and what for."""
        dialect: str = self._remote.dialect
        if self._running is not None and self._running.known is not None:
            dialect = self._running.known[0]
        return ModelInfo(
            model=self._remote.model or self._remote.host,
            backend="remote",
            why="remote= names a server",
            device=self._remote.host,
            activation="the server's" if dialect in NEEDS_MODEL else self._named(),
            details={"dialect": dialect},
        )

    def close(self) -> None:
        """Let go of the server: what waits fails with ClosedError. Idempotent."""
        self._ended = True
        if (running := self._running) is not None and self._pid == os.getpid():
            running.stop()

    def _named(self) -> str:
        return "sigmoid" if self._activation == "default" else self._activation

    def _started(self) -> _Running:
        if self._pid != os.getpid():  # threads and sockets stayed in the parent
            self._lock, self._running, self._pid = threading.Lock(), None, os.getpid()
        with self._lock:
            if self._ended:
                raise ClosedError("the server was let go of: make another reranker")
            if self._running is None:
                self._running = _Running(self._remote)
                weakref.finalize(self, self._running.stop).atexit = False
            return self._running

    async def _scored(
        self, running: _Running, pairs: Sequence[Pair], call: Call, deadline: float
    ) -> Scored:
        found = np.zeros(len(pairs), np.float32)
        try:
            async with asyncio.timeout(deadline - monotonic()):
                dialect, most = await running.dialect()
                self._check(dialect, pairs)
                async with asyncio.TaskGroup() as group:
                    for rows in _chunks(pairs, most):
                        part = _Part(running, dialect, pairs, call, deadline, found)
                        group.create_task(part.fill(rows))
        except TimeoutError:
            raise TimeoutError(f"no scores from {self._remote.host} within the timeout") from None
        except BaseExceptionGroup as group_of:
            raise _first(group_of) from None
        return self._meant(dialect, found)

    def _check(self, dialect: Dialect, pairs: Sequence[Pair]) -> None:
        if not dialect.raw and self._activation != "default":
            raise ConfigError(
                f"activation must be 'default' where the server applies its own: got "
                f"{self._activation!r}"
            )
        for row, (_, document) in enumerate(pairs):
            if not dialect.blank and not document.strip():
                raise InputError(
                    f"document {row} is blank, which vLLM scores as the query alone: leave it out"
                )

    def _meant(self, dialect: Dialect, found: Scores) -> Scored:
        cut = np.zeros(len(found), np.bool_)  # no server says whether it cut
        if not dialect.raw:
            return Scored(found, None, cut)
        return Scored(activated(found[:, None], self._named()), found, cut)


class _Part:
    """Documents of one query, asked for together."""

    def __init__(
        self,
        running: _Running,
        dialect: Dialect,
        pairs: Sequence[Pair],
        call: Call,
        deadline: float,
        found: Scores,
    ) -> None:
        self.running, self.dialect, self.pairs = running, dialect, pairs
        self.call, self.deadline, self.found = call, deadline, found

    async def fill(self, rows: Sequence[int], *, whole: bool = True) -> None:
        """Put the scores of *rows* where they belong; where they are too many, in two halves."""
        query = self.pairs[rows[0]][0]
        body = self.dialect.body(
            query, [self.pairs[row][1] for row in rows], self.running.remote.model
        )
        try:
            async with self.running.places:
                answer = await self.running.transport.ask(self.dialect.path, body, self.deadline)
        except TooMuchError:
            if not whole or len(rows) == 1:
                raise
            middle = len(rows) // 2
            await self.fill(rows[:middle], whole=False)
            await self.fill(rows[middle:], whole=False)
            return
        self.found[list(rows)] = _scores(self.dialect, answer, len(rows))
        if self.call.on_progress is not None:
            self.call.on_progress(len(rows))


class _Running:
    """A thread with an event loop, and what lives on it."""

    def __init__(self, remote: RemoteConfig) -> None:
        self.remote = remote
        self.known: tuple[str, Dialect, int] | None = None
        self._asking = asyncio.Lock()
        self.places = asyncio.Semaphore(remote.max_in_flight)
        self.transport = Transport(remote)
        self._stopped = False
        self._lock = threading.RLock()  # a finalizer may run anywhere
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="rerank-remote", daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, Scored]) -> Future[Scored]:
        """A Future of what *work* comes to; cancelling it cancels the requests."""
        with self._lock:
            if not self._stopped:
                return asyncio.run_coroutine_threadsafe(self._guarded(work), self._loop)
        work.close()
        raise ClosedError("the server was let go of: make another reranker")

    def stop(self) -> None:
        """End what waits, then the thread."""
        with self._lock:
            if self._stopped:
                return
            self._stopped = True
            self._loop.call_soon_threadsafe(self._loop.stop)
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=5.0)

    async def dialect(self) -> tuple[Dialect, int]:
        """How the server is asked, and the most documents at once; found out at the first call."""
        async with self._asking:
            if self.known is None:
                self.known = await self._find()
        return self.known[1:]

    async def _find(self) -> tuple[str, Dialect, int]:
        name, page = self.remote.dialect, None
        if name == "auto":
            name, page = await self._told()
        elif name == "tei":
            page = await self.transport.page("/info")
        if name in NEEDS_MODEL and self.remote.model is None:
            raise ConfigError(f'model must be named for dialect "{name}": got None')
        most = page.get("max_client_batch_size") if isinstance(page, dict) else None
        if isinstance(most, bool) or not isinstance(most, int) or most < 1:
            most = DIALECTS[name].documents
        return name, DIALECTS[name], self.remote.documents_per_request or most

    async def _told(self) -> tuple[Any, Any]:
        if (known := HOSTS.get(self.remote.host)) is not None:
            return known, None
        for path in PUBLIC_PAGES:
            page = await self.transport.page(path)
            if (name := told_by(page)) is not None:
                return name, page
        raise ConfigError(
            f"dialect must be named for {self.remote.host}, whose public pages do not tell it: "
            f"{', '.join(DIALECTS)}"
        )

    async def _guarded(self, work: Coroutine[Any, Any, Scored]) -> Scored:
        try:
            return await work
        except asyncio.CancelledError:
            if self._stopped:
                raise ClosedError("the reranker was closed while the server was asked") from None
            raise

    def _run(self) -> None:
        loop = self._loop
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
            loop.run_until_complete(asyncio.sleep(0))  # what was handed over is a task now
            waiting = asyncio.all_tasks(loop)
            for task in waiting:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*waiting, return_exceptions=True))
            loop.run_until_complete(self.transport.close())
        finally:
            loop.close()


def _chunks(pairs: Sequence[Pair], most: int) -> Iterator[list[int]]:
    """Rows of one query each, as many as a request takes."""
    by_query: dict[str, list[int]] = {}
    for row, (query, _) in enumerate(pairs):
        by_query.setdefault(query, []).append(row)
    for rows in by_query.values():
        chunk, size = list[int](), 0
        for row in rows:
            more = len(pairs[row][1].encode())
            if chunk and (len(chunk) == most or size + more > REQUEST_BYTES):
                yield chunk
                chunk, size = [], 0
            chunk.append(row)
            size += more
        yield chunk


def _scores(dialect: Dialect, answer: Any, count: int) -> Scores:
    """float32 of shape (count,): every index once, every score finite. Raises BackendError."""
    found = np.full(count, np.nan, np.float32)
    try:
        rows = dialect.rows(answer)
        results = [(row["index"], row[dialect.score]) for row in rows]
    except (KeyError, TypeError, IndexError):
        raise BackendError(f"the server must answer with results: got {answer!r:.120}") from None
    if len(results) != count:
        raise BackendError(f"the server must score {count} documents: got {len(results)} results")
    seen = set[int]()
    for index, score in results:
        if type(index) is not int or not 0 <= index < count or index in seen:
            raise BackendError(f"the server must name each document once: got index {index!r:.40}")
        if not _finite(score):
            raise BackendError(
                f"scores must be finite: the server gave {score!r:.40} for document {index}"
            )
        seen.add(index)
        found[index] = score
    return found


def _finite(score: object) -> bool:
    if isinstance(score, bool) or not isinstance(score, int | float):
        return False
    return abs(score) <= float(np.finfo(np.float32).max)  # NaN is not


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error of *group*: the others were cancelled for it, or came with it."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
