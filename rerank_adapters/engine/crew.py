"""The threads of an engine: each repeats one step, until the last of them leaves."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager

Step = Callable[[], bool]
"""One round of a thread's work; False when the thread is to end."""


class Crew:
    """Starts threads, and reports how they end. Its owner's lock guards it."""

    def __init__(
        self,
        lock: AbstractContextManager[bool],
        *,
        on_death: Callable[[BaseException], None],
        on_leave: Callable[[bool], None],
    ) -> None:
        """*on_death* gets what a step raised; *on_leave* whether it was the last thread that left.

        Both are called in the thread in question, without the lock.
        """
        self._lock = lock
        self._on_death = on_death
        self._on_leave = on_leave
        self._threads: list[threading.Thread] = []
        self._stepping = 0  # those of them that have not begun to leave

    @property
    def threads(self) -> list[threading.Thread]:
        """Those that are alive, the one that is about to leave as the last included."""
        return list(self._threads)

    def spawn(self, name: str, step: Step) -> threading.Thread:
        """Start a thread that repeats *step*. The lock is held."""
        thread = threading.Thread(target=self._live, args=(step,), name=name, daemon=True)
        thread.start()
        self._threads.append(thread)
        self._stepping += 1
        return thread

    def _live(self, step: Step) -> None:
        try:
            while step():
                pass  # a round's locals are gone before the next: they hold batches
        except BaseException as error:  # noqa: BLE001 - nobody may wait for a thread that is gone
            # As words: the frames would keep the batch and its memory for as long as the engine.
            error.add_note("in the engine:\n" + traceback.format_exc())
            self._on_death(error.with_traceback(None))
        with self._lock:
            self._stepping -= 1
            last = not self._stepping
        self._on_leave(last)
        with self._lock:
            self._threads.remove(threading.current_thread())
