"""What traces are told of a call: one start and one end, however it goes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from llama_index.core.callbacks import CBEventType, EventPayload
from llama_index.core.instrumentation import (  # type: ignore[attr-defined]  # not said so
    get_dispatcher,
)
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent

if TYPE_CHECKING:
    from .call import Call
    from .postprocessor import CrossEncoderPostprocessor

dispatcher = get_dispatcher(__name__)


@contextmanager
def told(calls: Sequence[Call]) -> Iterator[list[Call]]:
    """The calls that have nodes, each between its events; an error closes them all."""
    asked = [call for call in calls if call.nodes]
    with ExitStack() as open_events:
        for call in asked:
            open_events.enter_context(_events(call))
        yield asked


@contextmanager
def _events(call: Call) -> Iterator[None]:
    """A start and an end for *call*: instrumentation events and the older callback pair."""
    owner, name = call.owner, _model_name(call.owner)
    top_n = owner.top_n or len(call.nodes)  # the event asks for an int
    payload: dict[str, Any] = {
        EventPayload.NODES: call.nodes,
        EventPayload.MODEL_NAME: name,
        EventPayload.QUERY_STR: call.query,
        EventPayload.TOP_K: top_n,
    }
    dispatcher.event(
        ReRankStartEvent(query=call.query, nodes=call.nodes, top_n=top_n, model_name=name)
    )
    try:
        with owner.callback_manager.event(CBEventType.RERANKING, payload=payload) as event:
            yield
            event.on_end(payload={EventPayload.NODES: call.output})
    finally:
        dispatcher.event(ReRankEndEvent(nodes=call.output))


def _model_name(owner: CrossEncoderPostprocessor) -> str:
    ready = {} if owner.reranker is None else owner.reranker.info()
    return str(ready.get("model", owner.model))
