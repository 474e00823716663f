"""CrossEncoderCompressor: reranks documents wherever LangChain takes a compressor or a Runnable."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Unpack

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.runnables import RunnableConfig, RunnableSerializable
from langchain_core.runnables.config import get_config_list
from pydantic import BeforeValidator
from typing_extensions import TypedDict

from ..errors import RerankError
from ..reranker import Request, Reranker
from . import pool, tracing
from .fields import FIELDS_CONFIG, RankingFields
from .settings import Overrides, Settings, check_top_n
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

    Raises InputError (query, documents, an argument) and what loading the model raises.
    """

    model_config = FIELDS_CONFIG

    top_n: Annotated[int | None, BeforeValidator(check_top_n)] = 3
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
        calls = self._calls(inputs, config, overrides)
        runs = [
            tracing.start(call.query, call.config, name=self.get_name(), facts=self._told(call))
            for call in calls
        ]
        with tracing.closing(runs):
            rankings, facts = self._rank(pool.requests(calls))
            results = pool.outcomes(calls, rankings)
        for run, result in zip(runs, results, strict=True):
            tracing.end(run, result, facts)
        return pool.deliver(results, return_exceptions=return_exceptions)

    async def abatch(
        self,
        inputs: list[Mapping[str, Any]],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **overrides: Any,
    ) -> list[list[Document]]:
        """`batch`, awaited."""
        calls = self._calls(inputs, config, overrides)
        runs = [
            await tracing.astart(
                call.query, call.config, name=self.get_name(), facts=self._told(call)
            )
            for call in calls
        ]
        async with tracing.aclosing(runs):
            rankings, facts = await self._arank(pool.requests(calls))
            results = pool.outcomes(calls, rankings)
        for run, result in zip(runs, results, strict=True):
            await tracing.aend(run, result, facts)
        return pool.deliver(results, return_exceptions=return_exceptions)

    def _calls(
        self,
        inputs: Sequence[Mapping[str, Any]],
        config: RunnableConfig | list[RunnableConfig] | None,
        overrides: dict[str, Any],
    ) -> list[pool.Call]:
        settings = Settings.of(self)
        configs = get_config_list(config, len(inputs)) if inputs else []
        return [
            pool.Call(given, config, settings, overrides)
            for given, config in zip(inputs, configs, strict=True)
        ]

    def _rank(self, requests: Sequence[Request]) -> tuple[list[pool.Ranked], Facts]:
        if not requests:
            return [], {}
        try:
            ranker = self._ranker()
        except Exception as error:  # noqa: BLE001 (no model: it is the outcome of every input)
            return [error] * len(requests), {}
        return pool.rank(ranker, requests), _facts(ranker)

    async def _arank(self, requests: Sequence[Request]) -> tuple[list[pool.Ranked], Facts]:
        if not requests:
            return [], {}
        try:
            ranker = await self._aranker()
        except Exception as error:  # noqa: BLE001 (no model: it is the outcome of every input)
            return [error] * len(requests), {}
        return await pool.arank(ranker, requests), _facts(ranker)

    def _told(self, call: pool.Call) -> Facts:
        """What is known before the model is: the configuration, and how much came in."""
        asked = {name: getattr(self, name) for name in FACTS}
        return (asked if self.reranker is None else _facts(self.reranker)) | call.facts

    def _prepare(self) -> None:
        super()._prepare()
        Settings.of(self)


def _facts(ranker: Reranker) -> dict[str, Any]:
    try:
        info = ranker.info()
    except RerankError:  # it is closed; whoever asks it to score is told
        return {}
    return {name: info[name] for name in FACTS if name in info}


def _input(documents: Sequence[Document], query: str) -> RerankInput:
    return {"query": query, "documents": documents}


def _config(callbacks: Callbacks | None) -> RunnableConfig | None:
    # None leaves the callbacks of the Runnable or node that is running, from its context.
    return None if callbacks is None else {"callbacks": callbacks}
