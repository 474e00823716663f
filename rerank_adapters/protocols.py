"""The seams. Everything else is one of these, or one wrapped around another of its kind.

A **scorer** maps (query, document) pairs to scores, order kept; a **ranker** maps a query and
documents to a ranking of indices. A feature is a file that wraps one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from .ranking import OnEmptyText, Ranking
from .tokens import KnownTokens, Scores, TokenBatch

Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class RerankRequest:
    """One query and its candidates. A plain (query, documents) tuple is taken for one.

    prompt            this request's instruction, for models that take one; None: the model's own
    ids               one key per document, for tokens stored by document; None for one without
    retrieval_scores  what the first stage gave each document, None where it gave nothing
    on_empty_text     what becomes of this request's blank documents; None: the ranker's own rule
    """

    query: str
    documents: Sequence[str]
    prompt: str | None = None
    ids: Sequence[str | None] | None = None
    retrieval_scores: Sequence[float | None] | None = None
    on_empty_text: OnEmptyText | None = None

    def take(self, indices: Sequence[int]) -> RerankRequest:
        """The same of the documents at *indices* alone, in that order."""
        kept: dict[str, Any] = {
            name: [values[index] for index in indices]
            for name in ("documents", "ids", "retrieval_scores")
            if (values := getattr(self, name)) is not None
        }
        return replace(self, **kept)


Requests = Sequence[RerankRequest | tuple[str, Sequence[str]]]


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """What travels beside pairs; a wrapper passes it on, aligned with the pairs it passes on.

    deadline     `time.monotonic()` when the caller gives up, set once: each layer has what is left
    prompts      one per pair, None for the model's own; a scorer that cannot honour one raises
                 InputError
    keys         one per pair: the document's id, for stored tokens; None for one without
    groups       int64 of shape (queries + 1,): where each query's pairs begin, and the end
    on_progress  called from a worker with the number of pairs just done; it may count, not wait
    ticket       the place in a queue that `Queue.reserve` gave out for this call
    tokens       texts that a wrapper has tokenised already; what is absent is read anew
    """

    deadline: float | None = None
    prompts: Sequence[str | None] | None = None
    keys: Sequence[str | None] | None = None
    groups: NDArray[np.int64] | None = None
    on_progress: Callable[[int], None] | None = None
    ticket: Future[Any] | None = None
    tokens: KnownTokens | None = None

    def take(self, rows: NDArray[np.int64]) -> Call:
        """What travels beside the pairs at *rows*, which ascend and may repeat."""
        chosen = rows.tolist()
        return replace(
            self,
            prompts=None if self.prompts is None else [self.prompts[row] for row in chosen],
            keys=None if self.keys is None else [self.keys[row] for row in chosen],
            groups=None if self.groups is None else np.searchsorted(rows, self.groups),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """What a scorer answers, row for row.

    scores     float32 (pairs,), after the activation and any calibration: thresholds read these
    logits     float32 (pairs,), what rankings sort by: before the activation; None: scores are it
    truncated  bool (pairs,), whether tokens of the pair were dropped
    spans      int64 (pairs, 2), character bounds in the document given of what was scored, or None
    exits      int64 (pairs,), how many layers were run where scoring ended early, else 0; None: all
    """

    scores: Scores
    logits: Scores | None
    truncated: NDArray[np.bool_]
    spans: NDArray[np.int64] | None = None
    exits: NDArray[np.int64] | None = None

    def take(self, rows: NDArray[np.int64] | slice) -> Scored:
        """The answers at *rows*, in that order."""
        return Scored(
            scores=self.scores[rows],
            logits=None if self.logits is None else self.logits[rows],
            truncated=self.truncated[rows],
            spans=None if self.spans is None else self.spans[rows],
            exits=None if self.exits is None else self.exits[rows],
        )

    @property
    def keys(self) -> Scores:
        """What to sort by, higher first."""
        return self.scores if self.logits is None else self.logits


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What really runs, and why: for people and traces. Nothing is decided by it."""

    model: str
    revision: str | None = None
    fingerprint: str = ""
    """A hash of the files in use, by content."""
    backend: str = ""
    why: str = ""
    """Why this backend."""
    device: str = ""
    devices: tuple[str, ...] = ()
    dtype: str = ""
    workers: int = 1
    """Forwards at once, over all devices."""
    num_threads: int | None = None
    max_length: int | None = None
    max_batch_tokens: int | None = None
    labels: int | None = None
    activation: str = ""
    runtime: str = ""
    """Libraries and their versions."""
    fallback: str = ""
    """Why something runs slower than it could, "" where nothing does."""
    details: Mapping[str, str] = field(default_factory=dict)
    """What else the backend tells: its provider, file, kernels."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, `details` among them, for JSON and tables; what is empty is left out."""
        values = asdict(self)
        details = values.pop("details")
        return {k: v for k, v in {**values, **details}.items() if v not in (None, "", ())}


@runtime_checkable
class Scorer(Protocol):
    """Maps (query, document) pairs to scores, order kept."""

    def submit_pairs(self, pairs: Sequence[Pair], call: Call) -> Future[Scored]:
        """Prepare *pairs* in the thread this is called in; a Future of their scores.

        Cancelling the Future drops what it waits for.
        """
        ...

    def info(self) -> ModelInfo:
        """What really runs."""
        ...

    def close(self) -> None:
        """Free it; what waits fails with ClosedError."""
        ...


