"""What a caller may hand over: each check raises InputError with the argument, the rule, the value.

A generator is refused: read here to be checked, it would be empty when it is read to be scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from numbers import Real
from time import monotonic
from typing import Any, get_args

import numpy as np

from .errors import InputError
from .hints import foreign_document
from .protocols import Call, Pair, Requests, RerankRequest
from .ranking import OnEmptyText, check_no_blank, check_selection

__all__ = [
    "check_selection",
    "check_timeout",
    "checked_documents",
    "checked_pairs",
    "checked_requests",
    "deadline_of",
    "gathered",
]


def check_timeout(timeout: float | None) -> float | None:
    """*timeout* itself; InputError where it is no number of seconds above 0."""
    number = isinstance(timeout, Real) and not isinstance(timeout, bool)
    if timeout is not None and not (number and timeout > 0):
        raise InputError(f"timeout must be above 0 seconds, or None for no limit: got {timeout!r}")
    return timeout


def deadline_of(timeout: float | None) -> float | None:
    """`time.monotonic()` when *timeout*, in seconds from now, is over. Raises InputError."""
    seconds = check_timeout(timeout)
    return None if seconds is None else monotonic() + seconds


def checked_requests(
    requests: Requests,
    *,
    on_empty_text: OnEmptyText = "score",
    needs_scores: str = "",
    return_exceptions: bool = False,
) -> list[RerankRequest | InputError]:
    """Each as a RerankRequest; with *return_exceptions* an InputError where one is none.

    *on_empty_text* is the rule of those that have none of their own; *needs_scores* names what
    cannot do without their retrieval_scores.
    """
    _check_sequence(requests, "requests", "(query, documents) pairs")
    checked: list[RerankRequest | InputError] = []
    for index, request in enumerate(requests):
        try:
            where = f"requests[{index}]: " if len(requests) > 1 else ""
            asked = _checked_request(request, index, where, on_empty_text)
            if needs_scores and asked.retrieval_scores is None and asked.documents:
                raise InputError(
                    f"{where}retrieval_scores must be given with {needs_scores}: got None; a "
                    "RerankRequest has them, (document, score) tuples or metadata, named by "
                    "retrieval_score_key, in LangChain, and NodeWithScore.score in LlamaIndex"
                )
            checked.append(asked)
        except InputError as error:
            if not return_exceptions:
                raise
            checked.append(error)
    return checked


def checked_documents(documents: Sequence[str], name: str = "documents") -> Sequence[str]:
    """*documents*, all of them str; *name* is what errors call them.

    A NumPy array or pandas Series of str is a sequence of them too.
    """
    documents = _listed(documents)
    _check_sequence(documents, name, "str")
    if set(map(type, documents)) <= {str}:
        return documents
    for index, document in enumerate(documents):
        if not isinstance(document, str):
            cure = foreign_document(document)
            raise InputError(f"{name}[{index}] must be a str: got {document!r:.80}{cure}")
    return documents


def checked_pairs(pairs: Sequence[Pair]) -> list[Pair]:
    """*pairs* as tuples of a query that is not blank and a document."""
    _check_sequence(pairs, "pairs", "(query, document) pairs")
    if len(pairs) == 2 and all(isinstance(text, str) for text in pairs):
        raise InputError(f"pairs must be a list of pairs: got one pair, {pairs!r:.80}: pass [pair]")
    for index, pair in enumerate(pairs):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise InputError(f"pairs[{index}] must be a (query, document) pair: got {pair!r:.80}")
        _check_query(pair[0], f"pairs[{index}][0]")
        if not isinstance(pair[1], str):
            raise InputError(f"pairs[{index}][1] must be a str: got {pair[1]!r:.80}")
    return [(query, document) for query, document in pairs]


def gathered(requests: Sequence[RerankRequest], deadline: float | None) -> tuple[list[Pair], Call]:
    """The pairs of all *requests*, one after the other, and what travels beside them."""
    pairs = [(request.query, document) for request in requests for document in request.documents]
    sizes = [len(request.documents) for request in requests]
    prompts: list[str | None] | None = None
    keys: list[str | None] | None = None
    if any(request.prompt is not None for request in requests):
        prompts = [request.prompt for request in requests for _ in request.documents]
    if any(request.ids is not None for request in requests):
        keys = [key for it in requests for key in (it.ids or [None] * len(it.documents))]
    groups = np.cumsum([0, *sizes], dtype=np.int64)
    return pairs, Call(deadline=deadline, prompts=prompts, keys=keys, groups=groups)


def _checked_request(
    request: object, index: int, where: str, on_empty_text: OnEmptyText
) -> RerankRequest:
    if not isinstance(request, RerankRequest):
        if not isinstance(request, tuple | list) or len(request) != 2:
            raise InputError(
                f"requests[{index}] must be a (query, documents) pair: got {request!r:.80}"
            )
        request = RerankRequest(*request)
    _check_query(request.query, f"{where}query")
    documents = checked_documents(request.documents, f"{where}documents")
    if request.prompt is not None and not isinstance(request.prompt, str):
        raise InputError(f"{where}prompt must be a str or None: got {request.prompt!r:.80}")
    for name in ("ids", "retrieval_scores"):
        values = getattr(request, name)
        if values is not None and len(values) != len(documents):
            raise InputError(
                f"{where}{name} must hold one value per document: got {len(values)} for "
                f"{len(documents)} documents"
            )
    for at, key in enumerate(request.ids or ()):
        if not (key is None or isinstance(key, str)):
            raise InputError(f"{where}ids[{at}] must be a str or None: got {key!r:.80}")
    _check_scores(request.retrieval_scores, f"{where}retrieval_scores")
    rule = on_empty_text if request.on_empty_text is None else request.on_empty_text
    if rule not in get_args(OnEmptyText):
        words = ", ".join(f'"{word}"' for word in get_args(OnEmptyText))
        raise InputError(f"{where}on_empty_text must be one of {words}: got {rule!r:.80}")
    if rule == "error":
        check_no_blank(documents, f"{where}documents")
    return replace(request, documents=documents, on_empty_text=rule)


def _check_scores(scores: Sequence[float | None] | None, name: str) -> None:
    for index, score in enumerate(() if scores is None else scores):
        if score is not None and (not isinstance(score, Real) or isinstance(score, bool)):
            raise InputError(f"{name}[{index}] must be a number or None: got {score!r:.80}")


def _check_query(query: object, name: str) -> None:
    if not isinstance(query, str):
        raise InputError(f"{name} must be a str: got {query!r:.80}")
    if not query.strip():
        raise InputError(f"{name} must not be blank: got {query!r:.80}")


def _listed(values: Any) -> Any:
    """A one-dimensional array or column as a list; anything else as it is."""
    columnar = getattr(values, "ndim", None) == 1 and hasattr(values, "tolist")
    return values.tolist() if columnar else values


def _check_sequence(value: object, name: str, of: str) -> None:
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise InputError(f"{name} must be a sequence of {of}: got {value!r:.80}: pass a list")
