"""The text of a node that is scored; long metadata stand where they are not in its way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from llama_index.core.schema import DEFAULT_TEXT_NODE_TMPL, BaseNode, MetadataMode

RETRIEVAL_SCORE = "retrieval_score"
"""Where `keep_retrieval_score` writes, as LlamaIndex's own rerankers do."""

METADATA_SHARE = 0.25
"""Metadata of more tokens than this share of what the query leaves of `max_length` go after the
body: truncation cuts the end, so it costs metadata and never the passage."""

AnyNode = TypeVar("AnyNode", bound=BaseNode)


@dataclass(frozen=True, slots=True)
class NodeText:
    """What a node shows a model. *metadata*, where they may stand after the *body*, else ""."""

    shown: str
    body: str = ""
    metadata: str = ""

    @property
    def body_first(self) -> str:
        """The text with its metadata after the body."""
        return f"{self.body}\n\n{self.metadata}"

    @classmethod
    def of(cls, node: BaseNode, mode: MetadataMode) -> NodeText:
        """*node*'s text under *mode*; "" where it has no body, whatever its metadata say.

        A template or a `get_content` of the node's own decides what is shown and where: metadata
        may move only where LlamaIndex's own template has put them in front.
        """
        body = node.get_content(metadata_mode=MetadataMode.NONE)
        shown = node.get_content(metadata_mode=mode)
        if not body.strip() or not shown.strip():
            return cls("")
        metadata = node.get_metadata_str(mode).strip()
        usual = DEFAULT_TEXT_NODE_TMPL.format(metadata_str=metadata, content=body).strip()
        return cls(shown, body, metadata) if metadata and shown == usual else cls(shown)


def texts_to_count(asked: Iterable[tuple[str, Sequence[str]]], max_length: int) -> list[str]:
    """Distinct texts that `long_metadata` needs token counts of, for each (query, metadata).

    None where all metadata are short.
    """
    texts: dict[str, None] = {}
    for query, metadata in asked:
        # A token is at least a byte.
        room = _room(max_length, _bytes(query))
        long = [text for text in metadata if _bytes(text) > room]
        texts |= dict.fromkeys([*long, query] if long else [])
    return list(texts)


def long_metadata(
    query: str, metadata: Sequence[str], tokens: Mapping[str, int], max_length: int
) -> frozenset[str]:
    """Which of *metadata* go after the body; those not in *tokens*, text → count, are short."""
    room = _room(max_length, tokens.get(query, 0))
    return frozenset(text for text in metadata if tokens.get(text, 0) > room)


def with_retrieval_score(node: AnyNode, score: float | None) -> AnyNode:
    """A copy that carries *score* in its metadata, out of sight of embeddings and LLMs."""
    kept = None if score is None else float(score)  # an earlier step may have left a NumPy number
    return with_hidden(node, RETRIEVAL_SCORE, kept)


def with_hidden(node: AnyNode, key: str, value: object) -> AnyNode:
    """A copy that carries *value* in its metadata, out of sight of embeddings and LLMs."""
    return node.model_copy(
        update={
            "metadata": {**node.metadata, key: value},
            "excluded_embed_metadata_keys": _with_key(node.excluded_embed_metadata_keys, key),
            "excluded_llm_metadata_keys": _with_key(node.excluded_llm_metadata_keys, key),
        }
    )


def cut_to(node: AnyNode, body: str, span: tuple[int, int]) -> AnyNode:
    """A copy of the same id whose text is *body* within *span*; its place in its file moves along.

    A kind of node whose text cannot be set stays whole.
    """
    copied = node.model_copy()
    if not hasattr(copied, "set_content"):
        return node
    copied.set_content(body[slice(*span)])
    first = getattr(node, "start_char_idx", None)
    if isinstance(first, int):
        moved = {"start_char_idx": first + span[0], "end_char_idx": first + span[1]}
        copied = copied.model_copy(update=moved)
    return copied


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


def _with_key(keys: list[str], key: str) -> list[str]:
    return keys if key in keys else [*keys, key]
