"""Methods of a framework's base class that a subclass overrides: every way in goes through them."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping
from contextvars import Context
from typing import Any, TypeVar

from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import patch_config, run_in_executor, set_config_context

from ..errors import InputError
from .settings import SETTINGS

Result = TypeVar("Result")


def overrides(kind: type, base: type, *names: str) -> bool:
    """Whether *kind* has another method than *base* of one of *names*."""
    return any(getattr(kind, name) is not getattr(base, name) for name in names)


def only_sync(kind: type, base: type, hook: str, ahook: str) -> bool:
    """Whether a class between *base* and what overrides *ahook* overrides *hook* alone.

    `super()` of an async override has then to answer as the sync one does.
    """
    for one in reversed(kind.__mro__[: kind.__mro__.index(base)]):
        if ahook in vars(one):
            return False
        if hook in vars(one):
            return True
    return False


def takes(function: Callable[..., Any], name: str) -> bool:
    """Whether *function* takes an argument of that *name*."""
    found = inspect.signature(function).parameters.values()
    return any(it.name == name or it.kind is it.VAR_KEYWORD for it in found)


def call_hook(
    hook: Callable[..., Result],
    *given: Any,
    config: RunnableConfig,
    arguments: Mapping[str, Any],
    **own: Any,
) -> Result:
    """*hook* called with *given*, those of its *own* that it takes, and *arguments*.

    Settings among *arguments* that it does not take reach its `super()` through the context's
    configurable. InputError for others.
    """
    taken, context = _prepared(hook, config, arguments, own)
    return context.run(hook, *given, **taken)


async def acall_hook(
    hook: Callable[..., Awaitable[Result]],
    *given: Any,
    config: RunnableConfig,
    arguments: Mapping[str, Any],
    **own: Any,
) -> Result:
    """`call_hook`, awaited."""
    taken, context = _prepared(hook, config, arguments, own)

    async def called() -> Result:
        return await hook(*given, **taken)

    return await asyncio.create_task(called(), context=context)


async def thread_hook(
    hook: Callable[..., Result],
    *given: Any,
    config: RunnableConfig,
    arguments: Mapping[str, Any],
    **own: Any,
) -> Result:
    """`call_hook` in a thread, as LangChain's base classes call what is only sync."""

    def called() -> Result:
        return call_hook(hook, *given, config=config, arguments=arguments, **own)

    return await run_in_executor(None, called)


def _prepared(
    hook: Callable[..., Any],
    config: RunnableConfig,
    arguments: Mapping[str, Any],
    own: Mapping[str, Any],
) -> tuple[dict[str, Any], Context]:
    """The arguments that *hook* takes, and the context that the rest is in."""
    taken = {k: v for k, v in {**arguments, **own}.items() if takes(hook, k)}
    rest = {name: value for name, value in arguments.items() if name not in taken}
    if unknown := sorted(set(rest) - set(SETTINGS)):
        raise InputError(
            f"{hook.__qualname__} takes no {', '.join(unknown)}: give it **arguments, which its "
            "super() takes"
        )
    config = patch_config(config, configurable=rest)
    config.pop("run_name", None)  # it and run_id are of one run alone
    config.pop("run_id", None)
    with set_config_context(config) as context:
        return taken, context.copy()
