"""One loaded model for equal weights, however many adapters use it and whatever their options.

    lease ── view (one per configuration: tokenizer, family, queue limits)
    lease ──┘  └── model (one per weights, device and dtype: backends, workers, memory budget)

A view that nobody holds is kept for `IDLE_SECONDS`, so that an adapter made per request loads once.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from queue import Empty, SimpleQueue
from time import monotonic

from .config import LIVE, RerankerConfig
from .errors import ClosedError, ConfigError, ModelError
from .futures import settle
from .loading import Found, Loaded, compose, find, read, start
from .protocols import Pair
from .remote import RemoteConfig
from .reranker import Reranker, ranking_rules
from .texts import whole_pairs

IDLE_SECONDS = 60.0
"""How long a model that nobody holds is kept."""

IDLE_MODELS = 2
"""How many such models at most: the one idle longest is freed first."""


def acquire(config: RerankerConfig | RemoteConfig) -> Lease:
    """A lease on the one model, or server, this process keeps for *config*; loads at first use."""
    if isinstance(config, RemoteConfig):
        config = RerankerConfig(remote=config)
    if not isinstance(config, RerankerConfig):
        raise ConfigError(f"config must be a RerankerConfig: got {config!r:.80}")
    return Lease(config)


def pair_counter(config: RerankerConfig) -> Callable[[Sequence[Pair]], list[int]]:
    """What counts the tokens that pairs are scored with under *config*, cut as they are cut.

    It reads the tokenizer and loads no network. Raises ModelError, ConfigError.
    """
    tokenizer = read(find(config)).tokenizer
    return lambda pairs: tokenizer.encode(whole_pairs(pairs)).batch.lengths.tolist()


def close_all() -> None:
    """Free every shared model now; leases load again at their next use."""
    _REGISTRY.close_all()


class Lease:
    """The right to use a shared model. Dropped or closed, it lets go; the last one frees it.

    A copy or a pickle is a lease of its own that has not loaded yet: weights never travel.
    """

    def __init__(self, config: RerankerConfig) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._held: tuple[_View, Reranker, Callable[[], object]] | None = None
        self._closed = False
        _LEASES.add(self)

    @property
    def loaded(self) -> Reranker | None:
        """The ranker, where it is loaded and serves."""
        held = self._held
        return None if held is None or held[1].closed else held[1]

    @property
    def serving(self) -> Reranker | None:
        """The ranker, where it serves already: through this lease, or another of equal options."""
        return self.loaded or _REGISTRY.serving(self._config)

    def get(self) -> Reranker:
        """The ranker, loaded once for equal weights. Raises as `Reranker` does, and ClosedError.

        What broke, or was lost in a fork, is loaded again.
        """
        if (ranker := self.loaded) is not None:
            return ranker
        with self._lock:
            if self._closed:
                raise ClosedError("the lease is closed: acquire another")
            if (ranker := self.loaded) is None:
                self._let_go()
                view, ranker = _REGISTRY.hold(self._config)
                end = weakref.finalize(self, _DROPPED.put, view)
                end.atexit = False
                self._held = view, ranker, end.detach
            return ranker

    async def aget(self) -> Reranker:
        """`get`, with any loading in a thread of its own, off the event loop."""
        if (ranker := self.loaded) is not None:
            return ranker
        future: Future[Reranker] = Future()
        context = contextvars.copy_context()

        def load() -> None:
            try:
                settle(future, context.run(self.get))
            except BaseException as error:  # noqa: BLE001  # the waiter's to raise
                settle(future, error)

        threading.Thread(target=load, name="rerank-load", daemon=True).start()
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Let go of the model; later uses raise ClosedError. Idempotent."""
        with self._lock:
            self._closed = True
            self._let_go()

    def _let_go(self) -> None:
        held, self._held = self._held, None
        if held is not None and held[2]() is not None:
            _REGISTRY.drop(held[0])

    def __copy__(self) -> Lease:
        return Lease(self._config)

    def __deepcopy__(self, memo: object) -> Lease:
        return Lease(self._config)

    def __reduce__(self) -> tuple[type[Lease], tuple[RerankerConfig]]:
        return Lease, (self._config,)


class _Model:
    """The network of one key, and how many views are over it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.loaded: Loaded | None = None
        self.views = 0

    def open(self, view: _View, found: Found) -> Reranker:
        """A ranker over the network, which is loaded where it is not here."""
        meaning = read(found)
        with self.lock:
            if self.loaded is None or self.loaded.engine.closed:
                # The bound of one lease is its admission's; the network's own is the device's.
                unbound = replace(found.config, max_batch_tokens=None)
                self.loaded, self.views = start(replace(found, config=unbound), meaning), 0
            loaded = self.loaded
            loaded.engine.allow(found.config.max_batch_tokens)
            try:
                scorer = compose(
                    found, meaning, loaded, ends_engine=False, on_close=lambda: self._drop(loaded)
                )
            except BaseException:
                if not self.views:
                    self.loaded = None
                    loaded.engine.close()
                raise
            self.views += 1
        view.model = self
        return Reranker.over(scorer, **ranking_rules(found.config))

    def _drop(self, loaded: Loaded) -> None:
        with self.lock:
            if self.loaded is not loaded:
                return  # it broke, and another took its place
            self.views -= 1
            if self.views:
                return
            self.loaded = None
        loaded.engine.close()


class _View:
    """One configuration's ranker, and how many leases hold it."""

    def __init__(self, config: RerankerConfig) -> None:
        self.config = config
        self.lock = threading.Lock()
        self.ranker: Reranker | None = None
        self.model: _Model | None = None
        self.leases = 0
        self.idle_since = 0.0


