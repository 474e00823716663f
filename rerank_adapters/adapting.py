"""What both framework adapters share, free of either framework."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence, Set
from typing import Any, Literal

from .config import RerankerConfig
from .errors import ConfigError, InputError
from .reranker import Reranker

OnEmptyText = Literal["keep_last", "drop", "error"]

CONFIG_FIELDS = tuple(field.name for field in dataclasses.fields(RerankerConfig))


class LazyReranker:
    """Loads the shared reranker of a configuration on first use, and again when that changes.

    A copy or a pickle of it is empty: weights never travel with an adapter's configuration.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loaded: tuple[RerankerConfig, Reranker] | None = None

    def get(self, source: Reranker | RerankerConfig) -> Reranker:
        """*source* itself, or the reranker of that configuration, loaded once."""
        if not isinstance(source, RerankerConfig):
            return source
        return self._current(source) or self._keep(source, Reranker.shared(source))

    async def aget(self, source: Reranker | RerankerConfig) -> Reranker:
        """`get`, with loading off the event loop."""
        if not isinstance(source, RerankerConfig):
            return source
        return self._current(source) or self._keep(source, await Reranker.ashared(source))

    def close(self) -> None:
        """Lets go of the loaded reranker; the next use loads it again."""
        with self._lock:
            loaded, self._loaded = self._loaded, None
        if loaded is not None:
            loaded[1].close()

    def _current(self, config: RerankerConfig) -> Reranker | None:
        loaded = self._loaded
        return loaded[1] if loaded is not None and loaded[0] == config else None

    def _keep(self, config: RerankerConfig, handle: Reranker) -> Reranker:
        with self._lock:
            kept = self._current(config)
            if kept is None:
                # A handle of another configuration is dropped, not closed: a call may be using it.
                self._loaded = (config, handle)
        if kept is not None:
            handle.close()  # another thread was first; both are shares of one model
        return kept or handle

    def __copy__(self) -> LazyReranker:
        return LazyReranker()

    def __deepcopy__(self, memo: dict[int, Any]) -> LazyReranker:
        return LazyReranker()

    def __reduce__(self) -> tuple[type[LazyReranker], tuple[()]]:
        return LazyReranker, ()


def config_from(fields: object, **changes: Any) -> RerankerConfig:
    """The configuration in an adapter's attributes, with *changes*; ConfigError where it is wrong."""
    values = {name: getattr(fields, name) for name in CONFIG_FIELDS if hasattr(fields, name)}
    return RerankerConfig(**(values | changes))


def check_reranker(reranker: Reranker | None, fields_set: Set[str]) -> None:
    """Raise ConfigError where both a ready reranker and configuration fields were given."""
    given = sorted(set(CONFIG_FIELDS) & fields_set)
    if reranker is not None and given:
        raise ConfigError(
            f"reranker is ready as it is, so {', '.join(given)} would change nothing: "
            "give either reranker= or the configuration"
        )


def split_empty(
    texts: Sequence[str], on_empty_text: OnEmptyText, *, name: str
) -> tuple[list[int], list[int]]:
    """Indices of *texts* to score, and of blank ones to put last unscored.

    A score of nothing would be made up: blank texts are kept last ("keep_last"), left out ("drop"),
    or an InputError naming the index ("error").
    """
    scored = [index for index, text in enumerate(texts) if text.strip()]
    blank = [index for index, text in enumerate(texts) if not text.strip()]
    if blank and on_empty_text == "error":
        raise InputError(
            f'{name}[{blank[0]}] must have text to score: got {texts[blank[0]]!r}; '
            'on_empty_text="keep_last" or "drop" lets it pass'
        )
    return scored, blank if on_empty_text == "keep_last" else []
