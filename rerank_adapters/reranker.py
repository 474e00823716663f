"""Reranker: checks input, scores, sorts stably, cuts."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import math
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from numbers import Integral, Real
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np

from .config import (
    DEFAULT_MODEL,
    Activation,
    BackendName,
    DType,
    RerankerConfig,
    Truncation,
    WhenFull,
)
from .errors import ClosedError, ConfigError, InputError
from .scorers.cross_encoder import CrossEncoder, Encoded
from .scorers.scheduling import Scheduler, check_timeout
from .values import RankedDocument, Ranking, Scores, TokenBatch

Result = TypeVar("Result")
Pairs = Sequence[tuple[str, str]]
Request = tuple[str, Sequence[str]]


class Reranker:
    """One loaded cross-encoder behind one queue; both a Ranker and a Scorer.

    Safe to share between threads and event loops. Async methods are the same path as sync ones:
    only the waiting differs. Every method that scores takes `timeout` in seconds (TimeoutError).
    """

    def __init__(
        self,
        scorer: CrossEncoder,
        *,
        num_workers: int | None = None,
        max_queue_pairs: int | None = None,
        max_queue_tokens: int | None = None,
        when_full: WhenFull = "block",
    ) -> None:
        self._scorer = scorer
        forwards = scorer.forwards(num_workers)
        self._workers = len(forwards)
        self._scheduler = Scheduler(
            forwards,
            max_batch_tokens=scorer.max_batch_tokens,
            max_padding=scorer.max_padding,
            free_padding=scorer.free_padding,
            max_queue_pairs=max_queue_pairs,
            max_queue_tokens=max_queue_tokens,
            when_full=when_full,
            fork_safe=scorer.fork_safe,
            on_close=scorer.close,
        )
        self._end_with(self._scheduler.close)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = DEFAULT_MODEL,
        *,
        backend: BackendName = "auto",
        device: str | Sequence[str] = "auto",
        num_workers: int | None = None,
        num_threads: int | None = None,
        dtype: DType = "auto",
        revision: str | None = None,
        cache_folder: str | Path | None = None,
        local_files_only: bool = False,
        token: str | None = None,
        trust_remote_code: bool = False,
        max_length: int | None = None,
        truncation: Truncation = "longest_first",
        query_max_tokens: int | None = None,
        prompt: str | None = None,
        max_batch_tokens: int | None = None,
        activation: Activation = "default",
        file_name: str | None = None,
        max_queue_pairs: int | None = None,
        max_queue_tokens: int | None = None,
        when_full: WhenFull = "block",
    ) -> Reranker:
        """Load *model*: a hub id, a local folder, or "default", which is part of the package.

        Every argument is a field of `RerankerConfig`, explained there.

        Raises ConfigError (an argument), ModelError (the checkpoint), BackendError (the device),
        MissingDependencyError (the extra that brings the backend).
        """
        options = {name: value for name, value in locals().items() if name != "cls"}
        return cls.from_config(RerankerConfig(**options))

    @classmethod
    def from_config(cls, config: RerankerConfig) -> Reranker:
        """Load what *config* says, afresh."""
        return cls(
            CrossEncoder.from_config(_checked_config(config)),
            num_workers=config.num_workers,
            max_queue_pairs=config.max_queue_pairs,
            max_queue_tokens=config.max_queue_tokens,
            when_full=config.when_full,
        )

    @classmethod
    def shared(cls, config: RerankerConfig) -> Reranker:
        """A handle on the one reranker this process keeps for *config*; the last close() frees it.

        Loads on first use, once however many threads ask.
        """
        with _SHARED_LOCK:
            entry = _SHARED.get(_checked_config(config))
            if entry is None or entry.ended:
                entry = _SHARED[config] = _Shared(config)
        return entry.handle()

    @classmethod
    async def ashared(cls, config: RerankerConfig) -> Reranker:
        """`shared`, with any loading in a thread of its own, off the event loop."""
        future: Future[Reranker] = Future()
        context = contextvars.copy_context()

        def load() -> None:
            try:
                future.set_result(context.run(cls.shared, config))
            except BaseException as error:  # noqa: BLE001  # the waiter's to raise
                future.set_exception(error)

        threading.Thread(target=load, name="rerank-load", daemon=True).start()
        return await asyncio.wrap_future(future)

    def score(self, query: str, texts: Sequence[str], *, timeout: float | None = None) -> Scores:
        """float32 scores of shape (texts,), in the order of *texts*."""
        job = _Job(self._scorer, _checked_request(query, texts))
        return self._run(job, job.scores, timeout)

    def score_pairs(self, pairs: Pairs, *, timeout: float | None = None) -> Scores:
        """float32 scores of shape (pairs,), in order; identical pairs are scored once."""
        job = _Job(self._scorer, _checked_pairs(pairs))
        return self._run(job, job.scores, timeout)

    def rerank(
        self,
        query: str,
        texts: Sequence[str],
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
        timeout: float | None = None,
    ) -> Ranking:
        """Rank *texts* for *query*, best first; equal scores keep the order of *texts*.

        score_threshold is inclusive, acts after the activation and before the cut to *top_n*
        (None: all). No texts give an empty ranking. InputError names the argument and index.
        """
        return self.rerank_many(
            [(query, texts)], top_n=top_n, score_threshold=score_threshold, timeout=timeout
        )[0]

    def rerank_many(
        self,
        requests: Sequence[Request],
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
        timeout: float | None = None,
    ) -> list[Ranking]:
        """One ranking per (query, texts), in order: one pool of pairs, one plan of batches."""
        job, finish = self._ranking_job(requests, top_n, score_threshold)
        return self._run(job, finish, timeout)

    def submit(
        self, query: str, texts: Sequence[str], *, timeout: float | None = None
    ) -> Future[Scores]:
        """Tokenise now, score soon: a Future of the float32 scores of shape (texts,)."""
        job = _Job(self._scorer, _checked_request(query, texts))
        return self._start(job, job.scores, timeout)

    async def ascore(
        self, query: str, texts: Sequence[str], *, timeout: float | None = None
    ) -> Scores:
        """`score`, awaited; tokenising happens off the event loop."""
        job = _Job(self._scorer, _checked_request(query, texts))
        return await self._start_async(job, job.scores, timeout)

    async def ascore_pairs(self, pairs: Pairs, *, timeout: float | None = None) -> Scores:
        """`score_pairs`, awaited."""
        job = _Job(self._scorer, _checked_pairs(pairs))
        return await self._start_async(job, job.scores, timeout)

    async def arerank(
        self,
        query: str,
        texts: Sequence[str],
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
        timeout: float | None = None,
    ) -> Ranking:
        """`rerank`, awaited."""
        rankings = await self.arerank_many(
            [(query, texts)], top_n=top_n, score_threshold=score_threshold, timeout=timeout
        )
        return rankings[0]

    async def arerank_many(
        self,
        requests: Sequence[Request],
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
        timeout: float | None = None,
    ) -> list[Ranking]:
        """`rerank_many`, awaited."""
        job, finish = self._ranking_job(requests, top_n, score_threshold)
        return await self._start_async(job, finish, timeout)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each of *texts* has by itself, uncut, special tokens not counted."""
        return self._scorer.tokenizer.count(_checked_texts(texts))

    def info(self) -> dict[str, Any]:
        """What really runs, and why: model, revision, backend, device, workers, limits."""
        self._check_open()
        return {**self._scorer.info(), "workers": self._workers}

    def stats(self) -> dict[str, Any]:
        """A snapshot of the queue and of what was done so far."""
        return self._scheduler.stats()

    @property
    def closed(self) -> bool:
        """Whether it takes no more requests: closed, or its engine broke or was lost in a fork."""
        return not self._end.alive or self._scheduler.closed

    def close(self) -> None:
        """Fail what waits with ClosedError, stop the workers, free the model. Twice is once.

        A handle from `shared` lets go of its share; the last one does the above.
        """
        found = self._end.detach()
        if found is not None:
            found[1](wait=True)

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        if not self._end.alive:
            return "Reranker(closed)"
        facts = self._scorer.info()
        names = [name for name in ("model", "backend", "device") if name in facts]
        shown = ", ".join(f"{name}={facts[name]!r}" for name in names)
        return f"Reranker({shown})"

    def _ranking_job(
        self, requests: Sequence[Request], top_n: int | None, score_threshold: float | None
    ) -> tuple[_Job, Callable[[Scores], list[Ranking]]]:
        check_selection(top_n, score_threshold)
        pairs: list[tuple[str, str]] = []
        ends = []
        for place, request in enumerate(_checked_requests(requests)):
            pairs += _checked_request(*request, where=f"requests[{place}]: " * (len(requests) > 1))
            ends.append(len(pairs))
        job = _Job(self._scorer, pairs)

        def finish(raw: Scores) -> list[Ranking]:
            scores, truncated = job.scores(raw), job.truncated()
            return [
                _ranking(scores[start:end], truncated[start:end], top_n, score_threshold)
                for start, end in zip([0, *ends], ends, strict=False)
            ]

        return job, finish

    def _run(self, job: _Job, finish: Callable[[Scores], Result], timeout: float | None) -> Result:
        self._check_open(timeout)
        if not job.pairs:
            return finish(np.zeros(0, np.float32))
        return finish(self._scheduler.score(job.encode, timeout=timeout))

    def _start(
        self, job: _Job, finish: Callable[[Scores], Result], timeout: float | None
    ) -> Future[Result]:
        self._check_open(timeout)
        if not job.pairs:
            return _done(finish(np.zeros(0, np.float32)))
        started = perf_counter()
        encoded = job.encode()
        seconds = perf_counter() - started
        return _then(
            self._scheduler.submit(encoded, timeout=timeout, tokenise_seconds=seconds), finish
        )

    async def _start_async(
        self, job: _Job, finish: Callable[[Scores], Result], timeout: float | None
    ) -> Result:
        self._check_open(timeout)
        if not job.pairs:
            return finish(np.zeros(0, np.float32))
        future = self._scheduler.submit_call(job.encode, timeout=timeout, pairs=len(job.pairs))
        return await asyncio.wrap_future(_then(future, finish))

    def _end_with(self, end: Callable[..., None]) -> None:
        """*end* runs at close(), or without waiting when the last reference is dropped."""
        self._end = weakref.finalize(self, end, wait=False)
        self._end.atexit = False  # the scheduler ends its threads at exit by itself

    def _check_open(self, timeout: float | None = None) -> None:
        check_timeout(timeout)
        if not self._end.alive:
            raise ClosedError("the reranker is closed: load it again")


