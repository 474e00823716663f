"""Hooks of LlamaIndex's base class that a subclass overrides, honoured on every way in."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from typing import Any, TypeVar

from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, QueryBundle

Value = TypeVar("Value")

SYNC, ASYNC = "_postprocess_nodes", "_apostprocess_nodes"
PUBLIC = {SYNC: "postprocess_nodes", ASYNC: "apostprocess_nodes"}


def follow_sync(kind: type[BaseNodePostprocessor]) -> None:
    """Where *kind* has overridden `_postprocess_nodes` alone, make its async hook run that.

    As LlamaIndex's own default does, but bound to *kind*: a class below that overrides both finds
    by `super()` what *kind* does, once.
    """
    if _depth(kind, SYNC) >= _depth(kind, ASYNC):
        return

    async def _apostprocess_nodes(
        self: Any, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        """`_postprocess_nodes` of this class, in a thread."""
        return await asyncio.to_thread(kind._postprocess_nodes, self, nodes, query_bundle)

    setattr(kind, ASYNC, _apostprocess_nodes)


def overrides(kind: type, base: type, hook: str) -> bool:
    """Whether *kind* has a *hook*, or a public method around it, that is not *base*'s."""
    names = (hook, PUBLIC[hook])
    return any(kind.__mro__[_depth(kind, name)] is not base for name in names)


async def all_of(calls: Iterable[Awaitable[Value]]) -> list[Value]:
    """What *calls* give, awaited together; the first error, once all have ended."""
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    values: list[Value] = []
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
        values.append(outcome)
    return values


def _depth(kind: type, name: str) -> int:
    """How far up from *kind* the class is that defines *name*."""
    return next(index for index, one in enumerate(kind.__mro__) if name in vars(one))
