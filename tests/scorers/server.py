"""A rerank server on loopback that answers as it is told to, and remembers what it was asked."""

from __future__ import annotations

import http.server
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Asked:
    """One request as it came."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


Answer = tuple[int, dict[str, str], Any]
"""Status, headers, and a body: bytes as they are, anything else as JSON."""


@dataclass
class Server:
    """What it does: *answer* is called for each POST; *pages* are what a GET finds."""

    answer: Callable[[Asked], Answer | None]
    pages: dict[str, Any] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    url: str = ""
    at_once: int = 0
    most_at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def posts(self) -> list[Asked]:
        return [it for it in self.asked if it.method == "POST"]


def logit(query: str, document: str) -> float:
    """A score that depends on both texts and on nothing else."""
    return (len(document) * 7 + len(query)) % 11 - 5.0


def tei(asked: Asked) -> Answer:
    """As text-embeddings-inference answers, best first."""
    rows = [
        {"index": index, "score": logit(asked.body["query"], text)}
        for index, text in enumerate(asked.body["texts"])
    ]
    return 200, {}, sorted(rows, key=lambda row: -row["score"])


def results(asked: Asked) -> Answer:
    """As the others answer, best first, with documents echoed as vLLM does."""
    rows = [
        {
            "index": index,
            "document": {"text": text, "multi_modal": None},
            "relevance_score": logit(asked.body["query"], text),
        }
        for index, text in enumerate(asked.body["documents"])
    ]
    rows.sort(key=lambda row: -row["relevance_score"])
    return 200, {}, {"id": "x", "results": rows, "usage": {"total_tokens": 3}}


class _Handler(http.server.BaseHTTPRequestHandler):
    """Hands what it is asked to its server's `scripted`."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.scripted.asked.append(Asked("GET", self.path, dict(self.headers), None))
        page = self.server.scripted.pages.get(self.path)
        self.reply(404 if page is None else 200, {}, {} if page is None else page)

    def do_POST(self) -> None:
        scripted = self.server.scripted
        size = int(self.headers.get("content-length", 0))
        asked = Asked("POST", self.path, dict(self.headers), json.loads(self.rfile.read(size)))
        with scripted.lock:
            scripted.asked.append(asked)
            scripted.at_once += 1
            scripted.most_at_once = max(scripted.most_at_once, scripted.at_once)
        try:
            found = scripted.answer(asked)
            if found is None:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
            else:
                self.reply(*found)
        except OSError:
            self.close_connection = True
        finally:
            with scripted.lock:
                scripted.at_once -= 1

    def reply(self, status: int, headers: dict[str, str], body: Any) -> None:
        if callable(body):  # writes by itself
            body(self)
            return
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        if headers.get("Content-Length", str(len(content))) != str(len(content)):
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


@contextmanager
def serving(
    answer: Callable[[Asked], Answer | None] = tei, pages: dict[str, Any] | None = None
) -> Iterator[Server]:
    """A server for the length of a block. An *answer* of None closes the connection in silence."""
    server = Server(answer, pages or {})
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    made.scripted = server
    made.daemon_threads = True
    made.block_on_close = False
    threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}).start()
    server.url = f"http://127.0.0.1:{made.server_address[1]}"
    try:
        yield server
    finally:
        made.shutdown()
        made.server_close()


def trickle(handler: Any) -> None:
    """Headers, then a byte now and then, and never the end."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    for _ in range(200):
        handler.wfile.write(b" ")
        time.sleep(0.05)


def flood(handler: Any) -> None:
    """A hundred megabytes."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(100 * 2**20))
    handler.end_headers()
    for _ in range(100):
        handler.wfile.write(b" " * 2**20)


def flood_in_chunks(handler: Any) -> None:
    """The same with no length told beforehand."""
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    for _ in range(100):
        handler.wfile.write(b"100000\r\n" + b" " * 2**20 + b"\r\n")
    handler.wfile.write(b"0\r\n\r\n")


def stops(handler: Any) -> None:
    """A chunk of an answer, and then the connection ends where more was to come."""
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b'b\r\n[{"index": \r\n')
    handler.close_connection = True
