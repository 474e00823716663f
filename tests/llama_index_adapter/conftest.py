"""LlamaIndex offline: mock models in its settings, and no network at all."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import pytest_socket
from llama_index.core import MockEmbedding, Settings
from llama_index.core.llms import MockLLM


@pytest.fixture(autouse=True)
def offline() -> Iterator[None]:
    """No socket may be opened, but for the pair inside each event loop."""
    pytest_socket.disable_socket(allow_unix_socket=True)
    yield
    pytest_socket.enable_socket()


@pytest.fixture
def mocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """LlamaIndex asks its global settings for a model even where it uses none."""
    monkeypatch.setattr(Settings, "_llm", MockLLM(max_tokens=20))
    monkeypatch.setattr(Settings, "_embed_model", MockEmbedding(embed_dim=8))
