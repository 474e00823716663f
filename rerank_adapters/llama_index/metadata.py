"""Where a node's metadata stand in the text that is scored: never in the passage's way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from llama_index.core.schema import BaseNode

if TYPE_CHECKING:
    from .call import Call

RETRIEVAL_SCORE = "retrieval_score"
"""Where `keep_retrieval_score` writes, as LlamaIndex's own rerankers do."""

METADATA_SHARE = 0.25
"""Metadata of more tokens than this share of what the query leaves of `max_length` go after the
body: truncation cuts the end, so it costs metadata and never the passage."""

AnyNode = TypeVar("AnyNode", bound=BaseNode)


def texts_to_count(calls: Sequence[Call], max_length: int) -> list[str]:
    """Distinct texts that `move_long` needs token counts of: none where all metadata are short."""
    texts: dict[str, None] = {}
    for call in calls:
        # A token is at least a byte.
        room = _room(max_length, _bytes(call.query))
        long = [text for text in call.metadata if _bytes(text) > room]
        texts |= dict.fromkeys([*long, call.query] if long else [])
    return list(texts)


def move_long(calls: Sequence[Call], tokens: Mapping[str, int], max_length: int) -> None:
    """Say which metadata of each call go after the body; texts not in *tokens* are short."""
    for call in calls:
        room = _room(max_length, tokens.get(call.query, 0))
        call.after_body = {text for text in call.metadata if tokens.get(text, 0) > room}


def with_retrieval_score(node: AnyNode, score: float | None) -> AnyNode:
    """A copy that carries *score* in its metadata, out of sight of embeddings and LLMs."""
    kept = None if score is None else float(score)  # an earlier step may have left a NumPy number
    return node.model_copy(
        update={
            "metadata": {**node.metadata, RETRIEVAL_SCORE: kept},
            "excluded_embed_metadata_keys": _with_key(node.excluded_embed_metadata_keys),
            "excluded_llm_metadata_keys": _with_key(node.excluded_llm_metadata_keys),
        }
    )


def without_retrieval_score(node: AnyNode) -> AnyNode:
    """A kept retrieval score is bookkeeping: it must not change the text that is scored."""
    if RETRIEVAL_SCORE not in node.metadata:
        return node
    rest = {key: value for key, value in node.metadata.items() if key != RETRIEVAL_SCORE}
    return node.model_copy(update={"metadata": rest})


def _room(max_length: int, query_tokens: int) -> int:
    return max(0, int((max_length - query_tokens) * METADATA_SHARE))


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "replace"))


def _with_key(keys: list[str]) -> list[str]:
    return keys if RETRIEVAL_SCORE in keys else [*keys, RETRIEVAL_SCORE]
