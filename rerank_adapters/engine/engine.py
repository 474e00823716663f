"""One queue for all callers of a model, from any thread or event loop, and the workers behind it.

    Admission.submit(tokens) ─ line ┐
    Admission.submit(tokens) ─ line ┴ queue ─ a worker per forward: cut a batch, run it, deal it out

Work-conserving: a worker takes what waits, at once; batches grow because requests arrive while a
batch runs. The pattern follows Hugging Face text-embeddings-inference (queue.rs), with one Future
per request, and failures kept to the request that caused them.
"""

from __future__ import annotations

import atexit
import ctypes
import threading
import weakref
from collections.abc import Callable, Sequence

from ..futures import settle
from .batching import BatchRule, check_count
from .crew import Crew
from .deadlines import Deadlines
from .dispatch import Dispatch
from .ending import CLOSED, FORKED_ENGINE, Ending
from .forking import fail_inherited, renew_in_child
from .held import HeldStates
from .plan import Load
from .queue import RequestQueue
from .requests import Owner, Request, Ticket
from .stats import ForwardStats
from .worker import Forward, Worker, looks_out_of_memory

WINDOW_BATCHES = 16
"""A wider window pads less and lets every request end later: 64 requests of 20 pairs at once keep
97 % of one large call's throughput and end after 70 % of its time on average; with four times the
window it is 99 % and 90 %."""


