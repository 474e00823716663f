"""One server over HTTP: sent again where that may help, capped, and never led elsewhere."""

from __future__ import annotations

import asyncio
import json
import math
import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from time import monotonic
from typing import Any
from urllib.parse import urljoin

from ...errors import (
    BackendError,
    ConfigError,
    InputError,
    MissingDependencyError,
    OverloadedError,
    RerankError,
)
from ...remote import RemoteConfig

try:
    import httpx
except ImportError as error:
    raise MissingDependencyError("httpx", "remote") from error

AGAIN = (429, 502, 503, 504)
"""Answers after which the same request may do better."""

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 8.0
"""Seconds before the second attempt, at most, and before any later one: each doubles."""

REDIRECTS = (301, 302, 307, 308)
MOST_REDIRECTS = 3
PAGE_BYTES = 2**20
CONNECT_SECONDS = 10.0


class TooMuchError(InputError):
    """The server takes fewer documents at once, or shorter ones."""


class Transport:
    """Asks one server; of one event loop, as its client is."""

    def __init__(self, remote: RemoteConfig) -> None:
        self._remote = remote
        self._base = httpx.URL(remote.url.rstrip("/"))
        self._client = httpx.AsyncClient(
            trust_env=remote.trust_env,
            follow_redirects=False,
            timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),  # the deadline is the call's own
            headers={"accept-encoding": "identity"},  # so that a cap on bytes is one on memory
        )

    async def page(self, path: str) -> Any:
        """A public page, asked for once and without the key; None where there is none."""
        try:
            async with self._client.stream("GET", f"{self._base}{path}") as answer:
                content = await _capped(answer, PAGE_BYTES)
            return json.loads(content) if answer.status_code == 200 else None
        except (httpx.HTTPError, ValueError, RecursionError, BackendError):
            return None

    async def ask(self, path: str, body: dict[str, Any], deadline: float) -> Any:
        """The answer to *body* as JSON. *deadline*: a `time.monotonic()`.

        Raises TooMuchError, InputError, ConfigError, OverloadedError, BackendError.
        """
        content = json.dumps(body, ensure_ascii=False).encode()
        url = str(self._base) if self._base.path.endswith(path) else f"{self._base}{path}"
        for attempt in range(self._remote.retries + 1):
            failure, asked = await self._attempt(url, content)
            if failure is None:
                return asked
            pause = FIRST_PAUSE * 2**attempt * random.uniform(0.5, 1.0)
            pause = min(LONGEST_PAUSE, pause) if asked is None else asked
            if attempt == self._remote.retries or monotonic() + pause >= deadline:
                raise failure
            await asyncio.sleep(pause)
        raise AssertionError  # the last attempt raises

    async def close(self) -> None:
        """Close its connections."""
        await self._client.aclose()

    async def _attempt(self, url: str, content: bytes) -> tuple[RerankError | None, Any]:
        """(None, the answer), or what may go better next time and the pause that was asked for."""
        try:
            status, headers, answer = await self._send(url, content)
        except httpx.TransportError as error:
            said = self._clean(str(error)) or type(error).__name__
            return BackendError(f"no answer from {self._remote.host}: {said}"), None
        if 200 <= status < 300:
            return None, _parsed(answer, self._remote.host)
        failure = self._failure(status, answer)
        if status not in AGAIN:
            raise failure
        return failure, _retry_after(headers.get("retry-after"))

    async def _send(self, url: str, content: bytes) -> tuple[int, httpx.Headers, bytes]:
        headers = {"content-type": "application/json"}
        if (key := self._remote.secret()) is not None:
            headers["authorization"] = f"Bearer {key}"
        for _ in range(MOST_REDIRECTS + 1):
            async with self._client.stream("POST", url, content=content, headers=headers) as answer:
                if answer.status_code not in REDIRECTS:
                    read = await _capped(answer, self._remote.max_answer_bytes)
                    return answer.status_code, answer.headers, read
            url = self._led_to(url, answer.headers.get("location", ""))
        raise BackendError(f"{self._remote.host} redirects for ever")

    def _led_to(self, url: str, location: str) -> str:
        there, here = httpx.URL(urljoin(url, location)), httpx.URL(url)
        if (there.scheme, there.netloc) != (here.scheme, here.netloc):
            raise BackendError(
                f"{self._remote.host} redirects to another server, {there.host!r:.80}, which gets "
                "neither texts nor key: name it as url="
            )
        return str(there)

    def _failure(self, status: int, content: bytes) -> RerankError:
        host = self._remote.host
        said = f"{host} answered {status}: {self._clean(_said(content))}"
        if status in (401, 403):
            return ConfigError(f"key must open {host}: it {said[len(host) + 1 :]}")
        if status == 404:
            return ConfigError(f"url, dialect and model must be the server's: {said}")
        if status in (413, 422):
            return TooMuchError(f"documents must suit the server: {said}")
        if status == 400:
            return InputError(f"documents must suit the server: {said}")
        if status in (429, 503):
            return OverloadedError(said)
        return BackendError(said)

    def _clean(self, text: str) -> str:
        key = self._remote.secret()
        return (text.replace(key, "***") if key else text)[:200]


async def _capped(answer: httpx.Response, most: int) -> bytes:
    """The body of *answer*; BackendError as soon as it is longer than *most* bytes."""
    if answer.headers.get("content-encoding", "identity") != "identity":
        raise BackendError("the server must answer uncompressed, as it was asked to")
    parts, size = [], 0
    async for part in answer.aiter_raw():
        size += len(part)
        if size > most:
            raise BackendError(f"max_answer_bytes is {most}, and the server's answer is longer")
        parts.append(part)
    return b"".join(parts)


def _parsed(content: bytes, host: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BackendError(f"{host} must answer in JSON: {content[:80]!r}") from error


def _said(content: bytes) -> str:
    """The message in an answer, by any of the names that servers have for it."""
    text = content[:2000].decode("utf-8", "replace")
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return text
    for name in ("error", "detail", "message"):
        while isinstance(found, dict) and name in found:
            found = found[name]
    if isinstance(found, list) and found and isinstance(found[0], dict):
        found = found[0].get("msg", "")
    return found if isinstance(found, str) else text


def _retry_after(value: str | None) -> float | None:
    """Seconds to wait, by a number or a date; None where nothing plain is said."""
    if value is None:
        return None
    try:
        return max(0.0, float(int(value)))
    except OverflowError:
        return math.inf
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(value)
        return max(0.0, (when - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None
