"""CrossEncoderCompressor: reranks documents wherever LangChain takes a compressor or a Runnable."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Unpack

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.runnables import RunnableConfig, RunnableSerializable
from langchain_core.runnables.config import get_config_list
from typing_extensions import TypedDict

from ..adapter_fields import checked_rankings, plain_selection
from ..config import RerankerConfig
from ..errors import RerankError
from ..protocols import Ranked, Ranker, RerankRequest
from . import tracing
from .fields import FIELDS_CONFIG, Carried, RankingFields
from .request import DocumentRequest, deliver, outcomes
from .settings import Overrides
from .tracing import Facts

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
        """Rerank *documents* for *query*."""
        return self.invoke(_input(documents, query), _config(callbacks), **overrides)

    async def acompress_documents(
        self,
        documents: Sequence[Document],
        query: str,
        callbacks: Callbacks | None = None,
        **overrides: Unpack[Overrides],
    ) -> list[Document]:
        """`compress_documents`, awaited; nothing blocks the event loop, loading included."""
        return await self.ainvoke(_input(documents, query), _config(callbacks), **overrides)

    def invoke(
        self,
        input: Mapping[str, Any],  # noqa: A002 (the name is Runnable's)
        config: RunnableConfig | None = None,
        **overrides: Any,
    ) -> list[Document]:
        """Rerank input["documents"] for input["query"]."""
        return self.batch([input], config, **overrides)[0]

    async def ainvoke(
        self,
        input: Mapping[str, Any],  # noqa: A002 (the name is Runnable's)
        config: RunnableConfig | None = None,
        **overrides: Any,
    ) -> list[Document]:
        """`invoke`, awaited."""
        return (await self.abatch([input], config, **overrides))[0]

    def batch(
        self,
        inputs: list[Mapping[str, Any]],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **overrides: Any,
    ) -> list[list[Document]]:
        """`invoke` for each of *inputs*: one pool of pairs, one plan of batches."""
        requests = self._requests(inputs, config, overrides)
        runs = [
            tracing.start(one.query, one.config, name=self.get_name(), facts=self._facts(one))
            for one in requests
        ]
        with tracing.closing(runs):
            rankings, facts = self._rank(_asked(requests))
            results = outcomes(requests, rankings)
        for run, result in zip(runs, results, strict=True):
            tracing.end(run, result, facts)
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
        requests = self._requests(inputs, config, overrides)
        runs = [
            await tracing.astart(
                one.query, one.config, name=self.get_name(), facts=self._facts(one)
            )
            for one in requests
        ]
        async with tracing.aclosing(runs):
            rankings, facts = await self._arank(_asked(requests))
            results = outcomes(requests, rankings)
        for run, result in zip(runs, results, strict=True):
            await tracing.aend(run, result, facts)
        return deliver(results, return_exceptions=return_exceptions)

    def _requests(
        self,
        inputs: Sequence[Mapping[str, Any]],
        config: RunnableConfig | list[RunnableConfig] | None,
        overrides: dict[str, Any],
    ) -> list[DocumentRequest]:
        self._prepared()
        settings = self._settings()
        configs = get_config_list(config, len(inputs)) if inputs else []
        return [
            DocumentRequest(given, config, settings, overrides)
            for given, config in zip(inputs, configs, strict=True)
        ]

    def _rank(self, requests: Sequence[RerankRequest]) -> tuple[list[Ranked], Facts]:
        """A ranking or an error for each of *requests*, and what traces say of the model."""
        if not requests:
            return [], {}
        ranker: Ranker | None = None
        try:
            ranker = self._ranker()
            found = checked_rankings(ranker.rerank_many(requests, return_exceptions=True), requests)
        except Exception as error:  # noqa: BLE001 (it is the outcome of every input)
            found = [error for _ in requests]
        return found, {} if ranker is None else _facts(ranker)

    async def _arank(self, requests: Sequence[RerankRequest]) -> tuple[list[Ranked], Facts]:
        """`_rank`, awaited."""
        if not requests:
            return [], {}
        ranker: Ranker | None = None
        try:
            ranker = await self._aranker()
            found = checked_rankings(
                await ranker.arerank_many(requests, return_exceptions=True), requests
            )
        except Exception as error:  # noqa: BLE001 (it is the outcome of every input)
            found = [error for _ in requests]
        return found, {} if ranker is None else _facts(ranker)

    def _facts(self, request: DocumentRequest) -> Facts:
        """What is known before the model is: the configuration, and how much came in."""
        asked = {name: getattr(self, name) for name in FACTS}
        return (asked if self.reranker is None else _facts(self.reranker)) | request.facts

    def _judge(self) -> RerankerConfig:
        config = super()._judge()
        self.__dict__["top_n"], _ = plain_selection(self.top_n, None)
        return config


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