class _Shared:
    """The one loaded reranker of a configuration, and how many handles are out."""

    def __init__(self, config: RerankerConfig) -> None:
        self._config = config
        # Re-entrant: garbage collection may run a handle's finalizer inside `handle`.
        self._lock = threading.RLock()
        self._loaded: Reranker | None = None
        self._handles = 0

    @property
    def ended(self) -> bool:
        """Whether what is loaded serves nobody any more: it broke, or did not survive a fork."""
        return self._loaded is not None and self._loaded.closed

    def handle(self) -> Reranker:
        with self._lock:
            if self._loaded is None:
                self._loaded = Reranker.from_config(self._config)
            handle = copy.copy(self._loaded)
            handle._end_with(self._drop)
            self._handles += 1
            return handle

    def _drop(self, *, wait: bool) -> None:
        with self._lock:
            self._handles -= 1
            if self._handles > 0 or self._loaded is None:
                return
            loaded, self._loaded = self._loaded, None
        loaded._end.detach()
        loaded._scheduler.close(wait=wait)


_SHARED: dict[RerankerConfig, _Shared] = {}
_SHARED_LOCK = threading.Lock()


def _renew_locks() -> None:
    """In a forked child: a thread that did not come along may have held them, loading a model."""
    global _SHARED_LOCK
    _SHARED_LOCK = threading.Lock()
    for entry in _SHARED.values():
        entry._lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)


