"""What becomes of an engine in a forked child, where none of its threads came along."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from ..errors import ClosedError
from ..futures import settle
from .ending import FORKED_REQUEST


class _Renewable(Protocol):
    def renew(self) -> None: ...


_ENGINES: weakref.WeakSet[_Renewable] = weakref.WeakSet()


def renew_in_child(engine: _Renewable) -> None:
    """Call `engine.renew()` in every child that is forked while there is the engine."""
    _ENGINES.add(engine)


def fail_inherited(tickets: Sequence[Future[Any]]) -> None:
    """Fail the parent's requests, in a thread of their own.

    A callback may want a lock whose holder did not come along.
    """
    if tickets:
        thread = threading.Thread(target=_fail, args=(tickets,), name="rerank-forked", daemon=True)
        thread.start()


def _fail(tickets: Sequence[Future[Any]]) -> None:
    for ticket in tickets:
        # A thread that did not come along may have held this lock; then it cannot be settled.
        if ticket._condition.acquire(blocking=False):
            ticket._condition.release()
            settle(ticket, ClosedError(FORKED_REQUEST))


def _renew_all() -> None:
    for engine in list(_ENGINES):
        engine.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)
