"""Stand-ins at the four seams, and nowhere else: a test can hold, count and break a forward."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray

from rerank_adapters.calibration import Calibration
from rerank_adapters.document_tokens import DocumentTokens
from rerank_adapters.engine.admission import Limits
from rerank_adapters.errors import ClosedError
from rerank_adapters.futures import done
from rerank_adapters.loading import assemble
from rerank_adapters.loading.exits import ChosenExit
from rerank_adapters.passages import Windows
from rerank_adapters.protocols import Backend, BackendTraits, Call, ModelInfo, Scored, Scorer
from rerank_adapters.reranker import Reranker
from rerank_adapters.score_cache import ScoreCache
from rerank_adapters.tokenization import PairTokenizer
from rerank_adapters.tokens import Scores, TokenBatch
from tests import checkpoints

Pair = tuple[str, str]


class LookupScorer:
    """A Scorer that reads each pair's score from a table; absent pairs score `default`."""

    def __init__(self, table: Mapping[Pair, float], *, default: float = 0.0) -> None:
        self.table = dict(table)
        self.default = default
        self.calls: list[list[Pair]] = []
        self.closed = False

    def submit_pairs(self, pairs: Sequence[Pair], call: Call) -> Future[Scored]:
        self.calls.append(list(pairs))
        scores = np.array([self.table.get(pair, self.default) for pair in pairs], np.float32)
        return done(Scored(scores, None, np.zeros(len(pairs), np.bool_)))

    def info(self) -> ModelInfo:
        return ModelInfo(model="a table")

    def close(self) -> None:
        self.closed = True


class FirstLogitFamily:
    """A ModelFamily whose score is the first logit, unchanged."""

    labels = 1
    activation = "identity"

    def keys(self, logits: NDArray[np.float32]) -> Scores:
        return logits[:, 0]

    def scores(self, logits: NDArray[np.float32]) -> Scores:
        return logits[:, 0]


class CountingBackend:
    """A Backend that counts what it runs; a pair's logit is a fixed function of its own tokens.

    The logit is (sum of token ids x (position + 1)) mod 1009 / 1009, so that a lost, repeated or
    moved row shows, and no row depends on another.
    """

    def __init__(
        self, *, labels: int = 1, device: str = "cpu", traits: BackendTraits | None = None
    ) -> None:
        self.labels = labels
        self.device = device
        self.traits = traits or BackendTraits(
            device_kind=device, batch_tokens=2048, max_padding=0.03, free_padding=24
        )
        self.forwards = 0
        self.rows = 0
        self.tokens = 0
        self.batches: list[TokenBatch] = []
        self.closed = False
        self._lock = threading.Lock()

    def logits(self, batch: TokenBatch) -> NDArray[np.float32]:
        if self.closed:
            raise ClosedError("the backend is closed")
        with self._lock:
            self.forwards += 1
            self.rows += len(batch)
            self.tokens += int(batch.lengths.sum())
            self.batches.append(batch)
        return token_logits(batch, labels=self.labels)

    def info(self) -> dict[str, str]:
        return {"backend": type(self).__name__, "device": self.device, "dtype": "float32"}

    def close(self) -> None:
        self.closed = True


def token_logits(batch: TokenBatch, *, labels: int = 1) -> NDArray[np.float32]:
    """What CountingBackend returns for *batch*: float32 of shape (pairs, labels)."""
    offsets = batch.offsets
    rows = [batch.input_ids[start:end] for start, end in itertools.pairwise(offsets)]
    sums = [int((ids.astype(np.int64) * np.arange(1, len(ids) + 1)).sum()) for ids in rows]
    column = np.array([total % 1009 / 1009 for total in sums], np.float32)
    return np.repeat(column[:, None], labels, axis=1)


class ConstantBackend(CountingBackend):
    """A Backend that gives every pair the same logits."""

    def __init__(self, value: float = 0.0, *, labels: int = 1) -> None:
        super().__init__(labels=labels)
        self.value = value

    def logits(self, batch: TokenBatch) -> NDArray[np.float32]:
        return np.full_like(super().logits(batch), self.value)


class HeldBackend(CountingBackend):
    """A Backend whose first forward waits until `release` is set; `entered` says that it began.

    Hold it, let callers queue behind it, then release: tests state an order without a clock.
    """

    def __init__(self, *, labels: int = 1) -> None:
        super().__init__(labels=labels)
        self.entered = threading.Event()
        self.release = threading.Event()

    def logits(self, batch: TokenBatch) -> NDArray[np.float32]:
        with self._lock:
            first = not self.entered.is_set()
            self.entered.set()
        if first and not self.release.wait(60):
            raise AssertionError("nobody released the held forward within 60 s")
        return super().logits(batch)


