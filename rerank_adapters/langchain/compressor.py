"""CrossEncoderCompressor: reranks documents wherever LangChain takes a compressor or a Runnable."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Unpack

from langchain_core.callbacks import (
    AsyncCallbackManagerForRetrieverRun,
    CallbackManagerForRetrieverRun,
    Callbacks,
)
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.runnables import RunnableConfig, RunnableSerializable
from langchain_core.runnables.config import ensure_config, get_config_list
from typing_extensions import TypedDict

from ..adapter_fields import RankerSource, checked_rankings, plain_selection
from ..config import RerankerConfig
from ..errors import RerankError
from ..protocols import Ranked, Ranker, RerankRequest
from . import hooks, tracing
from .fields import FIELDS_CONFIG, Carried, RankingFields
from .request import DocumentRequest, deliver, only, outcomes, parts
from .settings import Overrides
from .tracing import Facts, Outcome

HOOKS = ("compress_documents", "acompress_documents")
"""What subclasses of BaseDocumentCompressor override."""

Inputs = Sequence[Mapping[str, Any]]
Configs = RunnableConfig | list[RunnableConfig] | None

FACTS = ("model", "backend", "device", "dtype")


class RerankInput(TypedDict):
    """What the compressor takes as a Runnable."""

    query: str
    documents: Iterable[Document]


class CrossEncoderCompressor(
    RankingFields, BaseDocumentCompressor, RunnableSerializable[Mapping[str, Any], list[Document]]
):
    """Keeps the *top_n* most relevant documents, best first, each with its score in its metadata.

    Returns new documents: id, type and metadata stay, inputs are left as they were. Equal scores
    keep the order given. As a Runnable it takes {"query", "documents"}:
    `RunnableParallel(documents=retriever, query=RunnablePassthrough()) | compressor`, and `batch`
    over many queries scores all their pairs as one pool. `top_n`, `score_threshold`, `score_key`,
    `text_fn`, `rank_fields`, `on_empty_text` and `dedupe` can be given per call: as arguments,
    through `bind`, or in config["configurable"].

    Raises ConfigError (a field), InputError (query, documents, an argument of a call) and what
    loading the model raises.

    >>> documents = [Document("It is red."), Document("It is 70 m tall.", id="b")]
    >>> best = CrossEncoderCompressor(top_n=1).compress_documents(documents, "how tall is it?")
    >>> best[0].id, best[0].metadata["relevance_score"] > 0.5
    ('b', True)
    """

    model_config = FIELDS_CONFIG

    top_n: Carried[int | None] = 3
    """Documents that come back, at least 1. None: all."""

    @property
    def InputType(self) -> type[RerankInput]:  # noqa: N802 (the name is Runnable's)
        """What a schema shows; a chain's step may hand over any mapping with these two keys."""
        return RerankInput

    def compress_documents(
        self,
        documents: Sequence[Document],
        query: str,
        callbacks: Callbacks | None = None,
        **overrides: Unpack[Overrides],
    ) -> list[Document]:
        """Rerank *documents* for *query*. A subclass that overrides this is asked per query."""
        results = self._pool([_input(documents, query)], _config(callbacks), dict(overrides))
        return only(results)

    async def acompress_documents(
        self,
        documents: Sequence[Document],
        query: str,
        callbacks: Callbacks | None = None,
        **overrides: Unpack[Overrides],
    ) -> list[Document]:
        """`compress_documents`, awaited; nothing blocks the event loop, loading included."""
        arguments = dict(overrides)
        if hooks.only_sync(type(self), CrossEncoderCompressor, *HOOKS):
            config = ensure_config(_config(callbacks))
            own = {"callbacks": callbacks}
            return await hooks.thread_hook(
                self.compress_documents, documents, query, config=config, arguments=arguments, **own
            )
        results = await self._apool([_input(documents, query)], _config(callbacks), arguments)
        return only(results)

    def invoke(
        self,
        input: Mapping[str, Any],  # noqa: A002 (the name is Runnable's)
        config: RunnableConfig | None = None,
        **overrides: Any,
    ) -> list[Document]:
        """Rerank input["documents"] for input["query"]."""
        if not self._overrides(HOOKS[0]):
            results = self._pool([input], config, overrides)
            return only(results)
        query, documents = parts(input)
        config = ensure_config(config)
        own = {"callbacks": config.get("callbacks")}
        return hooks.call_hook(
            self.compress_documents, documents, query, config=config, arguments=overrides, **own
        )

    async def ainvoke(
        self,
        input: Mapping[str, Any],  # noqa: A002 (the name is Runnable's)
        config: RunnableConfig | None = None,
        **overrides: Any,
    ) -> list[Document]:
        """`invoke`, awaited."""
        if not self._overrides(*HOOKS):
            results = await self._apool([input], config, overrides)
            return only(results)
        query, documents = parts(input)
        config = ensure_config(config)
        own = {"callbacks": config.get("callbacks")}
        return await hooks.acall_hook(
            self.acompress_documents, documents, query, config=config, arguments=overrides, **own
        )

    def batch(
        self,
        inputs: list[Mapping[str, Any]],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **overrides: Any,
    ) -> list[list[Document]]:
        """`invoke` for each of *inputs*: one pool of pairs, one plan of batches.

        Where a subclass overrides `compress_documents` or `invoke`, each by itself, in threads.
        """
        if self._overrides("invoke", HOOKS[0]):
            return super().batch(inputs, config, return_exceptions=return_exceptions, **overrides)
        results = self._pool(inputs, config, overrides)
        return deliver(results, return_exceptions=return_exceptions)

    async def abatch(
        self,
        inputs: list[Mapping[str, Any]],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **overrides: Any,
    ) -> list[list[Document]]:
        """`batch`, awaited."""
        if self._overrides("ainvoke", *HOOKS):
            return await super().abatch(
                inputs, config, return_exceptions=return_exceptions, **overrides
            )
        results = await self._apool(inputs, config, overrides)
        return deliver(results, return_exceptions=return_exceptions)

    def _overrides(self, *names: str) -> bool:
        return hooks.overrides(type(self), CrossEncoderCompressor, *names)

    def _pool(self, inputs: Inputs, config: Configs, overrides: Mapping[str, Any]) -> list[Outcome]:
        """Documents or error of each of *inputs*, scored together, each in a run of its own."""
        source, requests = self._requests(inputs, config, overrides)
        runs: list[CallbackManagerForRetrieverRun] = []
        with tracing.closing(runs):
            for one in requests:
                facts = self._facts(source, one)
                runs.append(tracing.start(one.query, one.config, name=self.get_name(), facts=facts))
            rankings, facts = _rank(source, _asked(requests))
            results = outcomes(requests, rankings, self.get_name())
            for one, result in zip(requests, results, strict=True):
                tracing.end(runs.pop(0), result, facts | one.came_of, one.caught)
        return results

    async def _apool(
        self, inputs: Inputs, config: Configs, overrides: Mapping[str, Any]
    ) -> list[Outcome]:
        """`_pool`, awaited."""
        source, requests = self._requests(inputs, config, overrides)
        runs: list[AsyncCallbackManagerForRetrieverRun] = []
        async with tracing.aclosing(runs):
            for one in requests:
                facts = self._facts(source, one)
                runs.append(
                    await tracing.astart(one.query, one.config, name=self.get_name(), facts=facts)
                )
            rankings, facts = await _arank(source, _asked(requests))
            results = outcomes(requests, rankings, self.get_name())
            for one, result in zip(requests, results, strict=True):
                await tracing.aend(runs.pop(0), result, facts | one.came_of, one.caught)
        return results

    def _requests(
        self, inputs: Inputs, config: Configs, overrides: Mapping[str, Any]
    ) -> tuple[RankerSource, list[DocumentRequest]]:
        """What ranks and what is asked, as the fields say now: a change is the next call's."""
        source, settings = self._prepared(), self._settings()
        configs = get_config_list(config, len(inputs)) if inputs else []
        return source, [
            DocumentRequest(given, config, settings, overrides)
            for given, config in zip(inputs, configs, strict=True)
        ]

    def _facts(self, source: RankerSource, request: DocumentRequest) -> Facts:
        """What is known at the start: what runs, or what was asked for, and how much came in."""
        if (ranker := source.loaded) is not None:
            return _facts(ranker) | request.facts
        return {name: getattr(source.config, name) for name in FACTS} | request.facts

    def _judge(self) -> RerankerConfig:
        config = super()._judge()
        self.__dict__["top_n"], _ = plain_selection(self.top_n, None)
        return config


