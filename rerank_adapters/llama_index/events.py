"""Events of a rerank: one start and one end for each request, however it goes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.instrumentation import (  # type: ignore[attr-defined]  # not said so
    get_dispatcher,
)
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent

from .request import NodeRequest

dispatcher = get_dispatcher(__name__)


@contextmanager
def rerank_events(
    requests: Sequence[NodeRequest],
    *,
    callback_manager: CallbackManager,
    model_name: str,
    top_n: int | None,
) -> Iterator[list[NodeRequest]]:
    """The *requests* that have nodes, each between its events; an error closes them all."""
    asked = [request for request in requests if request.nodes]
    with ExitStack() as open_events:
        for request in asked:
            open_events.enter_context(_events(request, callback_manager, model_name, top_n))
        yield asked


@contextmanager
def _events(
    request: NodeRequest, callback_manager: CallbackManager, model_name: str, top_n: int | None
) -> Iterator[None]:
    """A start and an end for *request*: instrumentation events and the older callback pair."""
    count = top_n or len(request.nodes)  # the event asks for an int
    payload: dict[str, Any] = {
        EventPayload.NODES: request.nodes,
        EventPayload.MODEL_NAME: model_name,
        EventPayload.QUERY_STR: request.query,
        EventPayload.TOP_K: count,
    }
    dispatcher.event(
        ReRankStartEvent(
            query=request.query, nodes=request.nodes, top_n=count, model_name=model_name
        )
    )
    try:
        with callback_manager.event(CBEventType.RERANKING, payload=payload) as event:
            yield
            event.on_end(payload={EventPayload.NODES: request.output})
    finally:
        dispatcher.event(ReRankEndEvent(nodes=request.output))
