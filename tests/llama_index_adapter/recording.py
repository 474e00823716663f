"""LlamaIndex's instrumentation and its older callbacks, recorded."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.instrumentation.span import BaseSpan, active_span_id
from llama_index.core.instrumentation.span_handlers import BaseSpanHandler
from pydantic import Field


class EventLog(BaseEventHandler):
    """Every event, in order."""

    events: list[Any] = Field(default_factory=list)

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        self.events.append(event)


class SpanLog(BaseSpanHandler[BaseSpan]):
    """Every span: those that ended well, and those that were dropped with their errors."""

    parents: dict[str, str | None] = Field(default_factory=dict)
    ended: list[str] = Field(default_factory=list)
    dropped: list[tuple[str, BaseException | None]] = Field(default_factory=list)

    def new_span(
        self,
        id_: str,
        bound_args: inspect.BoundArguments,
        instance: Any = None,
        parent_span_id: str | None = None,
        **kwargs: Any,
    ) -> BaseSpan:
        self.parents[id_] = parent_span_id
        return BaseSpan(id_=id_)

    def prepare_to_exit_span(self, id_: str, *args: Any, **kwargs: Any) -> BaseSpan | None:
        self.ended.append(id_)
        return self.open_spans.get(id_)

    def prepare_to_drop_span(
        self, id_: str, *args: Any, err: BaseException | None = None, **kwargs: Any
    ) -> BaseSpan | None:
        self.dropped.append((id_, err))
        return self.open_spans.get(id_)


class Recording:
    """The rerank events and spans of what ran inside `recording()`."""

    def __init__(self, events: EventLog, spans: SpanLog) -> None:
        self._events = events
        self._spans = spans

    @property
    def events(self) -> list[Any]:
        return self._events.events

    @property
    def starts(self) -> list[ReRankStartEvent]:
        return [event for event in self.events if isinstance(event, ReRankStartEvent)]

    @property
    def ends(self) -> list[ReRankEndEvent]:
        return [event for event in self.events if isinstance(event, ReRankEndEvent)]

    @property
    def ended(self) -> list[str]:
        return [name for name in self._spans.ended if name.startswith("CrossEncoder")]

    @property
    def open(self) -> list[str]:
        return list(self._spans.open_spans)

    @property
    def parents(self) -> dict[str, str | None]:
        return self._spans.parents

    @property
    def dropped(self) -> list[tuple[str, BaseException | None]]:
        return [(name, error) for name, error in self._spans.dropped if name[:12] == "CrossEncoder"]


@contextmanager
def recording() -> Iterator[Recording]:
    """Record events and spans of the block; the dispatchers are as before afterwards."""
    root = get_dispatcher()
    events, spans = EventLog(), SpanLog()
    root.add_event_handler(events)
    root.add_span_handler(spans)
    try:
        yield Recording(events, spans)
    finally:
        root.event_handlers.remove(events)
        root.span_handlers.remove(spans)


@contextmanager
def instrumented(name: str) -> Iterator[str]:
    """A span of the caller's own around the block; its id."""
    token = active_span_id.set(name)
    try:
        yield name
    finally:
        active_span_id.reset(token)


class CallbackLog(BaseCallbackHandler):
    """The older callbacks: (event id, payload) of each RERANKING start and end."""

    def __init__(self) -> None:
        super().__init__(event_starts_to_ignore=[], event_ends_to_ignore=[])
        self.starts: list[tuple[str, dict[EventPayload, Any]]] = []
        self.parents: list[str] = []
        self.ends: list[tuple[str, dict[EventPayload, Any] | None]] = []

    @property
    def manager(self) -> CallbackManager:
        return CallbackManager([self])

    def on_event_start(
        self, event_type: CBEventType, payload: Any = None, event_id: str = "", **kwargs: Any
    ) -> str:
        if event_type == CBEventType.RERANKING:
            self.starts.append((event_id, payload))
            self.parents.append(kwargs["parent_id"])
        return event_id

    def on_event_end(
        self, event_type: CBEventType, payload: Any = None, event_id: str = "", **kwargs: Any
    ) -> None:
        if event_type == CBEventType.RERANKING:
            self.ends.append((event_id, payload))

    def start_trace(self, trace_id: str | None = None) -> None:
        pass

    def end_trace(self, trace_id: str | None = None, trace_map: Any = None) -> None:
        pass
