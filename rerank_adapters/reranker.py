"""Reranker: checks input, submits pairs, ranks what comes back."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Self

from .calibration import Calibration
from .calls import RULES, Caller, Closing, Plan, Selection, counting, inside
from .checkpoints import NO_LIMIT
from .checks import checked_documents, checked_pairs, deadline_of
from .config import (
    DEFAULT_MODEL,
    Activation,
    BackendName,
    DType,
    RerankerConfig,
    SpecialTokens,
    TokenizerName,
    Truncation,
    WhenFull,
    described,
)
from .document_tokens import DocumentTokens
from .early_exit import EarlyExit
from .errors import ConfigError, InputError
from .futures import then
from .hints import first_guesses, method_error
from .loading import load
from .passages import Windows
from .protocols import Call, ModelInfo, Pair, Requests, RerankRequest, Scorer, TokenCounter
from .ranking import Fuse, FuseMethod, OnEmptyText, Ranking, Rest
from .remote import RemoteConfig, RemoteDialect, SecretText
from .score_cache import ScoreCache
from .tokens import Scores

P = ParamSpec("P")


def _constructor(init: Callable[Concatenate[Any, P], None]) -> classmethod[Any, P, Any]:
    """A class method that takes what *init* takes, for readers and type checkers alike."""

    def from_pretrained(cls: Any, /, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Load a model: `Reranker(...)` by the name the ecosystem knows."""
        return cls(*args, **kwargs)

    from_pretrained.__annotations__ = {**init.__annotations__, "return": "Reranker"}
    signature = inspect.signature(init)
    _, *parameters = signature.parameters.values()
    first = inspect.Parameter("cls", inspect.Parameter.POSITIONAL_ONLY)
    from_pretrained.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[first, *parameters], return_annotation="Reranker"
    )
    return classmethod(from_pretrained)


