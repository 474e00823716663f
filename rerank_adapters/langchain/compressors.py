"""What may rerank: our compressor, any other of LangChain's, or a Runnable; and what each takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.language_models import BaseLanguageModel
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import (
    Runnable,
    RunnableBinding,
    RunnableConfig,
    RunnableLambda,
    RunnableSequence,
    RunnableWithFallbacks,
)
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.config import ensure_config
from langchain_core.runnables.configurable import DynamicRunnable

from ..errors import ConfigError
from . import hooks
from .compressor import CrossEncoderCompressor
from .request import parts
from .settings import SETTINGS

Compressor = Runnable[Any, list[Document]]

ONE_QUESTION = (BaseRetriever, BaseLanguageModel)


class PlainCompressor(Runnable[Mapping[str, Any], list[Document]]):
    """A document compressor that is no Runnable, as one. It is asked where there are documents."""

    def __init__(self, compressor: BaseDocumentCompressor) -> None:
        self.compressor = compressor

    def invoke(
        self,
        input: Mapping[str, Any],  # noqa: A002 (the name is Runnable's)
        config: RunnableConfig | None = None,
        **arguments: Any,
    ) -> list[Document]:
        """What it makes of input["documents"] for input["query"]."""
        given, call = _call(input, config, arguments)
        if not given[0]:
            return []
        return list(hooks.call_hook(self.compressor.compress_documents, *given, **call))

    async def ainvoke(
        self,
        input: Mapping[str, Any],  # noqa: A002 (the name is Runnable's)
        config: RunnableConfig | None = None,
        **arguments: Any,
    ) -> list[Document]:
        """`invoke`, awaited."""
        given, call = _call(input, config, arguments)
        if not given[0]:
            return []
        return list(await hooks.acall_hook(self.compressor.acompress_documents, *given, **call))


def _call(
    asked: Mapping[str, Any], config: RunnableConfig | None, arguments: Mapping[str, Any]
) -> tuple[tuple[list[Document], Any], dict[str, Any]]:
    """What a hook is called with: documents and query, and what goes with them."""
    query, documents = parts(asked)
    config = ensure_config(config)
    own = {"callbacks": config.get("callbacks")}
    return (list(documents), query), {"config": config, "arguments": arguments, **own}


def as_runnable(compressor: object) -> Compressor:
    """*compressor* as a Runnable from {"query", "documents"}. Raises ConfigError."""
    # Both are Runnables, but from a question alone.
    if isinstance(compressor, Runnable) and not isinstance(compressor, ONE_QUESTION):
        return compressor
    if isinstance(compressor, BaseDocumentCompressor):
        return PlainCompressor(compressor)
    raise ConfigError(
        "compressor must be a document compressor, or a Runnable from {query, documents} to "
        f"documents: got {compressor!r:.80}; a model is given as "
        "CrossEncoderCompressor(model=...), a ranker as reranker="
    )


def accepts(runnable: Any, name: str) -> bool:
    """Whether *runnable* takes an argument *name* in a call, as far as its signatures say."""
    if isinstance(runnable, CrossEncoderCompressor):
        return name in SETTINGS
    if isinstance(runnable, PlainCompressor):
        return hooks.takes(runnable.compressor.compress_documents, name)
    if isinstance(runnable, RunnableWithFallbacks):
        return all(accepts(one, name) for one in (runnable.runnable, *runnable.fallbacks))
    if isinstance(runnable, RunnableBinding | RunnableBindingBase):
        return accepts(runnable.bound, name)
    if isinstance(runnable, DynamicRunnable):
        return accepts(runnable.default, name)
    if isinstance(runnable, RunnableSequence):
        return accepts(runnable.first, name)
    if isinstance(runnable, RunnableLambda):
        return hooks.takes(getattr(runnable, "func", None) or runnable.afunc, name)
    if isinstance(runnable, BaseRetriever):
        both = runnable._get_relevant_documents, runnable._aget_relevant_documents
        return any(hooks.takes(hook, name) for hook in both)
    return hooks.takes(runnable.invoke, name)


def holds_others(compressor: Compressor) -> bool:
    """Whether settings may reach another compressor inside: a Runnable's, or a pipeline's."""
    if isinstance(compressor, PlainCompressor):
        return hasattr(compressor.compressor, "transformers")
    return True
