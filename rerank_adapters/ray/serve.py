"""A server by Ray Serve: `serve run rerank_adapters.ray.serve:app model=... max_length=512`.

    POST /v1/rerank, /v2/rerank   as Cohere and Jina have it
    POST /rerank, GET /info       as text-embeddings-inference has it
    GET  /health, /metrics        of the replica that answers

The engine queues, batches, isolates and cancels; Serve has replicas, routes and restarts.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, get_args, get_type_hints

from ..config import RerankerConfig
from ..errors import ConfigError, InputError, MissingDependencyError, OverloadedError, RerankError
from ..ranking import Ranking
from ..sharing import acquire
from .actors import travelling
from .bodies import Asked, Dialect, Limits, answer, failure, metrics, read

try:
    from ray import serve
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse, Response
except ImportError as error:
    raise MissingDependencyError(error.name or "ray", "ray") from error

__all__ = ["Limits", "Server", "app"]

logger = logging.getLogger(__name__)

ROUTES: dict[str, Dialect] = {"/v1/rerank": "named", "/v2/rerank": "named", "/rerank": "texts"}

MAX_QUEUE_PAIRS = 20_000
"""Pairs that wait at once where nobody said it; beyond them a request is answered with 429."""

MAX_ONGOING = 4096
"""Requests in one replica at once: more than the engine's queue takes, which is what refuses."""


class Server:
    """One replica: one loaded model, asked for its scores or, by /rerank, for its raw outputs.

    `app` makes a deployment of it; where you write your own:

    >>> from rerank_adapters import RerankerConfig
    >>> mine = serve.deployment(Server).options(name="mine", num_replicas=2)
    >>> mine.bind(RerankerConfig(), Limits(documents=100))  # doctest: +ELLIPSIS
    <ray.serve.deployment.Application object at ...>
    """

    def __init__(self, config: RerankerConfig, limits: Limits) -> None:
        self._limits = limits
        self._leases = {"model": acquire(config), "raw": acquire(raw(config))}
        self._leases["model"].get()

    async def __call__(self, request: Request) -> Response:
        """The answer to any request; an error is its own caller's alone."""
        path = request.url.path
        if request.method == "POST" and path in ROUTES:
            return await self._rerank(request, ROUTES[path])
        if request.method == "GET" and path in ("/health", "/metrics", "/info"):
            return await self._page(path)
        return _json({"message": f"no {request.method} {path} here"}, 404)

    async def check_health(self) -> None:
        """Ray asks now and then; a replica that raises is started again."""
        await self._leases["model"].aget()

    async def _page(self, path: str) -> Response:
        ranker = await self._leases["model"].aget()
        if path == "/health":
            return _json({"status": "ok"})
        if path == "/info":
            return _json(
                {
                    "model_id": ranker.info().model,
                    "model_type": {"reranker": {}},
                    "max_input_length": ranker.max_length,
                    "max_client_batch_size": self._limits.documents,
                }
            )
        loaded = {name: it.loaded for name, it in self._leases.items()}
        stats = {name: it.stats() for name, it in loaded.items() if it is not None}
        return PlainTextResponse(metrics(stats, _replica()), media_type="text/plain; version=0.0.4")

    async def _rerank(self, request: Request, dialect: Dialect) -> Response:
        try:
            content = await self._body(request)
            if content is None:
                most = self._limits.body_bytes
                error = InputError(f"the body must be at most {most} bytes")
                return _json(failure(error, dialect)[1], 413)
            asked = read(content, dialect, self._limits)
            ranking, model = await self._ranked(asked)
        except Exception as error:  # noqa: BLE001  # each becomes its caller's answer
            return _refusal(error, dialect)
        return _json(answer(asked, ranking, model))

    async def _body(self, request: Request) -> bytes | None:
        """The body, or None where it is too long; it is read no further than that."""
        size, parts = 0, []
        async for part in request.stream():
            size += len(part)
            if size > self._limits.body_bytes:
                return None
            parts.append(part)
        return b"".join(parts)

    async def _ranked(self, asked: Asked) -> tuple[Ranking, str]:
        """Cancelled where the client hangs up: Serve cancels this task, and the engine drops it."""
        ranker = await self._leases["raw" if asked.raw else "model"].aget()
        (ranking,) = await ranker.arerank_many(
            [asked.request], top_n=asked.top_n, timeout=self._limits.seconds
        )
        return ranking, ranker.info().model


def raw(config: RerankerConfig) -> RerankerConfig:
    """*config* for raw outputs: over the same loaded model, without activation or calibration."""
    return replace(config, activation="identity", calibration=None)


def _json(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """In ASCII, so that half a character, echoed, breaks nothing."""
    return Response(json.dumps(body), status, headers, "application/json")


def _refusal(error: Exception, dialect: Dialect) -> Response:
    status, body = failure(error, dialect)
    headers = {}
    if isinstance(error, OverloadedError):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    if not isinstance(error, RerankError | TimeoutError):
        logger.error("a request failed", exc_info=error)
    return _json(body, status, headers)


def _replica() -> str:
    try:
        return str(serve.get_replica_context().replica_tag)
    except Exception:  # noqa: BLE001  # Ray's own says no more where there is none
        return "0"


def app(options: Mapping[str, Any] | None = None) -> serve.Application:
    """The application, from options as `serve run` or a Serve file has them, texts or values.

    They are those of `RerankerConfig`, of `Limits`, and replicas, cpus_per_replica and
    gpus_per_replica. The queue is bounded, and refuses. Raises ConfigError.
    """
    given = {name: _value(name, value) for name, value in (options or {}).items()}
    replicas = given.pop("replicas", 1)
    cpus, gpus = given.pop("cpus_per_replica", 1), given.pop("gpus_per_replica", 0)
    limits = {it.name: given.pop(it.name) for it in fields(Limits) if it.name in given}
    unknown = sorted(set(given) - {it.name for it in fields(RerankerConfig)})
    if unknown:
        raise ConfigError(f"options must be known: got {', '.join(unknown)}")
    config = RerankerConfig(**{"max_queue_pairs": MAX_QUEUE_PAIRS, "when_full": "error", **given})
    deployed = serve.deployment(Server).options(
        name="reranker",
        num_replicas=replicas,
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
        max_ongoing_requests=MAX_ONGOING,
    )
    return deployed.bind(travelling(config, cpus, gpus), Limits(**limits))


def _value(name: str, value: Any) -> Any:
    """What a text on the command line means: a number, true, null or a mapping, else itself."""
    hint = get_type_hints(RerankerConfig).get(name)
    if not isinstance(value, str) or (name != "label" and str in (hint, *get_args(hint))):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value
