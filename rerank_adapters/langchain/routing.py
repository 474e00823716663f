"""Where the arguments of a retriever's call go: to the base retriever, or to the compressor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from langchain_core.retrievers import BaseRetriever, RetrieverLike
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import patch_config, run_in_executor
from langchain_core.vectorstores import VectorStoreRetriever

from ..checks import check_selection
from ..errors import InputError
from .compressors import Compressor, accepts, holds_others
from .settings import SETTINGS
from .tracing import Outcome

TopN = int | Literal["compressor"] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One call's parts, as they are when it starts.

    to_base        arguments of the base retriever
    to_compressor  settings of this call, our own names
    top_n          the retriever's own; "compressor" where it has none
    """

    base: RetrieverLike
    compressor: Compressor
    top_n: TopN
    rerank_count: int | None
    to_base: Mapping[str, Any]
    to_compressor: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        base: RetrieverLike,
        compressor: Compressor,
        arguments: Mapping[str, Any],
        *,
        top_n: TopN,
        rerank_count: int | None,
    ) -> Route:
        """Our own names go to the compressor, those that *base* takes to it. InputError for others.

        `base_kwargs` holds what is the base retriever's alone, whatever it is called.
        """
        to_base = dict(_base_kwargs(arguments))
        to_compressor = {}
        for name, value in arguments.items():
            if name in SETTINGS:
                to_compressor[name] = value
            elif name != "base_kwargs":
                to_base.setdefault(name, value)
        if unknown := sorted(name for name in to_base if not accepts(base, name)):
            raise InputError(
                f"a call takes {', '.join(SETTINGS)}, and what the base retriever takes: got "
                f"{', '.join(unknown)}"
            )
        # The one retriever in langchain-core that takes the number of results in a call.
        if rerank_count is not None and isinstance(base, VectorStoreRetriever):
            to_base.setdefault("k", rerank_count)
        return cls(
            base=base,
            compressor=compressor,
            top_n=top_n,
            rerank_count=rerank_count,
            to_base=to_base,
            to_compressor=to_compressor,
        )

    def search(self, queries: list[str], configs: list[RunnableConfig]) -> list[Any]:
        """What the base retriever finds for each of *queries*, or its error."""
        found: list[Any] = self.base.batch(queries, configs, return_exceptions=True, **self.to_base)
        return found

    async def asearch(self, queries: list[str], configs: list[RunnableConfig]) -> list[Any]:
        """`search`, awaited; in a thread where LangChain's own awaiting would refuse arguments."""
        inherited = BaseRetriever._aget_relevant_documents
        if self.to_base and getattr(type(self.base), inherited.__name__, None) is inherited:
            return await run_in_executor(None, self.search, queries, configs)
        found: list[Any] = await self.base.abatch(
            queries, configs, return_exceptions=True, **self.to_base
        )
        return found

    def rank(
        self, inputs: list[dict[str, Any]], configs: list[RunnableConfig]
    ) -> Sequence[Outcome]:
        """What the compressor makes of each of *inputs*, or its error."""
        arguments, directed = self._directions(configs)
        found: Sequence[Any] = self.compressor.batch(
            inputs, directed, return_exceptions=True, **arguments
        )
        return self._cut(found, configs)

    async def arank(
        self, inputs: list[dict[str, Any]], configs: list[RunnableConfig]
    ) -> Sequence[Outcome]:
        """`rank`, awaited."""
        arguments, directed = self._directions(configs)
        found: Sequence[Any] = await self.compressor.abatch(
            inputs, directed, return_exceptions=True, **arguments
        )
        return self._cut(found, configs)

    def _directions(
        self, configs: list[RunnableConfig]
    ) -> tuple[dict[str, Any], list[RunnableConfig]]:
        """Arguments for the compressor, and configs with what it does not take as one.

        So a fallback that is a plain function, or a pipeline, does not stand in the way of a
        setting that somebody behind it obeys.
        """
        settings = dict(self.to_compressor)
        if self.top_n != "compressor" and not any("top_n" in _asked(one) for one in configs):
            settings.setdefault("top_n", self.top_n)
        taken = {k: v for k, v in settings.items() if accepts(self.compressor, k)}
        rest = {k: v for k, v in settings.items() if k not in taken}
        if (lost := sorted(set(rest) - {"top_n"})) and not holds_others(self.compressor):
            raise InputError(f"the compressor takes no {', '.join(lost)}: leave it out")
        own = {} if self.top_n == "compressor" else {"top_n": self.top_n}
        directed = [patch_config(one, configurable=own | _asked(one) | rest) for one in configs]
        return taken, directed

    def _cut(self, found: Sequence[Any], configs: Sequence[RunnableConfig]) -> Sequence[Outcome]:
        """*found*, cut here where the compressor may know of no top_n."""
        if accepts(self.compressor, "top_n"):
            return found
        own = {} if self.top_n == "compressor" else {"top_n": self.top_n}
        cut = []
        for result, config in zip(found, configs, strict=True):
            top_n = {**own, **_asked(config), **self.to_compressor}.get("top_n")
            check_selection(top_n, None)
            cut.append(result if isinstance(result, Exception) else list(result)[:top_n])
        return cut


def _asked(config: RunnableConfig) -> dict[str, Any]:
    return config.get("configurable") or {}


def _base_kwargs(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    given = arguments.get("base_kwargs") or {}
    if not isinstance(given, Mapping):
        raise InputError(f"base_kwargs must be a mapping of arguments: got {given!r:.80}")
    return given