def _rank(
    source: RankerSource, requests: Sequence[RerankRequest]
) -> tuple[list[Ranked], dict[str, Any]]:
    """A ranking or an error for each of *requests*, and what traces say of the model."""
    if not requests:
        return [], {}
    ranker: Ranker | None = None
    try:
        ranker = source.get()
        found = checked_rankings(ranker.rerank_many(requests, return_exceptions=True), requests)
    except Exception as error:  # noqa: BLE001 (it is the outcome of every input)
        found = [error for _ in requests]
    return found, {} if ranker is None else _facts(ranker)


async def _arank(
    source: RankerSource, requests: Sequence[RerankRequest]
) -> tuple[list[Ranked], dict[str, Any]]:
    """`_rank`, awaited."""
    if not requests:
        return [], {}
    ranker: Ranker | None = None
    try:
        ranker = await source.aget()
        found = checked_rankings(
            await ranker.arerank_many(requests, return_exceptions=True), requests
        )
    except Exception as error:  # noqa: BLE001 (it is the outcome of every input)
        found = [error for _ in requests]
    return found, {} if ranker is None else _facts(ranker)


def _asked(requests: Sequence[DocumentRequest]) -> list[RerankRequest]:
    return [one.to_rank for one in requests if one.to_rank is not None]


def _facts(ranker: Ranker) -> dict[str, Any]:
    try:
        info = ranker.info()
    except RerankError:  # it is closed; asked to score, it says so
        return {}
    facts = {name: getattr(info, name, "") for name in FACTS}
    return {name: value for name, value in facts.items() if value}


def _input(documents: Sequence[Document], query: str) -> RerankInput:
    return {"query": query, "documents": documents}


def _config(callbacks: Callbacks | None) -> RunnableConfig | None:
    # None leaves the callbacks of the Runnable or node that is running, from its context.
    return None if callbacks is None else {"callbacks": callbacks}
