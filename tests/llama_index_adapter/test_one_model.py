"""One loaded model, however many postprocessors are made: one per query, one per request."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import pytest_socket

from rerank_adapters import sharing
from rerank_adapters.llama_index import CrossEncoderPostprocessor
from tests.exported import exported
from tests.llama_index_adapter.examples import QUERY, nodes, outcome

FIELDS: dict[str, Any] = {"model": str(exported("bert")), "backend": "onnx", "max_length": 59}


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every load of a network from here on."""
    sharing.close_all()
    counted: list[object] = []
    start = sharing.start
    monkeypatch.setattr(sharing, "start", lambda *it: counted.append(it) or start(*it))
    return counted


def test_a_postprocessor_for_each_query_loads_once(loads: list[object]):
    """Made, used and dropped, with a top_n of its own each: the network is loaded once."""
    results = [
        outcome(
            CrossEncoderPostprocessor(**FIELDS, top_n=n).postprocess_nodes(nodes(), query_str=QUERY)
        )
        for n in (1, 2, 3, 2, 1)
    ]
    assert len(loads) == 1
    assert results == [results[2][:n] for n in (1, 2, 3, 2, 1)]


class Handler(BaseHTTPRequestHandler):
    """Makes a postprocessor for each request, as web applications do."""

    together = threading.Barrier(8)

    def do_GET(self) -> None:
        self.together.wait(60)
        with CrossEncoderPostprocessor(**FIELDS, top_n=int(self.path[1:])) as postprocessor:
            result = outcome(postprocessor.postprocess_nodes(nodes(), query_str=QUERY))
        body = json.dumps(result).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def address() -> Iterator[str]:
    pytest_socket.enable_socket()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_request_handler_under_threads_loads_once(loads: list[object], address: str):
    """Eight requests at once, each with a postprocessor of its own: one load, equal scores."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(number: int) -> list[list[Any]]:
        with opener.open(f"{address}/{number % 3 + 1}", timeout=60) as answer:
            return json.load(answer)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(8)))
    assert len(loads) == 1
    assert answers == [answers[2][: number % 3 + 1] for number in range(8)]
