"""RerankingRetriever: any retriever, reranked, on langchain-core alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from langchain_core.callbacks import (
    AsyncCallbackManagerForRetrieverRun,
    CallbackManagerForRetrieverRun,
)
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever, RetrieverLike
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import get_config_list, patch_config
from langchain_core.vectorstores import VectorStoreRetriever
from pydantic import PrivateAttr
from pydantic.json_schema import SkipJsonSchema

from ..adapter_fields import Warmable, plain_selection
from ..config import RerankerConfig
from ..errors import ConfigError
from . import tracing
from .compressor import CrossEncoderCompressor
from .fields import FIELDS_CONFIG, Carried, RankingFields
from .request import deliver
from .settings import Settings
from .tracing import Facts, Outcome

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
    rerank_count: Carried[int | None] = None
    """At most so many candidates are scored, the first ones. A vector store's retriever is asked
    for just as many; others have a setting of their own for what they find. None: all of it."""
    top_n: Carried[int | Literal["compressor"] | None] = "compressor"
    """Documents that come back, at least 1, handed to the compressor as an argument of the call.
    None: all. "compressor": what that says, 3 unless it was told."""

    _compressor: Compressor = PrivateAttr()

    def warm(self) -> None:
        """Get the compressor's model ready, not at the first call, where it has one to warm."""
        compressor = self._reranking()
        if isinstance(compressor, Warmable):
            compressor.warm()

    async def awarm(self) -> None:
        """`warm`, awaited; loading happens off the event loop."""
        compressor = self._reranking()
        if isinstance(compressor, Warmable):
            await compressor.awarm()

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
            tracing.start(query, config, name=self.get_name(), facts=self._facts(), tags=self.tags)
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
        return deliver(results, return_exceptions=return_exceptions)

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
                query, config, name=self.get_name(), facts=self._facts(), tags=self.tags
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
        return deliver(results, return_exceptions=return_exceptions)

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
        indices, inputs = _inputs(queries, found, self.rerank_count)
        configs, arguments = self._directions(configs, overrides)
        ranked = self._reranking().batch(
            inputs,
            [configs[index] for index in indices],
            return_exceptions=True,
            **arguments,
        )
        return _merged(found, indices, ranked)

    async def _aretrieve(
        self, queries: list[str], configs: list[RunnableConfig], overrides: Mapping[str, Any]
    ) -> list[Outcome]:
        """`_retrieve`, awaited."""
        found = await self.base_retriever.abatch(
            queries, configs, return_exceptions=True, **self._base_arguments()
        )
        indices, inputs = _inputs(queries, found, self.rerank_count)
        configs, arguments = self._directions(configs, overrides)
        ranked = await self._reranking().abatch(
            inputs,
            [configs[index] for index in indices],
            return_exceptions=True,
            **arguments,
        )
        return _merged(found, indices, ranked)

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
        return _with_top_n(self.top_n, configs, overrides)

    def _facts(self) -> Facts:
        return {**self._get_ls_params(), **(self.metadata or {})}

    def _reranking(self) -> Compressor:
        self._prepared()
        return self._compressor

    def _settings(self) -> Settings:
        return Settings.of(self, **({"top_n": 3} if self.top_n == "compressor" else {}))

    def _judge(self) -> RerankerConfig:
        config = super()._judge()
        if self.top_n != "compressor":
            self.__dict__["top_n"], _ = plain_selection(self.top_n, None)
        _check_count(self.rerank_count)
        fields = RankingFields.model_fields
        given = [name for name, field in fields.items() if getattr(self, name) != field.default]
        if self.compressor is not None and given:
            raise ConfigError(
                f"compressor has settings of its own: give it {', '.join(given)}, or leave it out"
            )
        return config

    def _prepare(self) -> None:
        super()._prepare()
        self._compressor = self._own_compressor() if self.compressor is None else self.compressor

    def _own_compressor(self) -> CrossEncoderCompressor:
        fields = {name: getattr(self, name) for name in RankingFields.model_fields}
        if self.top_n != "compressor":
            fields["top_n"] = self.top_n
        compressor = CrossEncoderCompressor(**fields)
        compressor._source = self._source  # one lease, which closing either of the two gives back
        return compressor


def _with_top_n(
    top_n: int | None, configs: list[RunnableConfig], overrides: Mapping[str, Any]
) -> tuple[list[RunnableConfig], dict[str, Any]]:
    """*configs* and *overrides* with *top_n*, where they say none of their own."""
    own = {"top_n": top_n}
    asked = [config.get("configurable") or {} for config in configs]
    if not any("top_n" in configurable for configurable in asked):
        return configs, own | dict(overrides)
    return [
        patch_config(config, configurable=own | configurable)
        for config, configurable in zip(configs, asked, strict=True)
    ], dict(overrides)


def _inputs(
    queries: Sequence[str], found: Sequence[Any], count: int | None
) -> tuple[list[int], list[dict[str, Any]]]:
    """Which of *queries* found candidates, and what the compressor is given for them."""
    indices = [index for index, one in enumerate(found) if not isinstance(one, Exception)]
    return indices, [
        {"query": queries[index], "documents": _first(found[index], count)} for index in indices
    ]


def _first(found: Any, count: int | None) -> Any:
    # What is no list of documents is left for the compressor to refuse, for its query alone.
    return list(found)[:count] if count is not None and isinstance(found, Iterable) else found


def _check_count(rerank_count: object) -> None:
    whole = isinstance(rerank_count, int) and not isinstance(rerank_count, bool)
    if rerank_count is not None and (not whole or rerank_count < 1):  # type: ignore[operator]  # an int then
        raise ConfigError(
            f"rerank_count must be an int of at least 1, or None for all: got {rerank_count!r:.80}"
        )


def _merged(found: Sequence[Any], indices: Sequence[int], ranked: Sequence[Any]) -> list[Outcome]:
    merged = list(found)
    for index, result in zip(indices, ranked, strict=True):
        merged[index] = result
    return merged
