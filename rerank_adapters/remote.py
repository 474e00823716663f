"""A server that scores: what it is asked by, and what is asked of it. The asking is elsewhere."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import InitVar, dataclass, fields
from math import isfinite
from numbers import Real
from typing import Any, Literal, Protocol, get_args
from urllib.parse import urlsplit

from .errors import ConfigError

RemoteDialect = Literal["auto", "tei", "vllm", "infinity", "cohere", "jina"]

NEEDS_MODEL = ("cohere", "jina")
"""Dialects of services that serve several models; their scores are theirs, from 0 to 1."""

_COUNTS = ("documents_per_request", "max_in_flight", "max_answer_bytes")


class SecretText(Protocol):
    """A secret that tells itself when asked, such as pydantic's SecretStr."""

    def get_secret_value(self) -> str:
        """The text."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class RemoteConfig:
    """A rerank server, in place of a model in this process.

    url                    where it listens, with its path prefix if it has one
    dialect                "tei" (text-embeddings-inference), "vllm", "infinity", "cohere" (v2),
                           "jina" (v1); "auto" reads the server's public pages, without the key
    model                  its name there; Cohere and Jina need one
    key                    sent as a bearer token: a str or a SecretStr. Never shown or pickled
    key_variable           an environment variable that holds the key, read when it is sent: it
                           may be pickled and saved
    documents_per_request  None: the server's own limit, as far as it is known
    max_in_flight          requests at once
    retries                of a request that may be sent again: no connection, 429, 502, 503, 504
    timeout                seconds that a call may take in all, where it has no timeout of its own
    max_answer_bytes       of one answer
    trust_env              take proxies and certificates from the environment

    Raises ConfigError: among others for a key that would go over http to another machine.

    >>> RemoteConfig(url="http://localhost:8080", dialect="tei", key="swordfish")
    RemoteConfig(url='http://localhost:8080', dialect='tei')
    """

    url: str
    dialect: RemoteDialect = "auto"
    model: str | None = None
    key: InitVar[str | SecretText | None] = None
    key_variable: str | None = None
    documents_per_request: int | None = None
    max_in_flight: int = 4
    retries: int = 3
    timeout: float = 60.0
    max_answer_bytes: int = 32 * 2**20
    trust_env: bool = False

    def __post_init__(self, key: str | SecretText | None) -> None:
        plain = key if key is None or isinstance(key, str) else _told(key)
        object.__setattr__(self, "_key", _sendable("key", plain or None))
        if self.dialect not in get_args(RemoteDialect):
            words = ", ".join(f'"{word}"' for word in get_args(RemoteDialect))
            raise ConfigError(f"dialect must be one of {words}: got {self.dialect!r:.80}")
        for name in ("model", "key_variable"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value.strip()):
                raise ConfigError(f"{name} must be a str that is not blank: got {value!r:.80}")
        if self.model is None and self.dialect in NEEDS_MODEL:
            raise ConfigError(f'model must be named for dialect "{self.dialect}": got None')
        if "jina-reranker-v3" in (self.model or ""):
            raise ConfigError(
                "model must score each document by itself, and jina-reranker-v3 ranks whole lists: "
                "what a document scores would depend on the others"
            )
        self._check_numbers()
        self._check_url()

    @classmethod
    def of(cls, value: object) -> RemoteConfig | None:
        """*value* as a RemoteConfig: one, a mapping of its fields, or None. Raises ConfigError."""
        if value is None or isinstance(value, cls):
            return value
        known = {field.name for field in fields(cls)} | {"key"}
        if not isinstance(value, Mapping) or "url" not in value or not set(value) <= known:
            shown = list(value) if isinstance(value, Mapping) else type(value).__name__
            raise ConfigError(
                "remote must be RemoteConfig(url=..., ...), a mapping of its fields or None: got "
                f"{shown!r:.120}"
            )
        return cls(**value)

    def secret(self) -> str | None:
        """The key to send, None where there is none. ConfigError where its variable is not set."""
        own: str | None = getattr(self, "_key", None)
        if own is not None or self.key_variable is None:
            return own
        if not (found := os.environ.get(self.key_variable)):
            raise ConfigError(f"key_variable must name a variable that is set: {self.key_variable}")
        return _sendable(self.key_variable, found)

    @property
    def host(self) -> str:
        """Whom it asks, as traces may say it."""
        return urlsplit(self.url).netloc

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `of` reads, those that are not defaults; never the key."""
        return {
            field.name: value
            for field in fields(self)
            if (value := getattr(self, field.name)) != field.default
        }

    def _check_numbers(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            optional = name == "documents_per_request" and value is None
            if not optional and (
                isinstance(value, bool) or not isinstance(value, int) or value < 1
            ):
                raise ConfigError(f"{name} must be an int of at least 1: got {value!r:.80}")
        if isinstance(self.retries, bool) or not isinstance(self.retries, int) or self.retries < 0:
            raise ConfigError(f"retries must be an int of at least 0: got {self.retries!r:.80}")
        seconds = isinstance(self.timeout, Real) and not isinstance(self.timeout, bool)
        if not seconds or not isfinite(self.timeout) or self.timeout <= 0:
            raise ConfigError(f"timeout must be above 0 seconds: got {self.timeout!r:.80}")
        if not isinstance(self.trust_env, bool):
            raise ConfigError(f"trust_env must be True or False: got {self.trust_env!r:.80}")

    def _check_url(self) -> None:
        try:
            parts = urlsplit(self.url)
            fits = parts.scheme in ("http", "https") and bool(parts.hostname)
            fits = fits and not (parts.query or parts.fragment) and (parts.port or 1) > 0
        except (ValueError, TypeError, AttributeError):
            fits = False
        if not fits:
            raise ConfigError("url must be http(s)://host[:port][/path], with nothing behind it")
        if parts.username is not None or parts.password is not None:
            raise ConfigError("url must hold no user or password: pass key=")
        keyed = getattr(self, "_key", None) is not None or self.key_variable is not None
        if keyed and parts.scheme == "http" and not _loopback(parts.hostname or ""):
            raise ConfigError(
                f"url must begin with https:// where a key is sent, or name this machine: got "
                f"{self.url!r:.120}"
            )

    def _values(self) -> tuple[object, ...]:
        return (*(getattr(self, field.name) for field in fields(self)), getattr(self, "_key", None))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemoteConfig) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        return f"RemoteConfig({', '.join(f'{k}={v!r}' for k, v in self.to_dict().items())})"

    def __getstate__(self) -> dict[str, Any]:
        """Without the key: a pickle may go anywhere."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __copy__(self) -> RemoteConfig:
        """Itself, key and all: it never changes, and stays in this process."""
        return self

    def __deepcopy__(self, memo: object) -> RemoteConfig:
        return self


def _told(key: object) -> str:
    tell = getattr(key, "get_secret_value", None)
    value = tell() if callable(tell) else None
    if not isinstance(value, str):
        raise ConfigError(f"key must be a str or a SecretStr: got a {type(key).__name__}")
    return value


def _sendable(name: str, key: str | None) -> str | None:
    """*key*, which a header can hold; ConfigError, that does not show it, where it cannot."""
    if key is not None and not all("!" <= sign <= "~" for sign in key):
        raise ConfigError(f"{name} must be visible ASCII: it has a blank, a line's end or another")
    return key


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
