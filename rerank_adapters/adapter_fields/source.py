"""Where an adapter's ranker comes from: a lease on a shared model, or one that was given."""

from __future__ import annotations

from collections.abc import Sequence

from ..cascade import Cascade
from ..config import RerankerConfig
from ..errors import ClosedError, ConfigError, RerankError
from ..protocols import ModelInfo, Ranker, TokenCounter
from ..sharing import acquire


class _Counting(Cascade):
    """A cascade of one ranker that knows its tokens, and so does this."""

    counter: TokenCounter

    @property
    def max_length(self) -> int:
        """The most tokens of a pair."""
        return self.counter.max_length

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each of *texts* has by itself, uncut, special tokens not counted."""
        return self.counter.count_tokens(texts)


def by_rules(ranker: Ranker, config: RerankerConfig) -> Ranker:
    """A ready *ranker* with what *config* says of candidates and fusion, which go with requests."""
    if config.rerank_count is None and config.fuse is None:
        return ranker
    kind = _Counting if isinstance(ranker, TokenCounter) else Cascade
    cascade = kind([ranker], rerank_count=config.rerank_count, rest=config.rest, fuse=config.fuse)
    if isinstance(cascade, _Counting) and isinstance(ranker, TokenCounter):
        cascade.counter = ranker
    return cascade


class RankerSource:
    """Gives an adapter its ranker, loaded at the first `get`, until it is closed.

    Two are equal where the same model is meant. A copy or a pickle has a lease of its own: neither
    weights nor the token travel.
    """

    def __init__(self, config: RerankerConfig, ranker: Ranker | None, owner: str) -> None:
        self.config = config
        self.ranker = ranker
        self.closed = False
        self._owner = owner
        self._lease = acquire(config)
        self._ready = None if ranker is None else by_rules(ranker, config)

    @property
    def loaded(self) -> Ranker | None:
        """The ranker, where it was given or serves already, for another adapter perhaps."""
        return self._lease.serving if self._ready is None else self._ready

    @property
    def running(self) -> ModelInfo | None:
        """What really runs, where that is known: nothing is loaded to say it."""
        try:
            return None if self.loaded is None else self.loaded.info()
        except RerankError:  # it is closed; asked to score, it says so
            return None

    def get(self) -> Ranker:
        """The ranker, loaded where it is not yet. Raises ClosedError, and what loading raises."""
        self._check_open()
        return self._lease.get() if self._ready is None else self._ready

    async def aget(self) -> Ranker:
        """`get`, with loading off the event loop."""
        self._check_open()
        return await self._lease.aget() if self._ready is None else self._ready

    def close(self) -> None:
        """Let go of a shared model; one that was given stays the caller's. Idempotent."""
        self.closed = True
        self._lease.close()

    def _check_open(self) -> None:
        if self.closed:
            raise ClosedError(f"the {self._owner} is closed: make a new one")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RankerSource):
            return NotImplemented
        return self.config == other.config and self.ranker is other.ranker

    __hash__ = None  # type: ignore[assignment]  # an adapter has none either

    def __copy__(self) -> RankerSource:
        return RankerSource(self.config, self.ranker, self._owner)

    def __deepcopy__(self, memo: object) -> RankerSource:
        return RankerSource(self.config, self.ranker, self._owner)

    def __reduce__(self) -> tuple[type[RankerSource], tuple[RerankerConfig, Ranker | None, str]]:
        return RankerSource, (self.config, self.ranker, self._owner)


def check_ranker(reranker: object, model: object) -> None:
    """Raise ConfigError where *reranker* is no Ranker, or where *model* is one."""
    if isinstance(model, Ranker) and not isinstance(model, type):
        raise ConfigError(
            "model must be a name or a folder: a ready ranker is given as reranker=, "
            f"got {model!r:.80}"
        )
    if reranker is None or (isinstance(reranker, Ranker) and not isinstance(reranker, type)):
        return
    hint = ": a name or a folder is given as model=" if isinstance(reranker, str) else ""
    raise ConfigError(
        "reranker must be a ranker, which has rerank_many, arerank_many, info and close: got "
        f"{reranker!r:.80}{hint}"
    )