class _Job:
    """One request: its pairs, the distinct ones among them, and what tokenising found."""

    def __init__(self, scorer: CrossEncoder, pairs: list[tuple[str, str]]) -> None:
        self.pairs = pairs
        self._scorer = scorer
        self._encoded: Encoded | None = None
        places: dict[tuple[str, str], int] = {}
        rows = [places.setdefault(pair, len(places)) for pair in pairs]
        self._distinct = list(places)
        self._rows = np.array(rows, dtype=np.int64)

    def encode(self) -> TokenBatch:
        self._encoded = self._scorer.encode(self._distinct)
        return self._encoded.batch

    def scores(self, raw: Scores) -> Scores:
        return raw[self._rows] if len(self._rows) else raw

    def truncated(self) -> list[bool]:
        if self._encoded is None:
            return []
        cut: list[bool] = self._encoded.truncated[self._rows].tolist()
        return cut


def _ranking(
    scores: Scores, truncated: list[bool], top_n: int | None, score_threshold: float | None
) -> Ranking:
    order = np.argsort(-scores, kind="stable")
    if score_threshold is not None:  # compared as the Python floats that are handed out
        order = order[scores[order].astype(np.float64) >= float(score_threshold)]
    return Ranking(
        [
            RankedDocument(int(index), float(scores[index]), truncated[index])
            for index in order[:top_n]
        ]
    )


