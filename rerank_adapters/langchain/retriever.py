"""RerankingRetriever: any retriever, reranked, on langchain-core alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from langchain_core.callbacks import (
    AsyncCallbackManagerForRetrieverRun,
    CallbackManagerForRetrieverRun,
)
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever, RetrieverLike
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import get_config_list, patch_config
from langchain_core.vectorstores import VectorStoreRetriever
from pydantic import BeforeValidator, Field, PrivateAttr, StrictInt
from pydantic.json_schema import SkipJsonSchema

from ..errors import ConfigError
from . import pool, tracing
from .compressor import CrossEncoderCompressor
from .fields import FIELDS_CONFIG, RankingFields
from .settings import check_top_n
from .tracing import Outcome

Compressor = Runnable[Any, list[Document]]


class RerankingRetriever(RankingFields, BaseRetriever):
    """Asks *base_retriever* for candidates and returns the best of them, scored.

    The compressor is made from this class's own fields, or given: a `CrossEncoderCompressor`, or
    any Runnable from {"query", "documents"} to documents, such as `compressor.with_retry()`.
    Arguments of `invoke` (`top_n=1`) go to it. `batch` asks for all candidates and then scores all
    pairs as one pool.
    """

    model_config = FIELDS_CONFIG

    base_retriever: SkipJsonSchema[RetrieverLike]
    """Finds the candidates: any Runnable from a query to documents."""
    compressor: SkipJsonSchema[Compressor | None] = None
    """Reranks them, with settings and a model of its own. None: this class's fields do."""
    rerank_count: StrictInt | None = Field(default=None, ge=1)
    """At most so many candidates are scored, the first ones. A vector store's retriever is asked
    for just as many; others have a setting of their own for what they find. None: all of it."""
    top_n: Annotated[
        int | Literal["compressor"] | None,
        BeforeValidator(lambda given: given if given == "compressor" else check_top_n(given)),
    ] = "compressor"
    """Documents that come back, at least 1, handed to the compressor as an argument of the call.
    None: all. "compressor": what that says, 3 unless it was told."""

    _compressor: Compressor = PrivateAttr()

    def close(self) -> None:
        """Let go of the model. A compressor that was given stays the caller's."""
        super().close()
        if isinstance(self._compressor, CrossEncoderCompressor) and self.compressor is None:
            self._compressor.close()

    def invoke(
        self,
        input: str,  # noqa: A002 (the name is Runnable's)
        config: RunnableConfig | None = None,
        **overrides: Any,
    ) -> list[Document]:
        """The documents most relevant to *input*, best first."""
        return self.batch([input], config, **overrides)[0]

    async def ainvoke(
        self,
        input: str,  # noqa: A002 (the name is Runnable's)
        config: RunnableConfig | None = None,
        **overrides: Any,
    ) -> list[Document]:
        """`invoke`, awaited."""
        return (await self.abatch([input], config, **overrides))[0]

    def batch(
        self,
        inputs: list[str],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **overrides: Any,
    ) -> list[list[Document]]:
        """`invoke` for each of *inputs*: one pool of pairs, one plan of batches."""
        configs = get_config_list(config, len(inputs)) if inputs else []
        runs = [
            tracing.start(query, config, name=self.get_name(), facts=self._told(), tags=self.tags)
            for query, config in zip(inputs, configs, strict=True)
        ]
        with tracing.closing(runs):
            children = [
                patch_config(config, callbacks=run.get_child())
                for config, run in zip(configs, runs, strict=True)
            ]
            results = self._retrieve(inputs, children, overrides)
        for run, result in zip(runs, results, strict=True):
            tracing.end(run, result, {})
        return pool.deliver(results, return_exceptions=return_exceptions)

    async def abatch(
        self,
        inputs: list[str],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **overrides: Any,
    ) -> list[list[Document]]:
        """`batch`, awaited."""
        configs = get_config_list(config, len(inputs)) if inputs else []
        runs = [
            await tracing.astart(
                query, config, name=self.get_name(), facts=self._told(), tags=self.tags
            )
            for query, config in zip(inputs, configs, strict=True)
        ]
        async with tracing.aclosing(runs):
            children = [
                patch_config(config, callbacks=run.get_child())
                for config, run in zip(configs, runs, strict=True)
            ]
            results = await self._aretrieve(inputs, children, overrides)
        for run, result in zip(runs, results, strict=True):
            await tracing.aend(run, result, {})
        return pool.deliver(results, return_exceptions=return_exceptions)

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **overrides: Any
    ) -> list[Document]:
        # What BaseRetriever asks of its subclasses; invoke above does not come this way.
        return self.invoke(query, {"callbacks": run_manager.get_child()}, **overrides)

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **overrides: Any
    ) -> list[Document]:
        return await self.ainvoke(query, {"callbacks": run_manager.get_child()}, **overrides)

    def _retrieve(
        self, queries: list[str], configs: list[RunnableConfig], overrides: Mapping[str, Any]
    ) -> list[Outcome]:
        """Documents or error per query."""
        found = self.base_retriever.batch(
            queries, configs, return_exceptions=True, **self._base_arguments()
        )
        inputs, places = self._inputs(queries, found)
        configs, arguments = self._directions(configs, overrides)
        ranked = self._compressor.batch(
            inputs,
            [configs[place] for place in places],
            return_exceptions=True,
            **arguments,
        )
        return _merged(found, places, ranked)

    async def _aretrieve(
        self, queries: list[str], configs: list[RunnableConfig], overrides: Mapping[str, Any]
    ) -> list[Outcome]:
        """`_retrieve`, awaited."""
        found = await self.base_retriever.abatch(
            queries, configs, return_exceptions=True, **self._base_arguments()
        )
        inputs, places = self._inputs(queries, found)
        configs, arguments = self._directions(configs, overrides)
        ranked = await self._compressor.abatch(
            inputs,
            [configs[place] for place in places],
            return_exceptions=True,
            **arguments,
        )
        return _merged(found, places, ranked)

    def _base_arguments(self) -> dict[str, int]:
        # The one retriever in langchain-core that takes the number of results in a call.
        if self.rerank_count is None or not isinstance(self.base_retriever, VectorStoreRetriever):
            return {}
        return {"k": self.rerank_count}

    def _directions(
        self, configs: list[RunnableConfig], overrides: Mapping[str, Any]
    ) -> tuple[list[RunnableConfig], dict[str, Any]]:
        """Configs and arguments for the compressor; our own top_n yields to that of the call."""
        if self.compressor is None or self.top_n == "compressor":
            return configs, dict(overrides)
        own = {"top_n": self.top_n}
        asked = [config.get("configurable") or {} for config in configs]
        if not any("top_n" in configurable for configurable in asked):
            return configs, own | dict(overrides)
        return [
            patch_config(config, configurable=own | configurable)
            for config, configurable in zip(configs, asked, strict=True)
        ], dict(overrides)

    def _inputs(
        self, queries: Sequence[str], found: Sequence[Any]
    ) -> tuple[list[dict[str, Any]], list[int]]:
        """The compressor's inputs for the queries whose candidates were found, and their places."""
        places = [place for place, result in enumerate(found) if not isinstance(result, Exception)]
        return [
            {"query": queries[place], "documents": self._candidates(found[place])}
            for place in places
        ], places

    def _candidates(self, found: Any) -> Any:
        # What is no list of documents is left for the compressor to refuse, for its query alone.
        cut = self.rerank_count is not None and isinstance(found, Iterable)
        return list(found)[: self.rerank_count] if cut else found

    def _told(self) -> dict[str, Any]:
        return {**self._get_ls_params(), **(self.metadata or {})}

    def _prepare(self) -> None:
        super()._prepare()
        names = RankingFields.model_fields
        if self.compressor is None:
            fields = {name: getattr(self, name) for name in names}
            if self.top_n != "compressor":
                fields["top_n"] = self.top_n
            self._compressor = CrossEncoderCompressor(**fields)
            return
        given = [name for name, field in names.items() if getattr(self, name) != field.default]
        if given:
            raise ConfigError(
                f"compressor has settings of its own: give it {', '.join(given)}, or leave it out"
            )
        self._compressor = self.compressor


def _merged(found: Sequence[Any], places: Sequence[int], ranked: Sequence[Any]) -> list[Outcome]:
    merged = list(found)
    for place, result in zip(places, ranked, strict=True):
        merged[place] = result
    return merged
