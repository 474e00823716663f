"""RerankingRetriever: any retriever, reranked, on langchain-core alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from langchain_core.callbacks import (
    AsyncCallbackManagerForRetrieverRun,
    CallbackManagerForRetrieverRun,
)
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.retrievers import BaseRetriever, RetrieverLike
from langchain_core.runnables import ConfigurableFieldSpec, Runnable, RunnableConfig
from langchain_core.runnables.config import ensure_config, get_config_list, patch_config
from langchain_core.runnables.utils import get_unique_config_specs
from pydantic import PrivateAttr, field_validator
from pydantic.json_schema import SkipJsonSchema

from ..adapter_fields import Warmable, plain_count, plain_selection
from ..config import RerankerConfig
from ..errors import ConfigError
from . import hooks, tracing
from .compressor import CrossEncoderCompressor
from .compressors import Compressor, as_runnable
from .fields import FIELDS_CONFIG, Carried, RankingFields
from .request import deliver, only
from .routing import Route
from .settings import Settings
from .tracing import Facts, Outcome

HOOKS = ("_get_relevant_documents", "_aget_relevant_documents")
"""What subclasses of BaseRetriever override."""

Configs = RunnableConfig | list[RunnableConfig] | None


class RerankingRetriever(RankingFields, BaseRetriever):
    """Asks *base_retriever* for candidates and returns the best of them, scored.

    The compressor is made from this class's own fields, or given: a `CrossEncoderCompressor`, any
    other document compressor, or any Runnable from {"query", "documents"} to documents, such as
    `compressor.with_retry()`. Of the arguments of `invoke`, our own names (`top_n=1`) go to it,
    those that the base retriever takes (`filter=...`) to that; what is in `base_kwargs` is the base
    retriever's alone. `batch` asks for all candidates and then scores all pairs as one pool.

    With `rerank_count` and rest="drop" a vector store's retriever is asked for just as many; others
    have a setting of their own for what they find.

    A subclass that overrides `_get_relevant_documents` (or its async twin) is asked on every path,
    per query; an override that is only sync is awaited in a thread.

    >>> from langchain_core.runnables import RunnableLambda
    >>> found = RunnableLambda(lambda query: [Document("It is red."), Document("It is 70 m tall.")])
    >>> RerankingRetriever(base_retriever=found, top_n=1).invoke("how tall is it?")[0].page_content
    'It is 70 m tall.'
    """

    model_config = FIELDS_CONFIG

    base_retriever: SkipJsonSchema[RetrieverLike]
    """Finds the candidates: any Runnable from a query to documents."""
    compressor: SkipJsonSchema[Carried[Compressor | BaseDocumentCompressor | None]] = None
    """Reranks them, with settings and a model of its own: any document compressor, such as a
    pipeline, or a Runnable from {"query", "documents"}. None: this class's fields do."""
    top_n: Carried[int | Literal["compressor"] | None] = "compressor"
    """Documents that come back, at least 1, handed to the compressor as an argument of the call.
    None: all. "compressor": what that says, 3 unless it was told."""

    _compressor: Compressor = PrivateAttr()

    @field_validator("base_retriever", mode="before")
    @classmethod
    def _check_base(cls, base: object) -> object:
        if isinstance(base, Runnable):
            return base
        cure = "; RunnableLambda(function) makes one of a function" if callable(base) else ""
        raise ConfigError(
            f"base_retriever must be a retriever, or a Runnable from a query to documents: got "
            f"{base!r:.80}{cure}"
        )

    @property
    def config_specs(self) -> list[ConfigurableFieldSpec]:
        """What config["configurable"] obeys: the base retriever's, the compressor's, our own."""
        parts = (self.base_retriever, self._reranking())
        specs = [spec for part in parts for spec in part.config_specs]
        return get_unique_config_specs([*specs, *super().config_specs])

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
        **arguments: Any,
    ) -> list[Document]:
        """The documents most relevant to *input*, best first."""
        if self._overrides(HOOKS[0]):
            return self._by_hook(input, ensure_config(config), arguments)
        return only(self._pool([input], config, arguments))

    async def ainvoke(
        self,
        input: str,  # noqa: A002 (the name is Runnable's)
        config: RunnableConfig | None = None,
        **arguments: Any,
    ) -> list[Document]:
        """`invoke`, awaited."""
        if self._overrides(*HOOKS):
            return await self._aby_hook(input, ensure_config(config), arguments)
        return only(await self._apool([input], config, arguments))

    def batch(
        self,
        inputs: list[str],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **arguments: Any,
    ) -> list[list[Document]]:
        """`invoke` for each of *inputs*: one pool of pairs, one plan of batches.

        Each by itself where a subclass overrides `_get_relevant_documents` or `invoke`.
        """
        if self._overrides("invoke", HOOKS[0]):
            return super().batch(inputs, config, return_exceptions=return_exceptions, **arguments)
        results = self._pool(inputs, config, arguments)
        return deliver(results, return_exceptions=return_exceptions)

    async def abatch(
        self,
        inputs: list[str],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **arguments: Any,
    ) -> list[list[Document]]:
        """`batch`, awaited."""
        if self._overrides("ainvoke", *HOOKS):
            return await super().abatch(
                inputs, config, return_exceptions=return_exceptions, **arguments
            )
        results = await self._apool(inputs, config, arguments)
        return deliver(results, return_exceptions=return_exceptions)

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **arguments: Any
    ) -> list[Document]:
        # What BaseRetriever asks of its subclasses: `super()` of one that overrides it ends here.
        configs = get_config_list({"callbacks": run_manager.get_child()}, 1)
        results = self._retrieve([query], configs, self._route(arguments))
        return only(results)

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **arguments: Any
    ) -> list[Document]:
        configs = get_config_list({"callbacks": run_manager.get_child()}, 1)
        if hooks.only_sync(type(self), RerankingRetriever, *HOOKS):
            own = {"run_manager": run_manager.get_sync()}
            return await hooks.thread_hook(
                self._get_relevant_documents, query, config=configs[0], arguments=arguments, **own
            )
        results = await self._aretrieve([query], configs, self._route(arguments))
        return only(results)

    def _overrides(self, *names: str) -> bool:
        return hooks.overrides(type(self), RerankingRetriever, *names)

    def _by_hook(
        self, query: str, config: RunnableConfig, arguments: Mapping[str, Any]
    ) -> list[Document]:
        """What a subclass's `_get_relevant_documents` gives, in a run of its own."""
        runs = [self._start(query, config)]
        with tracing.closing(runs):
            found: list[Document] = hooks.call_hook(
                self._get_relevant_documents,
                query,
                config=patch_config(config, callbacks=runs[0].get_child()),
                arguments=arguments,
                run_manager=runs[0],
            )
            tracing.end(runs.pop(), found, {})
        return found

    async def _aby_hook(
        self, query: str, config: RunnableConfig, arguments: Mapping[str, Any]
    ) -> list[Document]:
        """`_by_hook`, awaited."""
        runs = [await self._astart(query, config)]
        async with tracing.aclosing(runs):
            found: list[Document] = await hooks.acall_hook(
                self._aget_relevant_documents,
                query,
                config=patch_config(config, callbacks=runs[0].get_child()),
                arguments=arguments,
                run_manager=runs[0],
            )
            await tracing.aend(runs.pop(), found, {})
        return found

    def _pool(
        self, queries: list[str], config: Configs, arguments: Mapping[str, Any]
    ) -> list[Outcome]:
        """Documents or error of each of *queries*, scored together, each in a run of its own."""
        route = self._route(arguments)
        configs = get_config_list(config, len(queries)) if queries else []
        runs: list[CallbackManagerForRetrieverRun] = []
        with tracing.closing(runs):
            for query, own in zip(queries, configs, strict=True):
                runs.append(self._start(query, own))
            results = self._retrieve(queries, _children(configs, runs), route)
            for result in results:
                tracing.end(runs.pop(0), result, {})
        return results

    async def _apool(
        self, queries: list[str], config: Configs, arguments: Mapping[str, Any]
    ) -> list[Outcome]:
        """`_pool`, awaited."""
        route = self._route(arguments)
        configs = get_config_list(config, len(queries)) if queries else []
        runs: list[AsyncCallbackManagerForRetrieverRun] = []
        async with tracing.aclosing(runs):
            for query, own in zip(queries, configs, strict=True):
                runs.append(await self._astart(query, own))
            results = await self._aretrieve(queries, _children(configs, runs), route)
            for result in results:
                await tracing.aend(runs.pop(0), result, {})
        return results

    def _start(self, query: str, config: RunnableConfig) -> CallbackManagerForRetrieverRun:
        return tracing.start(
            query, config, name=self.get_name(), facts=self._facts(), tags=self.tags
        )

    async def _astart(
        self, query: str, config: RunnableConfig
    ) -> AsyncCallbackManagerForRetrieverRun:
        return await tracing.astart(
            query, config, name=self.get_name(), facts=self._facts(), tags=self.tags
        )

    def _retrieve(
        self, queries: list[str], configs: list[RunnableConfig], route: Route
    ) -> list[Outcome]:
        """Documents or error per query."""
        found = route.search(queries, configs)
        indices, inputs = _inputs(queries, found, route.rerank_count)
        ranked = route.rank(inputs, [configs[index] for index in indices])
        return _merged(found, indices, ranked)

    async def _aretrieve(
        self, queries: list[str], configs: list[RunnableConfig], route: Route
    ) -> list[Outcome]:
        """`_retrieve`, awaited."""
        found = await route.asearch(queries, configs)
        indices, inputs = _inputs(queries, found, route.rerank_count)
        ranked = await route.arank(inputs, [configs[index] for index in indices])
        return _merged(found, indices, ranked)

    def _route(self, arguments: Mapping[str, Any]) -> Route:
        """What a call goes by, as the fields say now: later changes are the next call's.

        Raises InputError for *arguments* that go nowhere.
        """
        return Route.of(
            self.base_retriever,
            self._reranking(),
            arguments,
            top_n="compressor" if self.compressor is None else self.top_n,
            rerank_count=self.rerank_count if self.rest == "drop" else None,
        )

    def _facts(self) -> Facts:
        return {**self._get_ls_params(), **(self.metadata or {})}

    def _reranking(self) -> Compressor:
        self._prepared()
        return self._compressor

    def _settings(self) -> Settings:
        return Settings.of(self, **({"top_n": 3} if self.top_n == "compressor" else {}))

    def _judge(self) -> RerankerConfig:
        config = super()._judge()
        if self.compressor is not None:
            as_runnable(self.compressor)
        if self.top_n != "compressor":
            self.__dict__["top_n"], _ = plain_selection(self.top_n, None)
        self.__dict__["rerank_count"] = plain_count("rerank_count", self.rerank_count)
        fields = RankingFields.model_fields
        given = [
            name
            for name, field in fields.items()
            if getattr(self, name) != field.default and name != "rerank_count"
        ]
        if self.compressor is not None and given:
            raise ConfigError(
                f"compressor has settings of its own: give it {', '.join(given)}, or leave it out"
            )
        return config

    def _prepare(self) -> None:
        super()._prepare()
        self._compressor = (
            self._own_compressor() if self.compressor is None else as_runnable(self.compressor)
        )

    def _own_compressor(self) -> CrossEncoderCompressor:
        fields = {name: getattr(self, name) for name in RankingFields.model_fields}
        if self.top_n != "compressor":
            fields["top_n"] = self.top_n
        compressor = CrossEncoderCompressor(**fields)
        compressor._source = self._source  # one lease, which closing either of the two gives back
        return compressor


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


def _children(
    configs: Sequence[RunnableConfig],
    runs: Sequence[CallbackManagerForRetrieverRun | AsyncCallbackManagerForRetrieverRun],
) -> list[RunnableConfig]:
    """*configs* for what runs inside *runs*."""
    return [
        patch_config(config, callbacks=run.get_child())
        for config, run in zip(configs, runs, strict=True)
    ]


def _merged(found: Sequence[Any], indices: Sequence[int], ranked: Sequence[Any]) -> list[Outcome]:
    merged = list(found)
    for index, result in zip(indices, ranked, strict=True):
        merged[index] = result
    return merged