class StagedFake(CountingBackend):
    """A StagedBackend of *layers* and one more over the same logits; `states` are a pair's ids.

    Pooled states are [logit, 0]: with a head of (-1, 0) the exits order candidates backwards. Set
    `hold` to have the first `resume` wait until `release`. `started` and `resumed` count pairs, and
    `layers` how many pairs ran each.
    """

    def __init__(self, *, hold: bool = False, layers: tuple[int, ...] = (1,)) -> None:
        super().__init__(
            traits=BackendTraits(
                batch_tokens=256, max_padding=0.03, free_padding=24, exit_layers=layers
            )
        )
        self.hold = hold
        self.layers: Counter[int] = Counter()
        self.entered = threading.Event()
        self.release = threading.Event()
        self.started = 0
        self.resumed = 0

    def start(
        self,
        batch: TokenBatch,
        layer: int,
        states: list[NDArray[np.int32]] | None = None,
        *,
        after: int = 0,
    ) -> tuple[NDArray[np.float32], list[NDArray[np.int32]]]:
        assert layer in self.traits.exit_layers
        assert (states is None) == (after == 0)
        if states is not None:
            self._check(states, batch, after)
        logits = self.logits(batch)
        with self._lock:
            self.started += len(batch)
            self.layers += Counter({each: len(batch) for each in range(after + 1, layer + 1)})
        ends = batch.offsets[1:-1]
        pooled = np.concatenate((logits, np.zeros_like(logits)), axis=1)
        return pooled, [part.copy() for part in np.split(batch.input_ids, ends)]

    def resume(
        self, batch: TokenBatch, states: list[NDArray[np.int32]], layer: int
    ) -> NDArray[np.float32]:
        self._check(states, batch, layer)
        if self.hold and len(batch) > 1:  # not the two tokens that are tried at load
            self.entered.set()
            assert self.release.wait(60), "nobody released the held forward within 60 s"
        last = max(self.traits.exit_layers) + 1
        with self._lock:
            self.resumed += len(batch)
            self.layers += Counter({each: len(batch) for each in range(layer + 1, last + 1)})
        return self.logits(batch)

    def _check(self, states: list[NDArray[np.int32]], batch: TokenBatch, after: int) -> None:
        assert after in self.traits.exit_layers
        assert [len(each) for each in states] == batch.lengths.tolist()
        assert np.array_equal(np.concatenate(states), batch.input_ids)


class FaultyBackend(CountingBackend):
    """A Backend that raises what `rule(batch)` returns, and runs the batch where that is None."""

    def __init__(
        self, rule: Callable[[TokenBatch], BaseException | None], *, labels: int = 1
    ) -> None:
        super().__init__(labels=labels)
        self.rule = rule
        self.faults = 0

    def logits(self, batch: TokenBatch) -> NDArray[np.float32]:
        error = self.rule(batch)
        if error is not None:
            with self._lock:
                self.faults += 1
            raise error
        return super().logits(batch)


def tiny_tokenizer(max_length: int = 64) -> PairTokenizer:
    """The tiny BERT's tokenizer."""
    return PairTokenizer.from_folder(checkpoints.build("bert"), max_length=max_length)


def encoded(pairs: Sequence[Pair], *, max_length: int = 64) -> TokenBatch:
    """The tokens that `reranker_over` makes of *pairs*."""
    return tiny_tokenizer(max_length).encode(pairs).batch


def queued_pairs(reranker: Reranker) -> int:
    """Pairs that wait for a forward, tokenised."""
    return int(reranker.stats()["queue_pairs"])


def scorer_over(
    *backends: Backend,
    max_length: int = 64,
    max_queue_pairs: int | None = None,
    when_full: str = "block",
    num_workers: int | None = None,
    max_batch_tokens: int | None = None,
    windows: Windows | None = None,
    cache: ScoreCache | None = None,
    document_tokens: DocumentTokens | None = None,
    calibration: Calibration | None = None,
    exits: ChosenExit | None = None,
) -> Scorer:
    """The real chain of scorers and the real queue over fake backends."""
    return assemble(
        tiny_tokenizer(max_length),
        FirstLogitFamily(),
        backends,
        num_workers=num_workers,
        max_batch_tokens=max_batch_tokens,
        limits=Limits(pairs=max_queue_pairs, block=when_full == "block"),
        windows=windows,
        cache=cache,
        document_tokens=document_tokens,
        calibration=calibration,
        exits=exits,
    )


def reranker_over(
    *backends: Backend,
    max_length: int = 64,
    max_queue_pairs: int | None = None,
    when_full: str = "block",
    num_workers: int | None = None,
    max_batch_tokens: int | None = None,
    windows: Windows | None = None,
    cache: ScoreCache | None = None,
    document_tokens: DocumentTokens | None = None,
    calibration: Calibration | None = None,
    exits: ChosenExit | None = None,
) -> Reranker:
    """A Reranker of real parts over fake backends: the tiny BERT's tokenizer, the real queue."""
    return Reranker.over(
        scorer_over(
            *backends,
            max_length=max_length,
            max_queue_pairs=max_queue_pairs,
            when_full=when_full,
            num_workers=num_workers,
            max_batch_tokens=max_batch_tokens,
            windows=windows,
            cache=cache,
            document_tokens=document_tokens,
            calibration=calibration,
            exits=exits,
        )
    )
