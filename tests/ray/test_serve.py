"""The server, by its own clients: every dialect, many callers, limits, a full queue, a hang-up."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from rerank_adapters import ConfigError, Reranker, RerankerConfig

serve = pytest.importorskip("ray.serve", reason="ray is not installed: make test-ray")

from starlette.requests import Request  # noqa: E402

from rerank_adapters.ray.serve import Limits, Server, app  # noqa: E402

pytestmark = [pytest.mark.long("ray"), pytest.mark.filterwarnings("ignore")]

QUERY = "how tall is the tower?"
TEXTS = ["It is red.", "It is 70 m tall.", "The tower of 1889 is 330 m tall.", "Cats sleep."]
LONG = [f"Tower {n} is red, and nobody knows how old it is. " * 12 for n in range(400)]
post, get = partial(httpx.post, timeout=300), partial(httpx.get, timeout=300)
TOLERANCE = 1e-6  # a sigmoid of float32 here and there


@pytest.fixture(scope="module")
def url(cluster: str) -> Iterator[str]:
    """Where it listens, with options as `serve run` has them: texts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {
        "max_queue_pairs": "200",
        "body_bytes": "2000000",
        "characters": "100000",
        "seconds": "300",
    }
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(app(options), route_prefix="/", logging_config={"enable_access_log": False})
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


@pytest.fixture(scope="module")
def ours() -> Iterator[Reranker]:
    with Reranker() as reranker:
        yield reranker


def metric(url: str, name: str, scores: str = "model") -> float:
    """The sum is never asked for: one line, of one replica."""
    text = get(f"{url}/metrics").text
    found = re.search(
        rf'^rerank_{name}\{{replica="[^"]+"(?:,scores="{scores}")?\}} (\S+)$', text, re.MULTILINE
    )
    assert found, text
    return float(found[1])


def until(url: str, name: str, least: float) -> None:
    end = time.monotonic() + 120
    while metric(url, name) < least:
        assert time.monotonic() < end, name
        time.sleep(0.02)


@pytest.mark.parametrize("dialect", ["auto", "tei", "cohere", "jina"])
def test_our_own_client_gets_our_own_scores(url: str, ours: Reranker, dialect: Any) -> None:
    """Auto finds out by /info; raw outputs over /rerank, scores over the others."""
    with Reranker.remote(url, dialect=dialect, model="any") as remote:
        assert remote.score(QUERY, TEXTS) == pytest.approx(ours.score(QUERY, TEXTS), abs=TOLERANCE)
        ranking = remote.rerank(QUERY, [*TEXTS, " "], top_n=3)
        assert ranking.indices == ours.rerank(QUERY, [*TEXTS, " "], top_n=3).indices


def test_coheres_own_client_gets_our_own_scores(url: str, ours: Reranker) -> None:
    """The real one, by its second version, which has no return_documents."""
    cohere = pytest.importorskip("cohere", reason="cohere is not installed: make test-ray")
    client = cohere.ClientV2(api_key="none", base_url=url)
    found = client.rerank(model="any", query=QUERY, documents=TEXTS, top_n=2)
    expected = ours.rerank(QUERY, TEXTS, top_n=2)
    assert [it.index for it in found.results] == [it.index for it in expected]
    assert [it.relevance_score for it in found.results] == [float(it.score) for it in expected]
    with pytest.raises(cohere.BadRequestError, match="query must not be blank"):
        client.rerank(model="any", query=" ", documents=TEXTS)


def test_documents_are_echoed_where_they_are_asked_for(url: str, ours: Reranker) -> None:
    """Jina's objects with a text too; half a character breaks nothing."""
    body = {"query": QUERY, "documents": [{"text": TEXTS[1]}, TEXTS[0]], "return_documents": True}
    found = post(f"{url}/v1/rerank", json=body).json()["results"]
    assert [it["document"]["text"] for it in found] == [TEXTS[1], TEXTS[0]]
    body = {"query": QUERY, "texts": ["half \ud800", TEXTS[1]], "return_text": True}
    answer = post(f"{url}/rerank", content=json.dumps(body))
    assert [it["text"] for it in answer.json()] == [TEXTS[1], "half \ud800"]
    plain = post(f"{url}/rerank", json={"query": QUERY, "texts": TEXTS}).json()
    assert "text" not in plain[0]
    expected = ours.rerank(QUERY, TEXTS)
    assert [it["score"] for it in plain] == pytest.approx([it.score for it in expected])


def test_64_callers_and_a_poisoned_document(url: str, ours: Reranker) -> None:
    """Each has its own answer; who sends no text has an error, and he alone."""

    def call(number: int) -> httpx.Response:
        documents: list[Any] = [f"Tower {number} is {number} m tall.", *TEXTS[:2]]
        if number % 16 == 3:
            documents[1] = 3
        body = {"query": f"how tall is tower {number}?", "documents": documents}
        return post(f"{url}/v2/rerank", json=body)

    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(call, range(64)))
    for number, answer in enumerate(answers):
        if number % 16 == 3:
            assert answer.status_code == 400
            assert answer.json() == {"message": "documents[1] must be a str: got 3"}
            continue
        documents = [f"Tower {number} is {number} m tall.", *TEXTS[:2]]
        expected = ours.rerank(f"how tall is tower {number}?", documents)
        assert answer.status_code == 200, answer.text
        found = [(it["index"], it["relevance_score"]) for it in answer.json()["results"]]
        assert found == [(it.index, float(it.score)) for it in expected]


