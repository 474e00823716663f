"""What clients send and are sent: Cohere's and Jina's dialect, and text-embeddings-inference's.

Sources: Cohere's API v2, Jina's v1, text-embeddings-inference 1.9.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import BackendError, ClosedError, InputError, OverloadedError
from ..protocols import RerankRequest
from ..ranking import Ranking

Dialect = Literal["named", "texts"]
"""Cohere's and Jina's, whose results have names, or text-embeddings-inference's, of `texts`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one request may be at most.

    body_bytes  of its JSON; documents; characters of its query and of each document
    seconds     until it is given up

    >>> Limits(documents=100).characters
    500000
    """

    body_bytes: int = 8 * 2**20
    documents: int = 1000
    characters: int = 500_000
    seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, read: what the engine is asked, and how the answer is to look."""

    request: RerankRequest
    top_n: int | None
    raw: bool
    echo: bool
    dialect: Dialect


def read(content: bytes, dialect: Dialect, limits: Limits) -> Asked:
    """The request in *content*. InputError names the field, in the dialect's own word."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        raise InputError("the body must be JSON") from None
    if not isinstance(body, dict):
        raise InputError(f"the body must be a JSON object: got {body!r:.80}")
    named = dialect == "named"
    field = "documents" if named else "texts"
    documents = [_text(it) if named else it for it in _list(body, field)]
    query = body.get("query")
    _check_sizes(query, documents, field, limits)
    prompt = body.get("prompt")
    return Asked(
        RerankRequest(
            query,  # type: ignore[arg-type]  # the engine's to judge, as the documents are
            documents,
            prompt,
            on_empty_text=None if named else "score",
        ),
        body.get("top_n") if named else None,
        raw=not named and _flag(body, "raw_scores"),
        echo=_flag(body, "return_documents" if named else "return_text"),
        dialect=dialect,
    )


def _list(body: Mapping[str, Any], field: str) -> list[Any]:
    found = body.get(field)
    if not isinstance(found, list) or not found:
        raise InputError(f"{field} must be a list of at least one text: got {found!r:.80}")
    return found


def _text(document: Any) -> Any:
    """Jina's documents may be objects with a text."""
    return document["text"] if isinstance(document, dict) and "text" in document else document


def _flag(body: Mapping[str, Any], name: str) -> bool:
    found = body.get(name)
    if not isinstance(found, bool | None):
        raise InputError(f"{name} must be true or false: got {found!r:.80}")
    return bool(found)


def _check_sizes(query: Any, documents: list[Any], field: str, limits: Limits) -> None:
    if len(documents) > limits.documents:
        raise InputError(f"{field} must be at most {limits.documents}: got {len(documents)}")
    named = [("query", query), *((f"{field}[{at}]", it) for at, it in enumerate(documents))]
    for name, text in named:
        if isinstance(text, str) and len(text) > limits.characters:
            raise InputError(
                f"{name} must have at most {limits.characters} characters: got {len(text)}"
            )


def answer(asked: Asked, ranking: Ranking, model: str) -> Any:
    """The body of the answer, best first."""
    score = "relevance_score" if asked.dialect == "named" else "score"
    results: list[dict[str, Any]] = []
    for it in ranking:
        row: dict[str, Any] = {"index": it.index, score: float(it.score)}
        if asked.echo:
            text = asked.request.documents[it.index]
            row |= {"document": {"text": text}} if asked.dialect == "named" else {"text": text}
        results.append(row)
    if asked.dialect == "texts":
        return results
    return {"id": str(uuid.uuid4()), "model": model, "results": results}


OF_REQUESTS = (
    *("requests", "wait_seconds", "tokenise_seconds"),
    *("rejected", "cancelled", "timed_out", "failed", "done"),
)
OF_FORWARDS = ("pairs", "batches", "batch_tokens", "forward_seconds", "splits", "retries")
"""What only grows: of the requests for either kind of scores, and of the one engine's passes."""

FAILURES: list[tuple[type[Exception], int, int, str]] = [
    (InputError, 400, 422, "Validation"),
    (OverloadedError, 429, 429, "Overloaded"),
    (TimeoutError, 504, 504, "Backend"),
    (ClosedError, 503, 503, "Unhealthy"),
    (BackendError, 500, 424, "Backend"),
]
"""Each kind of error: its status in Cohere's dialect and in text-embeddings-inference's, its word
there. Clients try again after 429, 503 and 504, and after no other."""


def failure(error: Exception, dialect: Dialect) -> tuple[int, dict[str, str]]:
    """Status and body for *error*; what nobody foresaw is 500, and keeps its words for the log."""
    known = next((it for it in FAILURES if isinstance(error, it[0])), None)
    _, named, texts, word = known or (Exception, 500, 424, "Backend")
    message = str(error) if known else "internal error"
    if dialect == "named":
        return named, {"message": message}
    return texts, {"error": message, "error_type": word}


def metrics(stats: Mapping[str, Mapping[str, Any]], replica: str) -> str:
    """Prometheus' text of what `Reranker.stats()` has, by the replica and what it answers with."""
    lines: list[str] = []
    for name, value in next(iter(stats.values()), {}).items():
        if not isinstance(value, int | float):
            continue
        full = f"rerank_{name}" + ("_total" if name in (*OF_REQUESTS, *OF_FORWARDS) else "")
        lines.append(f"# TYPE {full} {'counter' if full.endswith('_total') else 'gauge'}")
        if name in OF_REQUESTS:
            lines += [
                f'{full}{{replica="{replica}",scores="{word}"}} {it[name]}'
                for word, it in stats.items()
            ]
        else:  # the one engine's
            lines.append(f'{full}{{replica="{replica}"}} {value}')
    return "\n".join([*lines, ""])