def check_selection(top_n: int | None, score_threshold: float | None) -> None:
    """Raise InputError unless top_n is None or ≥ 1 and score_threshold is None or a real number."""
    whole = isinstance(top_n, Integral) and not isinstance(top_n, bool)
    if top_n is not None and (not whole or top_n < 1):
        raise InputError(f"top_n must be an int of at least 1, or None for all: got {top_n!r:.80}")
    if score_threshold is not None and not _is_number(score_threshold):
        raise InputError(f"score_threshold must be a number or None: got {score_threshold!r:.80}")


def _is_number(value: object) -> bool:
    """Whether *value* is real (NumPy's scalars too), not NaN and within what a float holds."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and not math.isnan(value)
    except OverflowError:
        return False


def _checked_config(config: RerankerConfig) -> RerankerConfig:
    if not isinstance(config, RerankerConfig):
        raise ConfigError(f"config must be a RerankerConfig: got {config!r:.80}")
    return config


def _check_sequence(value: object, name: str, of: str) -> None:
    """A generator, read here to be checked, would be empty when it is read to be scored."""
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise InputError(f"{name} must be a sequence of {of}: got {value!r:.80}: pass a list")


def _checked_requests(requests: Sequence[Request]) -> Sequence[Request]:
    _check_sequence(requests, "requests", "(query, texts) pairs")
    for place, request in enumerate(requests):
        if not isinstance(request, tuple | list) or len(request) != 2:
            raise InputError(
                f"requests[{place}] must be a (query, texts) pair: got {request!r:.80}"
            )
    return requests


def _checked_request(query: str, texts: Sequence[str], where: str = "") -> list[tuple[str, str]]:
    _check_query(query, f"{where}query")
    return [(query, text) for text in _checked_texts(texts, where)]


def _checked_texts(texts: Sequence[str], where: str = "") -> Sequence[str]:
    _check_sequence(texts, f"{where}texts", "str")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"{where}texts[{index}] must be a str: got {text!r:.80}")
    return texts


def _checked_pairs(pairs: Pairs) -> list[tuple[str, str]]:
    _check_sequence(pairs, "pairs", "(query, text) pairs")
    for index, pair in enumerate(pairs):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise InputError(f"pairs[{index}] must be a (query, text) pair: got {pair!r:.80}")
        _check_query(pair[0], f"pairs[{index}][0]")
        if not isinstance(pair[1], str):
            raise InputError(f"pairs[{index}][1] must be a str: got {pair[1]!r:.80}")
    return [(query, text) for query, text in pairs]


def _check_query(query: str, name: str) -> None:
    if not isinstance(query, str):
        raise InputError(f"{name} must be a str: got {query!r:.80}")
    if not query.strip():
        raise InputError(f"{name} must not be blank: got {query!r:.80}")


def _done(result: Result) -> Future[Result]:
    future: Future[Result] = Future()
    future.set_result(result)
    return future


def _then(inner: Future[Scores], finish: Callable[[Scores], Result]) -> Future[Result]:
    """A Future of *finish* of *inner*'s result; cancelling it cancels *inner*."""
    outer: Future[Result] = Future()

    def pass_on(done: Future[Scores]) -> None:
        if not outer.set_running_or_notify_cancel():
            return
        try:
            outer.set_result(finish(done.result()))
        except BaseException as error:  # noqa: BLE001  # the waiter's to raise
            outer.set_exception(error)

    def cancel_inner(done: Future[Result]) -> None:
        if done.cancelled():
            inner.cancel()

    outer.add_done_callback(cancel_inner)
    inner.add_done_callback(pass_on)
    return outer
