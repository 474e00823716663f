"""How each server is asked and how it answers: the bodies, the lists, the keys of a score.

Sources: text-embeddings-inference 1.9, vLLM 0.33, Infinity 0.0.78, Cohere's API v2, Jina's v1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

Rows = Callable[[Any], Any]
Body = Callable[[str, Sequence[str], str | None], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Dialect:
    """One server's way.

    path       behind the url
    documents  the most in one request, where the server does not say it
    raw        whether it is asked for raw outputs; else its scores are its own, from 0 to 1
    body       query, documents and model as it takes them: all answers, long texts cut
    rows       the list of results in its answer, which most call "results"
    score      what a result calls its score
    blank      whether an empty document is scored as a document
    """

    path: str
    documents: int
    raw: bool
    body: Body
    rows: Rows = itemgetter("results")
    score: str = "relevance_score"
    blank: bool = True


def _named(body: dict[str, Any], model: str | None) -> dict[str, Any]:
    return body if model is None else {"model": model, **body}


DIALECTS = {
    "tei": Dialect(
        path="/rerank",
        documents=32,
        raw=True,
        body=lambda query, documents, _: {
            "query": query,
            "texts": list(documents),
            "truncate": True,
            "raw_scores": True,
        },
        rows=lambda answer: answer,
        score="score",
    ),
    "vllm": Dialect(
        path="/v1/rerank",
        documents=256,
        raw=True,
        body=lambda query, documents, model: _named(
            {
                "query": query,
                "documents": list(documents),
                "truncate_prompt_tokens": -1,
                "use_activation": False,
            },
            model,
        ),
        blank=False,
    ),
    "infinity": Dialect(
        path="/rerank",
        documents=2048,
        raw=True,
        body=lambda query, documents, model: _named(
            {"query": query, "documents": list(documents), "raw_scores": True}, model
        ),
    ),
    "cohere": Dialect(
        path="/v2/rerank",
        documents=1000,
        raw=False,
        body=lambda query, documents, model: _named(
            {"query": query, "documents": list(documents), "top_n": len(documents)}, model
        ),
    ),
    "jina": Dialect(
        path="/v1/rerank",
        documents=1000,
        raw=False,
        body=lambda query, documents, model: _named(
            {
                "query": query,
                "documents": list(documents),
                "top_n": len(documents),
                "return_documents": False,
            },
            model,
        ),
    ),
}

HOSTS = {"api.cohere.com": "cohere", "api.cohere.ai": "cohere", "api.jina.ai": "jina"}
"""Servers whose dialect their name says."""


def told_by(page: Any) -> str | None:
    """The dialect that a public page gives away: TEI's /info, or a list of models; else None."""
    if not isinstance(page, dict):
        return None
    if "max_client_batch_size" in page:
        return "tei"
    listed = page.get("data")
    first = listed[0] if isinstance(listed, list) and listed else None
    owner = first.get("owned_by") if isinstance(first, dict) else None
    return owner if owner in ("vllm", "infinity") else None
