"""A real Infinity server on loopback, in an environment of its own: its scores are ours."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rerank_adapters import InputError, Reranker
from tests import checkpoints
from tests.exported import exported

pytestmark = pytest.mark.long("infinity")

COMMAND = os.environ.get("INFINITY_EMB") or shutil.which("infinity_emb")
PAIRS = [pair for pair in checkpoints.PAIRS if pair[0].strip()][:30]
TOLERANCE = 1e-4  # law 1: another torch sums float32 in another order


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where it listens, with the tiny BERT."""
    if COMMAND is None:
        pytest.skip("infinity_emb is not installed: make test-servers")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("infinity") / "log"
    known = {name: it for name, it in os.environ.items() if name != "PYTHONPATH"}
    offline = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"}
    with log.open("wb") as written:
        server = subprocess.Popen(
            [
                *(COMMAND, "v2", "--model-id", str(checkpoints.build("bert"))),
                *("--served-model-name", "tiny-ce", "--engine", "torch", "--device", "cpu"),
                *("--host", "127.0.0.1", "--port", str(port)),
                *("--no-bettertransformer", "--no-model-warmup"),
            ],
            env={**known, **offline},
            stdout=written,
            stderr=subprocess.STDOUT,
        )
    try:
        yield _ready(f"http://127.0.0.1:{port}", server, log)
    finally:
        server.terminate()
        server.wait(30)


def _ready(url: str, server: subprocess.Popen[bytes], log: Path) -> str:
    end = time.monotonic() + 240
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return url
        except OSError:
            time.sleep(0.5)
    raise AssertionError(log.read_text("utf-8", "replace")[-3000:])


def test_its_scores_are_ours(url: str) -> None:
    """By its own pages, on the same checkpoint, in float32, with both activations."""
    for activation in ("sigmoid", "identity"):
        options = {"backend": "onnx", "device": "cpu", "activation": activation}
        with (
            Reranker(str(exported("bert")), **options) as ours,
            Reranker(remote={"url": url}, activation=activation) as theirs,
        ):
            np.testing.assert_allclose(
                theirs.score_pairs(PAIRS), ours.score_pairs(PAIRS), 0, TOLERANCE
            )
            query, texts = PAIRS[0][0], [document for _, document in PAIRS]
            assert theirs.rerank(query, texts).indices == ours.rerank(query, texts).indices
            assert theirs.info().details["dialect"] == "infinity"


def test_halves_of_characters_do_not_break_it(url: str) -> None:
    """It would answer 500 to them; parts of a call meet in the order given."""
    remote = {"url": url, "dialect": "infinity", "model": "tiny-ce", "documents_per_request": 4}
    with Reranker(remote=remote) as reranker:
        texts = [document for _, document in PAIRS]
        whole = reranker.score("why", [*texts, "lone \ud800 half"])
        np.testing.assert_allclose(whole[:-1], reranker.score("why", texts), 0, TOLERANCE)


def test_what_it_refuses_is_an_input_error(url: str) -> None:
    """A text beyond its own limit of characters."""
    with Reranker.remote(url, dialect="infinity") as reranker, pytest.raises(InputError):
        reranker.score("why", ["x" * 200_000])
