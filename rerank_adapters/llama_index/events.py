"""What traces are told of a rerank: for each request one span, and one pair of events in it."""

from __future__ import annotations

import contextvars
import copy
import inspect
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.callbacks.base import EventContext
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.instrumentation import (  # type: ignore[attr-defined]  # not said so
    get_dispatcher,
)
from llama_index.core.instrumentation.dispatcher import (  # type: ignore[attr-defined]  # likewise
    active_instrument_tags,
)
from llama_index.core.instrumentation.events.exception import ExceptionEvent
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.instrumentation.events.span import (  # type: ignore[attr-defined]  # likewise
    SpanDropEvent,
)
from llama_index.core.instrumentation.span import active_span_id
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import QueryBundle

from ..protocols import ModelInfo
from .request import NodeRequest

dispatcher = get_dispatcher(__name__)

FACTS = ("model", "backend", "device", "dtype")
"""What events say of the model, as tags: what really runs, or what was asked for."""


@contextmanager
def traced(traces: Sequence[Trace], running: Callable[[], ModelInfo | None]) -> Iterator[None]:
    """Tell of every request of *traces*; each is closed by its own outcome, or by what is raised.

    A handler that raises keeps no other from being told, nor anything from being closed; its error
    is raised then.
    """
    opened: list[Trace] = []
    try:
        for trace in traces:
            opened.append(trace)
            trace.open()
        yield
    except BaseException as error:
        for trace in opened:
            trace.close(error, {})
        raise
    facts = told(running())
    raised = [it for trace in traces for it in trace.close(trace.request.error, facts)]
    failed = [trace.request.error for trace in traces if trace.request.error is not None]
    for first in (*failed, *raised):
        raise first


def told(info: object) -> dict[str, str]:
    """The facts in *info*, a ModelInfo or an adapter's fields."""
    return {name: str(value) for name in FACTS if (value := getattr(info, name, ""))}


class Trace:
    """A request's span and events. Each begins and ends in a context of its own where it is one of
    several, so that none is told as a part of another.

    spanned: the method whose span it opens and closes; None where one is open around it.
    """

    def __init__(
        self,
        request: NodeRequest,
        owner: BaseNodePostprocessor,
        facts: Mapping[str, str],
        spanned: Callable[..., object] | None,
    ) -> None:
        self.request = request
        self._facts = dict(facts)
        self._span = None if spanned is None else _Span(owner, spanned, request)
        self._within = contextvars.copy_context().run if spanned else _here
        self._callback = _Callback(owner.callback_manager)

    def open(self) -> None:
        """Tell that it begins. Raises what a callback handler raises."""
        self._within(self._open)

    def close(self, error: BaseException | None, facts: Mapping[str, str]) -> list[BaseException]:
        """Tell how it ended, and what ran; the errors of callback handlers."""
        return self._within(self._close, error, facts)

    def _open(self) -> None:
        request = self.request
        if self._span is not None:
            self._span.enter()
        if not request.nodes:
            return  # nothing is reranked
        count = request.top_n or len(request.nodes)  # the event asks for an int
        query, model = request.given, self._facts.get("model", "")
        dispatcher.event(
            ReRankStartEvent(
                query=query, nodes=request.nodes, top_n=count, model_name=model, tags=self._facts
            )
        )
        text = query.query_str if isinstance(query, QueryBundle) else query
        self._callback.start(
            {
                EventPayload.NODES: request.nodes,
                EventPayload.MODEL_NAME: model,
                EventPayload.QUERY_STR: text,
                EventPayload.TOP_K: count,
            }
        )

    def _close(self, error: BaseException | None, facts: Mapping[str, str]) -> list[BaseException]:
        errors = self._end(error, facts) if self.request.nodes else []
        if self._span is not None:
            self._span.leave(self.request.output, error)
        return errors

    def _end(self, error: BaseException | None, facts: Mapping[str, str]) -> list[BaseException]:
        output, caught = self.request.output, self.request.caught
        failure = error or caught
        if caught is not None:
            dispatcher.event(ExceptionEvent(exception=caught))
        tags = {**self._facts, **facts, **self.request.came_of}
        dispatcher.event(ReRankEndEvent(nodes=output, tags=tags))
        return self._callback.end(
            ({} if failure is None else {EventPayload.EXCEPTION: failure})
            | ({} if error is not None else {EventPayload.NODES: output}),
            error,
        )