@pytest.mark.parametrize(
    ("path", "content", "status", "words"),
    [
        ("/v1/rerank", b"{", 400, "the body must be JSON"),
        ("/v1/rerank", b"[]", 400, "the body must be a JSON object"),
        ("/v1/rerank", b'{"query": "q"}', 400, "documents must be a list"),
        ("/rerank", b'{"query": "q", "texts": []}', 422, "texts must be a list"),
        ("/rerank", b'{"query": "q", "texts": ["a"], "raw_scores": 1}', 422, "raw_scores must be"),
        ("/v1/rerank", b'{"query": "q", "documents": ["a"], "top_n": 0}', 400, "top_n must be"),
        ("/v1/rerank", json.dumps({"query": "q", "documents": ["a"] * 1001}).encode(), 400, "1000"),
        ("/rerank", json.dumps({"query": "q", "texts": ["a" * 100_001]}).encode(), 422, "100000"),
        ("/v1/rerank", b" " * 2_000_001, 413, "the body must be at most 2000000 bytes"),
        ("/v3/rerank", b"{}", 404, "no POST /v3/rerank here"),
    ],
)
def test_what_is_refused(url: str, path: str, content: bytes, status: int, words: str) -> None:
    """Each dialect by its own status and body; nothing is echoed at length."""
    answer = post(url + path, content=content)
    assert (answer.status_code, len(answer.text) < 400) == (status, True)
    assert words in answer.json()["error" if path == "/rerank" else "message"]


def test_a_full_queue_answers_429_and_when_to_come_again(url: str) -> None:
    """A request longer than the queue is taken where nothing waits; the next one is refused."""
    body = {"query": QUERY, "documents": LONG}
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(post, f"{url}/v1/rerank", json=body)
        until(url, "queue_pairs", 1)
        refused = post(f"{url}/v1/rerank", json={"query": QUERY, "documents": TEXTS})
        tei = post(f"{url}/rerank", json={"query": QUERY, "texts": TEXTS})
        assert long.result().status_code == 200
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["message"].startswith("the queue is full: it holds")
    assert (tei.status_code, tei.json()["error_type"]) == (429, "Overloaded")
    assert int(tei.headers["retry-after"]) >= 1
    assert metric(url, "rejected_total") >= 2


def test_who_hangs_up_is_cancelled(url: str) -> None:
    """The engine drops his pairs and serves on."""
    before, passed = metric(url, "cancelled_total"), metric(url, "pairs_total")
    body = json.dumps({"query": "who hangs up?", "documents": [*LONG[:-1], "x"]}).encode()
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as line:
        head = f"POST /v1/rerank HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        line.sendall(head.encode() + body)
        until(url, "queue_pairs", 1)
    until(url, "cancelled_total", before + 1)
    answer = post(f"{url}/v1/rerank", json={"query": QUERY, "documents": TEXTS})
    assert answer.status_code == 200
    assert metric(url, "pairs_total") - passed < len(LONG) + len(TEXTS)


def here(server: Server, method: str, path: str, **options: Any) -> httpx.Response:
    """Ask a replica in this process."""

    async def asgi(scope: Any, receive: Any, send: Any) -> None:
        await (await server(Request(scope, receive)))(scope, receive, send)

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(asgi)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return await client.request(method, path, **options)

    return asyncio.run(ask())


def test_what_takes_too_long_is_given_up() -> None:
    """After a thousandth of a second; in either dialect's words."""
    server = Server(RerankerConfig(), Limits(seconds=1e-3))
    named = here(server, "POST", "/v1/rerank", json={"query": QUERY, "documents": LONG})
    assert (named.status_code, "timeout" in named.json()["message"]) == (504, True)
    texts = here(server, "POST", "/rerank", json={"query": QUERY, "texts": LONG})
    assert (texts.status_code, texts.json()["error_type"]) == (504, "Backend")


def test_the_guides_lines_run() -> None:
    """Its options are taken, and each call of curl, with what curl sends beside, is answered."""
    page = (Path(__file__).parents[2] / ".docs/ray.md").read_text("utf-8")
    runs = re.findall(r"^serve run rerank_adapters.ray.serve:app([^#\n]*)", page, re.MULTILINE)
    for words in runs:
        app(dict(word.split("=") for word in words.split()))
    calls = re.findall(r"^curl localhost:8000(/\S+)(?: -d '(.+)')?$", page, re.MULTILINE)
    assert (len(runs), len(calls)) == (2, 4)
    server = Server(RerankerConfig(), Limits())
    form = {"content-type": "application/x-www-form-urlencoded"}
    for path, body in calls:
        method, options = ("POST", {"content": body, "headers": form}) if body else ("GET", {})
        answer = here(server, method, path, **options)
        assert answer.status_code == 200
        if body:
            rows = answer.json()
            assert (rows["results"] if path == "/v1/rerank" else rows)[0]["index"] == 1


def test_health_and_info(url: str) -> None:
    """One engine under both kinds of scores: its passes are told once."""
    assert get(f"{url}/health").json() == {"status": "ok"}
    info = get(f"{url}/info").json()
    assert info["max_client_batch_size"] == 1000
    assert get(f"{url}/metrics").text.count("rerank_pairs_total{") == 1


def test_options_are_judged_before_anything_starts() -> None:
    """Unknown ones, and such as cannot travel."""
    for options, words in (
        ({"modell": "x"}, "options must be known: got modell"),
        ({"max_length": "0"}, "max_length must be an int of at least 1"),
        ({"token": "x"}, "token must be None"),
    ):
        with pytest.raises(ConfigError, match=words):
            app(options)