@first_guesses
class Reranker(Closing):
    """Ranks documents for queries by one cross-encoder, behind one queue; a Ranker.

    Safe to share between threads and event loops. Async methods are the same path as sync ones:
    only the waiting differs. Every method that scores takes `timeout` in seconds (TimeoutError).

    >>> with Reranker() as reranker:  # the bundled model: int8, CPU, no network
    ...     ranking = reranker.rerank("how tall is it?", ["It is red.", "It is 70 m tall."])
    >>> ranking[0].index
    1
    """

    def __init__(
        self,
        model: str | Path = DEFAULT_MODEL,
        *,
        revision: str | None = None,
        file_name: str | None = None,
        cache_folder: str | Path | None = None,
        local_files_only: bool = False,
        token: str | None = None,
        trust_remote_code: bool = False,
        prompt: str | None = None,
        template: str | None = None,
        answers: Sequence[str] | None = None,
        label: int | str | None = None,
        max_length: int | None = None,
        truncation: Truncation = "longest_first",
        query_max_tokens: int | None = None,
        windows: Windows | Mapping[str, Any] | None = None,
        special_tokens: SpecialTokens | None = None,
        activation: Activation = "default",
        calibration: Calibration | str | Path | Mapping[str, Any] | None = None,
        on_empty_text: OnEmptyText = "keep_last",
        rerank_count: int | None = None,
        rest: Rest = "drop",
        fuse: Fuse | FuseMethod | Mapping[str, Any] | None = None,
        early_exit: EarlyExit | Mapping[str, Any] | None = None,
        backend: BackendName = "auto",
        device: str | Sequence[str] = "auto",
        dtype: DType = "auto",
        num_workers: int | None = None,
        num_threads: int | None = None,
        max_batch_tokens: int | None = None,
        tokenizer: TokenizerName = "auto",
        cache: ScoreCache | Mapping[str, Any] | None = None,
        document_tokens: DocumentTokens | str | Path | None = None,
        remote: RemoteConfig | Mapping[str, Any] | None = None,
        max_queue_pairs: int | None = None,
        max_queue_tokens: int | None = None,
        when_full: WhenFull = "block",
    ) -> None:
        """Load *model*: a hub id, a local folder, or "default", which is part of the package.

        The options are those of `RerankerConfig`.

        Raises ConfigError (an argument), ModelError (the checkpoint), BackendError (the device),
        MissingDependencyError (the extra that brings the backend).
        """
        self._attach(*_loaded({k: v for k, v in locals().items() if k != "self"}))

    from_pretrained = _constructor(__init__)

    @classmethod
    def from_config(cls, config: RerankerConfig) -> Self:
        """Load what *config* says, afresh."""
        if not isinstance(config, RerankerConfig):
            raise ConfigError(f"config must be a RerankerConfig: got {config!r:.80}")
        return cls.over(load(config), **ranking_rules(config))

    @classmethod
    def remote(
        cls,
        url: str,
        *,
        dialect: RemoteDialect = "auto",
        model: str | None = None,
        key: str | SecretText | None = None,
        key_variable: str | None = None,
    ) -> Self:
        """Rank by the server at *url*; what else there is to say is `remote=RemoteConfig(...)`."""
        return cls(remote=RemoteConfig(**{k: v for k, v in locals().items() if k != "cls"}))

    @classmethod
    def over(
        cls,
        scorer: Scorer,
        *,
        on_empty_text: OnEmptyText = "keep_last",
        rerank_count: int | None = None,
        rest: Rest = "drop",
        fuse: Fuse | FuseMethod | Mapping[str, Any] | None = None,
    ) -> Self:
        """Rank by *scorer*, any Scorer, which is the Reranker's from now on: `close` closes it."""
        rules = {name: value for name, value in locals().items() if name not in ("cls", "scorer")}
        if not isinstance(scorer, Scorer):
            raise ConfigError(f"scorer must have submit_pairs, info and close: got {scorer!r:.80}")
        reranker = cls.__new__(cls)
        reranker._attach(scorer, Selection(**ranking_rules(RerankerConfig(**rules))))
        return reranker

    def _attach(self, scorer: Scorer, rules: Selection) -> None:
        self._rules = rules
        self._caller = Caller(scorer)
        self._counter = inside(scorer, TokenCounter)  # type: ignore[type-abstract]  # likewise

    def score(
        self, query: str, documents: Sequence[str], *, timeout: float | None = None
    ) -> Scores:
        """float32 scores of shape (documents,), in the order of *documents*, blank ones too."""
        plan = self._every(query, documents, timeout)
        return self._caller.run(*plan.ungrouped()).scores

    def score_pairs(self, pairs: Sequence[Pair], *, timeout: float | None = None) -> Scores:
        """float32 scores of shape (pairs,), in order; identical pairs are scored once."""
        return self._caller.run(checked_pairs(pairs), self._call(timeout)).scores

    def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
        prompt: str | None = None,
        timeout: float | None = None,
    ) -> Ranking:
        """Rank *documents* for *query*, best first; ties keep the order of *documents*.

        score_threshold is inclusive, acts after the activation and before the cut to *top_n*
        (None: all). *prompt* is this call's instruction, for models that take one. Blank documents
        stand where `on_empty_text` says. No documents give an empty ranking. InputError names the
        argument and index.
        """
        plan = self._plan(
            [RerankRequest(query, documents, prompt)], top_n, score_threshold, timeout
        )
        return plan.only(self._caller.run(*plan.whole(None)))

    def rerank_many(
        self,
        requests: Requests,
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
        timeout: float | None = None,
        return_exceptions: bool = False,
        progress: bool = False,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[Any]:
        """One ranking per (query, documents), in order: one pool of pairs, one plan of batches.

        return_exceptions: a request that fails has its exception in the list, and fails alone.
        progress shows a bar; on_progress is called from a worker with the pairs just done.
        """
        plan = self._plan(requests, top_n, score_threshold, timeout, return_exceptions)
        with counting(plan.pairs, progress=progress, on_progress=on_progress) as count:
            try:
                found = plan.rankings(self._caller.run(*plan.whole(count)))
            except Exception as error:  # noqa: BLE001  # raised again where it is everybody's
                known = plan.shared_fate(error)
                found = known or plan.outcomes(self._caller.run_each(plan.apart()))
        return plan.merged(found)

    def rerank_iter(
        self,
        requests: Iterable[RerankRequest | tuple[str, Sequence[str]]],
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
        progress: bool = False,
        on_progress: Callable[[int], None] | None = None,
    ) -> Iterator[Ranking]:
        """Rank a stream of requests, an iterable of any length, in order and with flat memory.

        Requests are read ahead by some thousand pairs, so that batches are full. One that fails
        raises when its turn comes; closing the iterator drops what is in flight.
        """
        selection = self._selection(top_n, score_threshold)
        self._check_open()
        return self._caller.stream(requests, selection, progress, on_progress)

    def submit(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
        timeout: float | None = None,
    ) -> Future[Ranking]:
        """Tokenise now, rank soon: a Future of the ranking.

        Its callbacks run in a worker, which they hold up: they may submit more, but not wait.
        """
        plan = self._plan([(query, documents)], top_n, score_threshold, timeout)
        return then(self._caller.submit(*plan.whole(None)), plan.only)

    async def ascore(
        self, query: str, documents: Sequence[str], *, timeout: float | None = None
    ) -> Scores:
        """`score`, awaited; tokenising happens off the event loop."""
        plan = self._every(query, documents, timeout)
        return (await self._caller.run_async(*plan.ungrouped())).scores

    async def ascore_pairs(self, pairs: Sequence[Pair], *, timeout: float | None = None) -> Scores:
        """`score_pairs`, awaited."""
        return (await self._caller.run_async(checked_pairs(pairs), self._call(timeout))).scores

    async def arerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
        prompt: str | None = None,
        timeout: float | None = None,
    ) -> Ranking:
        """`rerank`, awaited."""
        plan = self._plan(
            [RerankRequest(query, documents, prompt)], top_n, score_threshold, timeout
        )
        return plan.only(await self._caller.run_async(*plan.whole(None)))

    async def arerank_many(
        self,
        requests: Requests,
        *,
        top_n: int | None = None,
        score_threshold: float | None = None,
        timeout: float | None = None,
        return_exceptions: bool = False,
        progress: bool = False,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[Any]:
        """`rerank_many`, awaited."""
        plan = self._plan(requests, top_n, score_threshold, timeout, return_exceptions)
        with counting(plan.pairs, progress=progress, on_progress=on_progress) as count:
            try:
                found = plan.rankings(await self._caller.run_async(*plan.whole(count)))
            except Exception as error:  # noqa: BLE001  # raised again where it is everybody's
                known = plan.shared_fate(error)
                found = known or plan.outcomes(await self._caller.run_each_async(plan.apart()))
        return plan.merged(found)

    def calibrate(
        self, pairs: Sequence[Pair], labels: Sequence[int], *, timeout: float | None = None
    ) -> Calibration:
        """Fit what makes this model's scores probabilities to *labels*, 1 where a pair is relevant.

        It is for these weights, in whatever form: `calibration=` takes it, or the file it is saved
        in. What this Reranker is calibrated by is no part of it. InputError: see `Calibration.fit`.
        """
        return self._caller.fitted(checked_pairs(pairs), self._call(timeout), labels)

    def warm(self) -> None:
        """Score one pair, so that the first request meets threads and kernels that are ready."""
        self.score("warm", ["up"])

    async def awarm(self) -> None:
        """`warm`, awaited."""
        await self.ascore("warm", ["up"])

    @property
    def max_length(self) -> int:
        """The most tokens of a pair; 2**30 where the scorer counts none."""
        return NO_LIMIT if self._counter is None else self._counter.max_length

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each of *texts* has by itself, uncut, special tokens not counted."""
        if self._counter is None:
            raise InputError(f"texts have no tokens for a {type(self._caller.scorer).__name__}")
        return self._counter.count_tokens(checked_documents(texts, name="texts"))

    def info(self) -> ModelInfo:
        """What really runs, and why."""
        self._check_open()
        return self._caller.scorer.info()

    def stats(self) -> dict[str, Any]:
        """A snapshot of the queue, the cache and what was done so far; {} where there are none."""
        return self._caller.stats()

    @property
    def closed(self) -> bool:
        """Whether it takes no more requests: closed, or its engine broke or was lost in a fork."""
        return self._caller.closed

    def close(self) -> None:
        """Fail what waits with ClosedError, stop the workers, free the model. Idempotent."""
        self._caller.close()

    def __getattr__(self, name: str) -> Any:
        raise method_error(self, name)

    def __repr__(self) -> str:
        if self._caller.ended:
            return "Reranker(closed)"
        info = self._caller.scorer.info()
        shown = {"model": info.model, "backend": info.backend, "device": info.device}
        return f"Reranker({', '.join(f'{k}={v!r}' for k, v in shown.items() if v)})"

    def _plan(
        self,
        requests: Requests,
        top_n: int | None = None,
        score_threshold: float | None = None,
        timeout: float | None = None,
        return_exceptions: bool = False,
    ) -> Plan:
        selection = self._selection(top_n, score_threshold)
        self._check_open()
        return Plan.of(requests, selection, timeout, return_exceptions)

    def _every(self, query: str, documents: Sequence[str], timeout: float | None) -> Plan:
        """All of *documents*, blank ones too: scores know no rules of rankings."""
        self._check_open()
        return Plan.of(
            [RerankRequest(query, documents, on_empty_text="score")], Selection(), timeout
        )

    def _selection(self, top_n: int | None, score_threshold: float | None) -> Selection:
        return replace(self._rules, top_n=top_n, score_threshold=score_threshold)

    def _call(self, timeout: float | None) -> Call:
        call = Call(deadline=deadline_of(timeout))
        self._check_open()
        return call

    def _check_open(self) -> None:
        """Raise ClosedError where it was closed."""
        self._caller.check_open()


def _loaded(options: Mapping[str, Any]) -> tuple[Scorer, Selection]:
    config = RerankerConfig(**options)
    return load(config), Selection(**ranking_rules(config))


def ranking_rules(config: RerankerConfig) -> dict[str, Any]:
    """The options of *config* that concern rankings, not scores."""
    return {name: getattr(config, name) for name in RULES}


for _loads in (Reranker, Reranker.__init__, Reranker.from_pretrained.__func__):  # type: ignore[attr-defined]
    _loads.__doc__ = f"{inspect.getdoc(_loads)}\n{described()}"