def _here(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


class _Span:
    """The span that LlamaIndex's decorator would open around a call of *method*."""

    def __init__(
        self, owner: BaseNodePostprocessor, method: Callable[..., object], request: NodeRequest
    ) -> None:
        name = getattr(method, "__name__", "")
        query = request.given
        bundle = query if isinstance(query, QueryBundle) else QueryBundle(query)
        self._dispatcher = get_dispatcher(type(owner).__module__)
        self._id = f"{type(owner).__name__}.{name}-{uuid.uuid4()}"
        self._call: dict[str, Any] = {
            "id_": self._id,
            "bound_args": inspect.signature(method).bind(request.nodes, bundle),
            "instance": owner,
        }

    def enter(self) -> None:
        parent, tags = active_span_id.get(), active_instrument_tags.get()
        active_span_id.set(self._id)
        self._dispatcher.span_enter(**self._call, parent_id=parent, tags=tags)

    def leave(self, result: object, error: BaseException | None) -> None:
        if error is None:
            self._dispatcher.span_exit(**self._call, result=result)
            return
        self._dispatcher.event(SpanDropEvent(span_id=self._id, err_str=str(error)))
        self._dispatcher.span_drop(**self._call, err=error)


class _Callback:
    """The older pair of events, of which a handler that raises keeps no other."""

    def __init__(self, manager: CallbackManager) -> None:
        self._errors: list[BaseException] = []
        guarded = copy.copy(manager)
        guarded.handlers = [_Guard(handler, self._errors) for handler in manager.handlers]
        self._event = EventContext(guarded, CBEventType.RERANKING)

    def start(self, payload: dict[str, Any]) -> None:
        self._event.on_start(payload=payload)
        for error in self._errors:
            raise error

    def end(self, payload: dict[str, Any], error: BaseException | None) -> list[BaseException]:
        """The errors of handlers that were not raised yet."""
        if not self._event.started:
            return []
        before = len(self._errors)
        if error is not None:
            if hasattr(error, "event_added"):  # an event inside this one has told of it
                payload = {}
            with suppress(AttributeError):
                error.event_added = True  # type: ignore[attr-defined]  # LlamaIndex's mark
        self._event.on_end(payload=payload)
        return self._errors[before:]


class _Guard(BaseCallbackHandler):
    """A handler whose errors are kept in *errors*; after one at the start it is told no end."""

    def __init__(self, handler: BaseCallbackHandler, errors: list[BaseException]) -> None:
        self.event_starts_to_ignore = handler.event_starts_to_ignore
        self.event_ends_to_ignore = handler.event_ends_to_ignore
        self._handler = handler
        self._errors = errors
        self._lost = False

    def on_event_start(self, *arguments: Any, **options: Any) -> str:
        try:
            return self._handler.on_event_start(*arguments, **options)
        except BaseException as error:  # noqa: BLE001  # raised when the others were told
            self._lost = True
            self._errors.append(error)
            return ""

    def on_event_end(self, *arguments: Any, **options: Any) -> None:
        if self._lost:
            return
        try:
            self._handler.on_event_end(*arguments, **options)
        except BaseException as error:  # noqa: BLE001  # raised when the others were told
            self._errors.append(error)

    def start_trace(self, trace_id: str | None = None) -> None:
        self._handler.start_trace(trace_id)

    def end_trace(
        self, trace_id: str | None = None, trace_map: dict[str, list[str]] | None = None
    ) -> None:
        self._handler.end_trace(trace_id, trace_map)
