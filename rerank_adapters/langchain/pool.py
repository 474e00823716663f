"""A batch of calls as one pool of pairs; a call that cannot be answered fails alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from langchain_core.documents import Document
from langchain_core.runnables import RunnableConfig

from ..errors import InputError
from ..reranker import Request, Reranker
from ..values import Ranking
from .settings import SETTINGS, Job, Settings
from .tracing import Outcome

Output = TypeVar("Output")
Ranked = Ranking | Exception

LCEL_FORM = "RunnableParallel(documents=retriever, query=RunnablePassthrough()) | compressor"


class Call:
    """One input of a batch: a Job, or the error that kept it from becoming one."""

    def __init__(
        self,
        given: object,
        config: RunnableConfig,
        settings: Settings,
        overrides: Mapping[str, Any],
    ) -> None:
        self.config = config
        self.query = ""
        try:
            query, documents = _parts(given)
            self.query = query if isinstance(query, str) else ""
            self.job: Job | Exception = Job(
                query, documents, settings.override(_configurable(config), overrides)
            )
        except Exception as error:  # noqa: BLE001 (it may be text_fn's own; it is this input's outcome)
            self.job = error

    @property
    def facts(self) -> dict[str, int]:
        """How many documents came in, where that is known."""
        return {"n_in": self.job.n_in} if isinstance(self.job, Job) else {}


def requests(calls: Sequence[Call]) -> list[Request]:
    """What there is to score: (query, texts) of each call that has any."""
    return [(call.job.query, call.job.texts) for call in calls if _scored(call.job)]  # type: ignore[union-attr]  # _scored says so


def outcomes(calls: Sequence[Call], rankings: Sequence[Ranked]) -> list[Outcome]:
    """Each call's documents or error; *rankings* are those of `requests(calls)`, in order."""
    rest = iter(rankings)
    return [_outcome(call.job, next(rest) if _scored(call.job) else Ranking([])) for call in calls]


def rank(ranker: Reranker, pool: Sequence[Request]) -> list[Ranked]:
    """One ranking or error per request, all scored as one pool."""
    try:
        return list(ranker.rerank_many(pool))
    except Exception as error:  # noqa: BLE001 (it is the outcome of what caused it)
        if len(pool) == 1:
            return [error]
    return [rank(ranker, [request])[0] for request in pool]


async def arank(ranker: Reranker, pool: Sequence[Request]) -> list[Ranked]:
    """`rank`, awaited."""
    try:
        return list(await ranker.arerank_many(pool))
    except Exception as error:  # noqa: BLE001 (it is the outcome of what caused it)
        if len(pool) == 1:
            return [error]
    return [(await arank(ranker, [request]))[0] for request in pool]


def deliver(results: Sequence[Output | Exception], *, return_exceptions: bool) -> list[Any]:
    """*results*; the first error among them is raised unless errors are to be returned."""
    for result in results:
        if isinstance(result, Exception) and not return_exceptions:
            raise result
    return list(results)


def _parts(given: object) -> tuple[Any, Any]:
    if isinstance(given, Mapping) and {"query", "documents"} <= given.keys():
        return given["query"], given["documents"]
    raise InputError(
        'input must be {"query": str, "documents": [Document, ...]}, as it comes from '
        f"`{LCEL_FORM}`: got {given!r:.80}"
    )


def _configurable(config: RunnableConfig) -> dict[str, Any]:
    """The settings among config["configurable"]; what else is there belongs to others."""
    given = config.get("configurable") or {}
    return {name: given[name] for name in SETTINGS if name in given}


def _scored(job: Job | Exception) -> bool:
    return isinstance(job, Job) and bool(job.texts)


def _outcome(job: Job | Exception, ranking: Ranked) -> list[Document] | Exception:
    if isinstance(job, Exception):
        return job
    if isinstance(ranking, Exception):
        return ranking
    try:
        return job.answer(ranking)
    except Exception as error:  # noqa: BLE001 (a Document subclass may refuse to be copied)
        return error
