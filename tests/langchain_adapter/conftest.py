"""The real ONNX model of these tests, its documents, and no network."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pytest_socket import disable_socket, enable_socket

from rerank_adapters import Reranker
from tests.exported import exported


@pytest.fixture(autouse=True)
def _no_network() -> Iterator[None]:
    """Everything here runs offline; an event loop's own socket pair is a unix one."""
    disable_socket(allow_unix_socket=True)
    yield
    enable_socket()


@pytest.fixture(scope="session")
def model() -> str:
    """The folder of the tiny BERT as ONNX, float32. Its scores are logits."""
    return str(exported("bert"))


@pytest.fixture(scope="session")
def ready(model: str) -> Iterator[Reranker]:
    """That model, loaded once for all tests that do not watch the loading."""
    with Reranker.from_pretrained(model, backend="onnx", device="cpu") as reranker:
        yield reranker