class Engine:
    """Workers, the queue they serve, and the end of both. Starts with the first request.

    Callers come in by an `Admission` each. A request comes back whole or fails alone: an exception
    in a shared batch is bisected to the pair at fault, out of memory halves the batch and the
    budget, a row that is not finite is tried again alone. A cancelled or late request is dropped
    from the queue at once. An engine survives a fork of its process.
    """

    def __init__(
        self,
        forwards: Sequence[tuple[Forward, BatchRule]],
        *,
        window_tokens: int | None = None,
        max_skipped: int = 8,
        is_out_of_memory: Callable[[BaseException], bool] = looks_out_of_memory,
        survives_fork: bool = True,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        """One worker thread for each of *forwards*, whose batches follow the rule given with it.

        Batches are cut from the *window_tokens* that arrived first (None: 16 batches); half of the
        tokens are the oldest request's, the rest go to the one that was passed over *max_skipped*
        times, else to the smallest. After a fork, forwards that survive it run on in the child,
        others refuse with ClosedError; the parent's are never freed there. *on_close* is called
        once, after the last thread has ended.
        """
        check_count("len(forwards)", len(forwards))
        check_count("window_tokens", window_tokens)
        check_count("max_skipped", max_skipped)
        self.workers = len(forwards)
        self._forward_stats = ForwardStats()
        self._workers = [Worker(*both, is_out_of_memory) for both in forwards]
        self._window_tokens = window_tokens
        self._max_skipped = max_skipped
        self._survives_fork = survives_fork
        self._on_close = on_close
        self.ending = Ending()
        self.owners: weakref.WeakSet[Owner] = weakref.WeakSet()
        self._start_over()
        renew_in_child(self)

    def _start_over(self) -> None:
        """No request, no thread, and locks nobody holds."""
        self.lock = threading.RLock()  # re-entered when garbage collection runs a callback
        self.queue = RequestQueue(window_tokens=self._window(), max_skipped=self._max_skipped)
        self.held = HeldStates()
        self.unfinished: set[Ticket] = set()
        self._crew = Crew(self.lock, on_death=self._broke, on_leave=self._left)
        self._deadlines = Deadlines(self.lock, self.unfinished, self._crew, self._is_ending)
        self.dispatch = Dispatch(
            self.lock,
            self.queue,
            self._workers,
            self._forward_stats,
            is_ending=self._is_ending,
        )
        for owner in list(self.owners):
            owner.renew()

    # -- requests: for admissions -------------------------------------------------------------

    def allow(self, max_batch_tokens: int | None) -> None:
        """Let batches hold so many padded tokens, where that is more than before; None: as before.

        For an owner who asks for more than suits the device; others may keep a smaller bound.
        """
        with self.lock:
            for worker in self._workers:
                worker.allow(max_batch_tokens or 0)
            self.queue.window_tokens = self._window()

    def register(self, ticket: Ticket) -> None:
        """Know a new ticket until it has its end. The lock is held."""
        self._start()
        self.unfinished.add(ticket)
        self._deadlines.watch(ticket.deadline)
        ticket.add_done_callback(self._settled)  # type: ignore[arg-type]  # a ticket's get a ticket

    def forget(self, ticket: Ticket) -> None:
        """Know it no longer, as if it had never been there. The lock is held."""
        self.unfinished.discard(ticket)
        ticket.owner = None

    def enqueue(self, request: Request, load: Load, *, max_batch_tokens: int | None) -> None:
        """Let *request* wait for a worker. The lock is held."""
        self.queue.add(request, load=load, max_batch_tokens=max_batch_tokens)
        self.dispatch.notify()

    @property
    def closed(self) -> bool:
        """Whether it takes no more requests: closed, broken, or lost in a fork."""
        return self.ending.begun

    def _settled(self, ticket: Ticket) -> None:
        """Runs once for every ticket, in the thread that gave it its end."""
        owner = ticket.owner
        with self.lock:
            if ticket not in self.unfinished:
                owner = None
            if owner is not None:
                self.forget(ticket)
                self.queue.drop(ticket)
                owner.settled(ticket)
                if self.ending.abandoned:
                    self._wake_all()
        if ticket.cancelled():
            ticket.set_running_or_notify_cancel()  # wakes concurrent.futures.wait
        if owner is not None:
            owner.finish_if_idle()

    def _start(self) -> None:
        if self._crew.threads:
            return
        # Registered late, so it runs before the exit handlers of the runtimes: a thread that is
        # inside one when the interpreter goes would abort the process.
        atexit.register(self.close)
        self.dispatch.start(self._crew)

    def _window(self) -> int:
        budgets = [worker.rule.max_tokens for worker in self._workers]
        return self._window_tokens or WINDOW_BATCHES * max(budgets, default=1)

    # -- the end ------------------------------------------------------------------------------

    def close(self) -> None:
        """Fail what is unfinished with ClosedError, end the threads, call `on_close` once.

        Waits for the batches that run. Closing again does nothing.
        """
        threads = self._end(CLOSED, None)
        if not threads:
            self._finish()
        self._fail_all()
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join()

    def abandon(self) -> None:
        """Take no more requests, finish those there are, then end. Returns at once.

        For finalizers, which run in any thread at any time.
        """
        with self.lock:
            self.ending.abandoned = True
            self._wake_all()
            idle = not self._crew.threads
        if idle:
            self._finish()

    def _is_ending(self) -> bool:
        """Whether a thread with nothing to do should end."""
        return bool(self.ending.why_closed) or (self.ending.abandoned and not self.unfinished)

    def _wake_all(self) -> None:
        self.dispatch.wake()
        self._deadlines.wake()

    def _end(self, why: str, cause: BaseException | None) -> list[threading.Thread]:
        with self.lock:
            self.ending.close(why, cause)
            self._wake_all()
            return self._crew.threads

    def _broke(self, error: BaseException) -> None:
        self._end(f"the engine broke, {error!r}: load the model again", error)

    def _left(self, last: bool) -> None:
        if self.ending.why_closed:
            self._fail_all()
        if last:
            self._finish()

    def _fail_all(self) -> None:
        with self.lock:
            unfinished = list(self.unfinished)
        for ticket in unfinished:
            settle(ticket, self.ending.error())

    def _finish(self) -> None:
        with self.lock:
            on_close, self._on_close = self._on_close, None
            self._workers.clear()
        atexit.unregister(self.close)
        if on_close is not None:
            on_close()

    def renew(self) -> None:
        """In a forked child: forget the parent's threads, locks and requests; start over."""
        inherited = list(self.unfinished)
        for ticket in inherited:
            ticket.owner = None
        self._start_over()
        # A runtime's pool threads did not come along, and freeing its session would wait for them
        # for ever (onnxruntime does, at the latest when the interpreter ends): it is never freed.
        self._on_close = None
        ctypes.pythonapi.Py_IncRef(ctypes.py_object([worker.forward for worker in self._workers]))
        if not self._survives_fork:
            self.ending.close(FORKED_ENGINE)
        fail_inherited(inherited)
