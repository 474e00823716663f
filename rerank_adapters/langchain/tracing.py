"""One run of type "retriever" per rerank, so that traces show documents with their scores."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any
from uuid import UUID

from langchain_core.callbacks import (
    AsyncCallbackManagerForRetrieverRun,
    BaseCallbackManager,
    BaseRunManager,
    CallbackManagerForRetrieverRun,
)
from langchain_core.documents import Document
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import (
    get_async_callback_manager_for_config,
    get_callback_manager_for_config,
)
from langchain_core.utils.uuid import uuid7

Outcome = list[Document] | Exception
Facts = Mapping[str, Any]


def start(
    query: str,
    config: RunnableConfig,
    *,
    name: str,
    facts: Facts,
    tags: list[str] | None = None,
) -> CallbackManagerForRetrieverRun:
    """Open a run under *config*'s callbacks, with *facts* and *tags* for itself alone.

    Where a handler raises, the others are told that it ended.
    """
    manager = get_callback_manager_for_config(config)
    run_id = _prepared(manager, config, facts, tags)
    try:
        return manager.on_retriever_start(
            None, query, name=config.get("run_name") or name, run_id=run_id
        )
    except BaseException as error:
        run = CallbackManagerForRetrieverRun(run_id=run_id, **_parts(manager))
        with suppress(Exception):  # of a handler that was told of no start
            run.on_retriever_error(error)
        raise


async def astart(
    query: str,
    config: RunnableConfig,
    *,
    name: str,
    facts: Facts,
    tags: list[str] | None = None,
) -> AsyncCallbackManagerForRetrieverRun:
    """`start`, awaited."""
    manager = get_async_callback_manager_for_config(config)
    run_id = _prepared(manager, config, facts, tags)
    try:
        return await manager.on_retriever_start(
            None, query, name=config.get("run_name") or name, run_id=run_id
        )
    except BaseException as error:
        run = AsyncCallbackManagerForRetrieverRun(run_id=run_id, **_parts(manager))
        with suppress(Exception):
            await run.on_retriever_error(error)
        raise


def end(
    run: CallbackManagerForRetrieverRun,
    outcome: Outcome | BaseException,
    facts: Facts,
    caught: Exception | None = None,
) -> None:
    """Close *run* with its documents, or as an error; *caught* is one that has documents."""
    _add_facts(run, outcome, facts)
    if isinstance(outcome, BaseException):
        run.on_retriever_error(outcome)
    elif caught is not None:
        run.on_retriever_error(caught)
    else:
        run.on_retriever_end(outcome)


async def aend(
    run: AsyncCallbackManagerForRetrieverRun,
    outcome: Outcome | BaseException,
    facts: Facts,
    caught: Exception | None = None,
) -> None:
    """`end`, awaited."""
    _add_facts(run, outcome, facts)
    if isinstance(outcome, BaseException):
        await run.on_retriever_error(outcome)
    elif caught is not None:
        await run.on_retriever_error(caught)
    else:
        await run.on_retriever_end(outcome)


@contextmanager
def closing(runs: list[CallbackManagerForRetrieverRun]) -> Iterator[None]:
    """Close as errors what is in *runs* should the block raise, an interrupt included.

    A run leaves the list when it is ended by itself. The block may open them, too: a handler that
    raises where one starts or ends leaves none of the others open.
    """
    try:
        yield
    except BaseException as error:
        for run in runs:
            with suppress(Exception):  # a handler's; the first error is the one to raise
                end(run, error, {})
        raise


@asynccontextmanager
async def aclosing(runs: list[AsyncCallbackManagerForRetrieverRun]) -> AsyncIterator[None]:
    """`closing`, awaited; a cancelled task closes its runs as well."""
    try:
        yield
    except BaseException as error:
        for run in runs:
            with suppress(Exception):
                await aend(run, error, {})
        raise


def _prepared(
    manager: BaseCallbackManager, config: RunnableConfig, facts: Facts, tags: list[str] | None
) -> UUID:
    """The id of the run that is to begin under *manager*, which has now what it alone says."""
    manager.add_tags(tags or [], inherit=False)
    manager.add_metadata(dict(facts), inherit=False)
    return config.get("run_id") or uuid7()


def _parts(manager: BaseCallbackManager) -> dict[str, Any]:
    """What a run is made of: LangChain makes none where a handler raises at its start."""
    return {name: getattr(manager, name) for name in RUN_PARTS}


RUN_PARTS = (
    *("handlers", "inheritable_handlers", "parent_run_id"),
    *("tags", "inheritable_tags", "metadata", "inheritable_metadata"),
)


def _add_facts(run: BaseRunManager, outcome: Outcome | BaseException, facts: Facts) -> None:
    # The dict that the run was started with: handlers hold it until the run is over.
    run.metadata.update(facts)
    if not isinstance(outcome, BaseException):
        run.metadata["n_out"] = len(outcome)