@runtime_checkable
class Ranker(Protocol):
    """Maps queries and their documents to rankings; what every adapter calls."""

    def rerank_many(
        self,
        requests: Requests,
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
        timeout: float | None = None,
        return_exceptions: bool = False,
    ) -> list[Any]:
        """One Ranking per request, in order; with return_exceptions what a request failed of."""
        ...

    async def arerank_many(
        self,
        requests: Requests,
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
        timeout: float | None = None,
        return_exceptions: bool = False,
    ) -> list[Any]:
        """`rerank_many`, awaited."""
        ...

    def info(self) -> ModelInfo:
        """What really runs."""
        ...

    def close(self) -> None:
        """Free it."""
        ...


Ranked = Ranking | Exception
"""What `rerank_many` gives for one request with return_exceptions=True."""


@runtime_checkable
class TokenCounter(Protocol):
    """Beside a Scorer or Ranker that knows its tokens; optional."""

    @property
    def max_length(self) -> int:
        """The most tokens of a pair."""
        ...

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each of *texts* has by itself, uncut, special tokens not counted."""
        ...


@runtime_checkable
class Queue(Protocol):
    """Beside a Scorer whose pairs wait for a device; found through the `inner` of wrappers."""

    @property
    def closed(self) -> bool:
        """Whether it takes no more requests."""
        ...

    def reserve(self, pairs: int, deadline: float | None) -> Future[Any]:
        """A place in line for a request still to be prepared: travels as `Call.ticket`.

        It fails when the request's deadline passes or the queue is closed. Raises OverloadedError.
        """
        ...

    def serving(self) -> bool:
        """Whether the calling thread is one of its workers, which must not wait for itself."""
        ...

    def stats(self) -> dict[str, Any]:
        """A snapshot of the queue and of what was done so far."""
        ...


@runtime_checkable
class Caching(Protocol):
    """Beside a Scorer that remembers scores; found as a Queue is."""

    def cache_stats(self) -> dict[str, int]:
        """What it counted so far, by names that begin with "cache_"."""
        ...


@runtime_checkable
class Weighted(Protocol):
    """Beside a Scorer that knows whose weights it runs; found as a Queue is."""

    def weights(self) -> tuple[str, ...]:
        """Their names, one of which is shared by every form of a checkpoint; may read files."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendTraits:
    """What decides how a backend is used, stated by itself.

    device_kind    "cpu", "cuda", "mps", …
    workers        threads that should call it at once
    batch_tokens   padded tokens in one forward that suit its device
    max_padding    the share of padding a batch may have …
    free_padding   … or so many tokens, where that is more: what one more forward costs
    pads           whether shorter rows cost as much as longer ones in a batch
    survives_fork  whether a forked child may go on with it
    wants          "tokens", or "texts": batches then carry the texts, written by its own tokenizer
    exit_layers    layers after which a StagedBackend can stop; () for one that runs whole
    why_whole      why exit_layers is ()
    """

    device_kind: str = "cpu"
    workers: int = 1
    batch_tokens: int = 2048
    max_padding: float = 0.10
    free_padding: int = 0
    pads: bool = True
    survives_fork: bool = True
    wants: Literal["tokens", "texts"] = "tokens"
    exit_layers: tuple[int, ...] = ()
    why_whole: str = ""


@runtime_checkable
class Backend(Protocol):
    """Runs a network: token ids in, logits out, nothing else."""

    @property
    def traits(self) -> BackendTraits:
        """How it is to be used; does not change once it is loaded."""
        ...

    def logits(self, batch: TokenBatch) -> NDArray[np.float32]:
        """Raw float32 outputs of shape (pairs, labels), in the batch's order."""
        ...

    def info(self) -> Mapping[str, str | int]:
        """What really runs: fields of ModelInfo by name, and details beside them."""
        ...

    def close(self) -> None:
        """Free the network; later calls of `logits` raise ClosedError."""
        ...


@runtime_checkable
class StagedBackend(Backend, Protocol):
    """A backend whose network also runs in parts, for early exit; see `exit_layers`."""

    def start(
        self, batch: TokenBatch, layer: int, states: list[Any] | None = None, *, after: int = 0
    ) -> tuple[NDArray[np.float32], list[Any]]:
        """Run the layers up to *layer*: pooled states (pairs, 3 · width), and each pair's own.

        With *states* of an earlier `start` only those behind *after*, where that one stopped.
        Pooled are the first row, the mean of all and that of the query's, float32, as
        `rerank_adapters.early_exit.pool` has them. What a pair's hidden states are is
        the backend's affair; they hold no memory of other pairs, and tell their `nbytes`.
        """
        ...

    def resume(self, batch: TokenBatch, states: list[Any], layer: int) -> NDArray[np.float32]:
        """Run the layers after *layer* on what `start` gave: logits, as `logits` gives them."""
        ...


@runtime_checkable
class ModelFamily(Protocol):
    """What a checkpoint means: how a pair is written, and what its logits say."""

    @property
    def labels(self) -> int:
        """Columns of the logits."""
        ...

    @property
    def activation(self) -> str:
        """What is really applied, for people."""
        ...

    def keys(self, logits: NDArray[np.float32]) -> Scores:
        """float32 (pairs, labels) to the one float32 per pair that rankings sort by."""
        ...

    def scores(self, logits: NDArray[np.float32]) -> Scores:
        """float32 (pairs, labels) to float32 scores of shape (pairs,), activation applied."""
        ...