class _Registry:
    """Every view and model of this process. Its lock is held for moments, never while loading."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._views: dict[object, _View] = {}
        self._models: weakref.WeakValueDictionary[tuple[object, ...], _Model]
        self._models = weakref.WeakValueDictionary()
        self._reaper: threading.Thread | None = None

    def hold(self, config: RerankerConfig) -> tuple[_View, Reranker]:
        """The view of *config* and its ranker, one lease more on it; loads where it must."""
        with self._lock:
            view = self._views.setdefault(_key(config), _View(config))
            view.leases += 1
        try:
            with view.lock:
                if view.ranker is None or view.ranker.closed:
                    view.ranker = self._opened(view)
                ranker = view.ranker
        except BaseException:
            self.drop(view)
            raise
        self._start_reaper()
        return view, ranker

    def _opened(self, view: _View) -> Reranker:
        if view.config.remote is not None:
            return Reranker.from_config(view.config)
        found = find(view.config)
        _check_access(found)
        return self._model(found.key).open(view, found)

    def serving(self, config: RerankerConfig) -> Reranker | None:
        """The ranker of *config*'s view, where it is loaded."""
        with self._lock:
            view = self._views.get(_key(config))
        ranker = None if view is None else view.ranker
        return None if ranker is None or ranker.closed else ranker

    def drop(self, view: _View) -> None:
        """One lease less on *view*."""
        with self._lock:
            view.leases -= 1
            view.idle_since = monotonic()
        self.sweep()

    def sweep(self) -> None:
        """Free what has been idle too long, and the oldest where too many models are."""
        now = monotonic()
        with self._lock:
            idle = [view for view in self._views.values() if not view.leases]
            ended = [it for it in idle if it.ranker is None or now - it.idle_since >= IDLE_SECONDS]
            busy = {id(view.model) for view in self._views.values() if view.leases}
            rest = sorted((it for it in idle if it not in ended), key=lambda it: -it.idle_since)
            kept = list(dict.fromkeys(id(it.model) for it in rest if id(it.model) not in busy))
            ended += [it for it in rest if id(it.model) in kept[IDLE_MODELS:]]
            for view in ended:
                self._forget(view)
        for view in ended:
            _close(view)

    def close_all(self) -> None:
        """Free every view, held or not."""
        with self._lock:
            views = list(self._views.values())
            for view in views:
                self._forget(view)
        for view in views:
            _close(view)

    def reap(self) -> None:
        """A thread's life: lets go for leases that were garbage collected, frees what is idle."""
        while True:
            try:
                view = _DROPPED.get(timeout=max(0.01, IDLE_SECONDS / 4))
            except Empty:
                self.sweep()
            else:
                self.drop(view)
            with self._lock:
                if not self._views and _DROPPED.empty():
                    self._reaper = None
                    return

    def renew(self) -> None:
        """In a forked child: threads that did not come along may have held the locks."""
        self._lock = threading.Lock()
        self._reaper = None
        for lease in list(_LEASES):
            lease._lock = threading.Lock()
        for view in self._views.values():
            view.lock = threading.Lock()
            if view.model is not None:
                view.model.lock = threading.Lock()

    def _model(self, key: tuple[object, ...]) -> _Model:
        with self._lock:
            model = self._models.get(key)
            if model is None:
                model = self._models[key] = _Model()
            return model

    def _forget(self, view: _View) -> None:
        if self._views.get(_key(view.config)) is view:
            del self._views[_key(view.config)]

    def _start_reaper(self) -> None:
        with self._lock:
            if self._reaper is None:
                self._reaper = threading.Thread(target=self.reap, name="rerank-idle", daemon=True)
                self._reaper.start()


def _key(config: RerankerConfig) -> object:
    """What makes two configurations one view: what is alive is compared by nothing but itself."""
    return config, *(id(getattr(config, name)) for name in LIVE)


def _close(view: _View) -> None:
    with view.lock:
        ranker, view.ranker = view.ranker, None
    if ranker is not None:
        ranker.close()


def _check_access(found: Found) -> None:
    """A lease proves access with its own token: another's load, or a cached file, is not enough."""
    refusal = found.source.refusal
    if refusal is not None:
        raise ModelError(
            f"model {found.config.model!r} was refused by the hub ({refusal}): pass a token= that "
            "has access to it"
        )


_DROPPED: SimpleQueue[_View] = SimpleQueue()
"""Views of leases that were garbage collected: a finalizer may take no lock, as put does not."""

_LEASES: weakref.WeakSet[Lease] = weakref.WeakSet()

_REGISTRY = _Registry()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_REGISTRY.renew)
