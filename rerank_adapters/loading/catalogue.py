"""Known hub ids whose files do not say how a pair is written: what their cards compute.

An entry counts for its id and architecture together. A folder of one's own is never taken for one
by its shape: it needs the arguments, or the manifest of an export.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..checkpoints import ABSENT, Checkpoint
from ..config import RerankerConfig
from ..families import Frame

_QWEN3 = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and "
    'the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}"
    "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
_MXBAI = (
    "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    "<|im_end|>\n<|im_start|>user\n{|}query: {query}{|}\n{|}document: {document}{|}\n{|}You are a "
    "search relevance expert who evaluates how well documents match search queries. For each "
    "query-document pair, carefully analyze the semantic relationship between them, then provide "
    "your binary relevance judgment (0 for not relevant, 1 for relevant).\nRelevance:{|}<|im_end|>"
    "\n<|im_start|>assistant\n"
)
_SEARCH = "Given a web search query, retrieve relevant passages that answer the query"


@dataclass(frozen=True, slots=True)
class Entry:
    """What the cards of `ids` compute, for checkpoints of this `architecture`."""

    ids: tuple[str, ...]
    architecture: str
    frame: Frame


CATALOGUE = (
    Entry(
        ("BAAI/bge-reranker-v2-gemma",),
        "GemmaForCausalLM",
        Frame(
            template="A: {query}{|}\n{|}B: {document}{|}\n{|}{instruction}",
            answers=("Yes",),
            instruction="Given a query A and a passage B, determine whether the passage contains "
            "an answer to the query by providing a prediction of either 'Yes' or 'No'.",
            activation="identity",
        ),
    ),
    Entry(
        ("mixedbread-ai/mxbai-rerank-base-v2", "mixedbread-ai/mxbai-rerank-large-v2"),
        "Qwen2ForCausalLM",
        Frame(template=_MXBAI, answers=("1", "0"), activation="identity"),
    ),
    Entry(
        tuple(f"Qwen/Qwen3-Reranker-{size}" for size in ("0.6B", "4B", "8B")),
        "Qwen3ForCausalLM",
        Frame(template=_QWEN3, answers=("yes", "no"), instruction=_SEARCH),
    ),
    Entry(
        tuple(f"tomaarsen/Qwen3-Reranker-{size}-seq-cls" for size in ("0.6B", "4B", "8B")),
        "Qwen3ForSequenceClassification",
        Frame(template=_QWEN3, instruction=_SEARCH),
    ),
    Entry(
        (
            *("zeroentropy/zerank-1", "zeroentropy/zerank-1-small"),
            *("zeroentropy/zerank-1-reranker", "zeroentropy/zerank-1-small-reranker"),
        ),
        "Qwen3ForCausalLM",
        Frame(
            template="<|im_start|>system\n{query}<|im_end|>\n<|im_start|>user\n{document}<|im_end|>"
            "\n<|im_start|>assistant\n",
            strip=True,
            answers=("Yes",),
            scale=0.2,
        ),
    ),
    Entry(
        ("nvidia/llama-nemotron-rerank-1b-v2",),
        "LlamaBidirectionalForSequenceClassification",
        Frame(template="question:{query} \n \n passage:{document}", activation="identity"),
    ),
)

KNOWN: Mapping[str, Entry] = {name: entry for entry in CATALOGUE for name in entry.ids}


def frame_of(config: RerankerConfig, checkpoint: Checkpoint) -> Frame:
    """Return how pairs of *checkpoint* are framed: by arguments, else by the catalogue.

    A checkpoint whose own files say it, a CrossEncoder's modules or a manifest, needs no entry.
    """
    entry, stated = KNOWN.get(config.model), checkpoint.architectures[:1]
    own = bool(checkpoint.modules) or checkpoint.manifest.template is not ABSENT
    known = Frame()
    if entry is not None and not own and stated == (entry.architecture,):
        known = entry.frame
    if config.template is not None:  # another frame is not the card's, but for its answers
        known = replace(known, template=config.template, strip=False)
    return replace(
        known,
        answers=config.answers or known.answers,
        label=known.label if config.label is None else config.label,
        hint=_hint(stated),
    )


def _hint(stated: tuple[str, ...]) -> str:
    alike = [entry for entry in CATALOGUE if (entry.architecture,) == stated]
    if not alike:
        return ""
    example = alike[0].frame
    names = " and ".join(entry.ids[0] for entry in alike)
    return (
        f"; it resembles {names} by its architecture, of which the first is loaded with template="
        f"{example.template!r}, answers={example.answers!r}, prompt={example.instruction!r}"
    )
