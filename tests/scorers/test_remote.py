"""Scores from a server on loopback: every dialect's bytes, every fault, one deadline, no leak."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import pickle
import random
import threading
from collections.abc import Callable, Iterator
from itertools import count
from time import monotonic
from typing import Any

import numpy as np
import pytest
from langchain_core.documents import Document
from pydantic import SecretStr

from rerank_adapters import (
    BackendError,
    ClosedError,
    ConfigError,
    InputError,
    OverloadedError,
    RemoteConfig,
    Reranker,
    RerankerConfig,
    ScoreCache,
)
from rerank_adapters.adapter_fields import configuration, saved
from rerank_adapters.langchain import CrossEncoderCompressor
from rerank_adapters.llama_index import CrossEncoderPostprocessor
from rerank_adapters.protocols import Call
from rerank_adapters.scorers.remote import Remote, transport
from rerank_adapters.sharing import acquire, close_all

from .server import (
    Answer,
    Asked,
    Server,
    flood,
    flood_in_chunks,
    logit,
    results,
    serving,
    stops,
    tei,
    trickle,
)

DOCUMENTS = [f"text {'x' * size}" for size in range(1, 12)]
KEY = "sk-swordfish"


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The first pause is a hundredth: what is asserted is how often was asked, not how long."""
    monkeypatch.setattr(transport, "FIRST_PAUSE", 0.01)
    yield
    close_all()


def asking(server: Server, **options: Any) -> Reranker:
    values = {"url": server.url, "dialect": "tei", **options}
    return Reranker(remote=values)


def logits(query: str, documents: list[str]) -> np.ndarray:
    return np.array([logit(query, document) for document in documents], np.float32)


def sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values.astype(np.float64)))


def test_scores_and_rankings_are_the_servers() -> None:
    """Sigmoid of its raw outputs, in the order given; rankings sort by the outputs themselves."""
    with serving() as server, asking(server) as reranker:
        found = reranker.score("query", DOCUMENTS)
        np.testing.assert_allclose(found, sigmoid(logits("query", DOCUMENTS)), 0, 1e-6)  # float32
        order = np.argsort(-logits("query", DOCUMENTS), kind="stable").tolist()
        assert reranker.rerank("query", DOCUMENTS).indices == order
        assert asyncio.run(reranker.arerank("query", DOCUMENTS)).indices == order
        pairs = [("a", "one"), ("bbb", "two"), ("a", "three"), ("a", "one")]
        wanted = sigmoid(np.array([logit(*pair) for pair in pairs]))
        np.testing.assert_allclose(reranker.score_pairs(pairs), wanted, 0, 1e-6)
        asked = [len(it.body["texts"]) for it in server.posts[-2:]]
        assert sorted(asked) == [1, 2]  # one request for each query, equal pairs once
        assert reranker.info().backend == "remote"
        assert reranker.info().activation == "sigmoid"


EXCHANGES: dict[str, tuple[str, dict[str, Any], Any, list[float]]] = {
    # As the servers' own documentation and sources have them: path, body, answer, our scores.
    "tei": (
        "/rerank",
        {"query": "q", "texts": ["a", "b"], "truncate": True, "raw_scores": True},
        [{"index": 1, "score": 0.5}, {"index": 0, "score": -1.5}],
        [0.18242552, 0.62245933],
    ),
    "vllm": (
        "/v1/rerank",
        {
            "model": "tiny-ce",
            "query": "q",
            "documents": ["a", "b"],
            "truncate_prompt_tokens": -1,
            "use_activation": False,
        },
        {
            "id": "score-be0b0db64042ea1d",
            "model": "tiny-ce",
            "usage": {"prompt_tokens": 38, "total_tokens": 38},
            "results": [
                {
                    "index": 0,
                    "document": {"text": "a", "multi_modal": None},
                    "relevance_score": -3.591286,
                },
                {
                    "index": 1,
                    "document": {"text": "b", "multi_modal": None},
                    "relevance_score": -4.0,
                },
            ],
        },
        [0.02682353, 0.01798621],
    ),
    "infinity": (
        "/rerank",
        {"model": "tiny-ce", "query": "q", "documents": ["a", "b"], "raw_scores": True},
        {
            "object": "rerank",
            "results": [
                {"relevance_score": -0.861097, "index": 1, "document": None},
                {"relevance_score": -3.150607, "index": 0, "document": None},
            ],
            "model": "tiny-ce",
            "usage": {"prompt_tokens": 116, "total_tokens": 116},
            "id": "infinity-04ba65a1",
            "created": 1795180112,
        },
        [0.04106737, 0.29711020],
    ),
    "cohere": (
        "/v2/rerank",
        {"model": "tiny-ce", "query": "q", "documents": ["a", "b"], "top_n": 2},
        {
            "id": "07734bd2-2473-4f07-94e1-0d9f0e6843cf",
            "results": [
                {"index": 1, "relevance_score": 0.999071},
                {"index": 0, "relevance_score": 0.32713068},
            ],
            "meta": {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}},
        },
        [0.32713068, 0.999071],
    ),
    "jina": (
        "/v1/rerank",
        {
            "model": "tiny-ce",
            "query": "q",
            "documents": ["a", "b"],
            "top_n": 2,
            "return_documents": False,
        },
        {
            "model": "tiny-ce",
            "usage": {"total_tokens": 38},
            "results": [
                {"index": 0, "relevance_score": 0.8783142},
                {"index": 1, "relevance_score": 0.11},
            ],
        },
        [0.8783142, 0.11],
    ),
}


@pytest.mark.parametrize("dialect", EXCHANGES)
def test_recorded_exchanges(dialect: str) -> None:
    """What is sent is what each server takes, byte for byte by key; what it answers is read."""
    path, body, answer, scores = EXCHANGES[dialect]
    model = body.get("model")
    with (
        serving(lambda asked: (200, {}, answer)) as server,
        asking(server, dialect=dialect, model=model, key=KEY) as reranker,
    ):
        np.testing.assert_allclose(reranker.score("q", ["a", "b"]), scores, 0, 1e-6)
        (asked,) = server.posts
        assert (asked.path, asked.body) == (path, body)
        assert asked.headers["authorization"] == f"Bearer {KEY}"
        assert reranker.info().details["dialect"] == dialect
        expected = "the server's" if dialect in ("cohere", "jina") else "sigmoid"
        assert reranker.info().activation == expected


def test_a_url_may_name_the_path_already_or_a_prefix() -> None:
    """Nothing is put behind it twice."""
    with serving() as server:
        for url in (server.url, f"{server.url}/", f"{server.url}/rerank"):
            asking(server, url=url).score("q", ["a"])
        asking(server, url=f"{server.url}/models/mine").score("q", ["a"])
        paths = [it.path for it in server.posts]
    assert paths == ["/rerank", "/rerank", "/rerank", "/models/mine/rerank"]


@pytest.mark.parametrize(
    ("pages", "dialect", "answer"),
    [
        ({"/info": {"max_client_batch_size": 4, "model_id": "m"}}, "tei", tei),
        ({"/v1/models": {"data": [{"id": "m", "owned_by": "vllm"}]}}, "vllm", results),
        ({"/models": {"data": [{"id": "m", "owned_by": "infinity"}]}}, "infinity", results),
    ],
)
def test_auto_reads_public_pages_without_the_key(
    pages: dict[str, Any], dialect: str, answer: Callable[[Asked], Answer]
) -> None:
    """Once; the key is for the requests alone."""
    options = {"dialect": "auto", "key": KEY, "max_in_flight": 1}  # one by one, so in order
    with serving(answer, pages) as server, asking(server, **options) as reranker:
        reranker.score("q", DOCUMENTS)
        reranker.score("q", DOCUMENTS)
        assert reranker.info().details["dialect"] == dialect
        gets = [it for it in server.asked if it.method == "GET"]
        assert len({it.path for it in gets}) == len(gets)
        assert all("authorization" not in {name.lower() for name in it.headers} for it in gets)
        assert all("authorization" in it.headers for it in server.posts)
        if dialect == "tei":
            assert [len(it.body["texts"]) for it in server.posts[:3]] == [4, 4, 3]


def test_auto_that_cannot_be_told_is_a_config_error() -> None:
    """No guess is made, and nothing is posted."""
    with serving(pages={"/info": {"version": "1"}, "/models": {"data": []}}) as server:
        told = pytest.raises(ConfigError, match="dialect must be named")
        with asking(server, dialect="auto") as reranker, told:
            reranker.score("q", ["a"])
        assert server.posts == []


def test_requests_are_cut_to_the_limit_and_bounded_in_flight() -> None:
    """By documents and by bytes; no more at once than asked for; every index in its place."""
    gate = threading.Barrier(3, timeout=10)

    def waits(asked: Asked) -> Answer:
        gate.wait()
        return tei(asked)

    documents = [f"{'y' * size}" for size in range(1, 19)]
    with serving(waits) as server:
        with asking(server, documents_per_request=2, max_in_flight=3) as reranker:
            found = reranker.score("query", documents)
        assert [len(it.body["texts"]) for it in server.posts] == [2] * 9
        assert server.most_at_once == 3
    np.testing.assert_allclose(found, sigmoid(logits("query", documents)), 0, 1e-6)
    large = ["é" * 700_000, "b" * 700_000, "c"]
    with serving() as server, asking(server) as reranker:
        reranker.score("q", large)
        assert sorted(len(it.body["texts"]) for it in server.posts) == [1, 2]


def failing(*first: Answer | None) -> Callable[[Asked], Answer | None]:
    """An answer of each of *first*, then of a server that is well."""
    turn = count()

    def answer(asked: Asked) -> Answer | None:
        number = next(turn)
        return first[number] if number < len(first) else tei(asked)

    return answer


AGAIN: list[Answer | None] = [
    (429, {}, {"error": "Model is overloaded", "error_type": "Overloaded"}),
    (429, {"Retry-After": "0"}, {"error": {"message": "busy"}}),
    (502, {}, b"<html>bad gateway</html>"),
    (503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, {}),
    (504, {}, b""),
    (200, {"Content-Length": "5000"}, b'[{"index": 0,'),  # half closed
    None,
]


@pytest.mark.parametrize(
    "fault", [*(pytest.param(it, id=str(it)) for it in AGAIN), pytest.param((200, {}, stops))]
)
def test_what_may_go_better_is_asked_again(fault: Answer | None) -> None:
    """Twice here; the scores are those of a server that was well all along."""
    with serving(failing(fault, fault)) as server, asking(server) as reranker:
        found = reranker.score("query", DOCUMENTS)
        assert len(server.posts) == 3
    np.testing.assert_allclose(found, sigmoid(logits("query", DOCUMENTS)), 0, 1e-6)


NEVER: list[tuple[Answer, type[Exception], str]] = [
    ((500, {}, b"Internal Server Error"), BackendError, "answered 500: Internal Server Error"),
    ((424, {}, {"error": "score is NaN", "error_type": "Backend"}), BackendError, "score is NaN"),
    ((400, {}, {"error": {"message": "too long"}}), InputError, "answered 400: too long"),
    ((401, {}, {"message": f"no such key {KEY}"}), ConfigError, "key must open .* no such key"),
    ((404, {}, {"error": {"message": "no model"}}), ConfigError, "url, dialect and model must"),
    ((200, {}, b"hello"), BackendError, "must answer in JSON"),
    ((200, {}, b'[{"index": 0, "score": 1.0}, {"index"'), BackendError, "must answer in JSON"),
    ((200, {}, b"[" * 100_000), BackendError, "must answer in JSON"),
    ((200, {}, {"results": []}), BackendError, "must answer with results"),
    ((200, {}, [{"index": 0, "score": 1.0}]), BackendError, "must score 2 documents: got 1"),
    (
        (200, {}, [{"index": at, "score": 1.0} for at in range(3)]),
        BackendError,
        "must score 2 documents: got 3",
    ),
    ((200, {}, [{"index": 0, "score": 1.0}, {"score": 1.0}]), BackendError, "must answer with"),
    (
        (200, {}, [{"index": 0, "score": 1.0}, {"index": 0, "score": 1.0}]),
        BackendError,
        "must name each document once: got index 0",
    ),
    (
        (200, {}, [{"index": 0, "score": 1.0}, {"index": 2, "score": 1.0}]),
        BackendError,
        "got index 2",
    ),
    (
        (200, {}, [{"index": 0, "score": 1.0}, {"index": True, "score": 1.0}]),
        BackendError,
        "got index True",
    ),
    ((200, {}, b'[{"index":0,"score":NaN},{"index":1,"score":1}]'), BackendError, "finite"),
    ((200, {}, b'[{"index":0,"score":1e99},{"index":1,"score":1}]'), BackendError, "finite"),
    ((200, {}, [{"index": 0, "score": None}, {"index": 1, "score": 1}]), BackendError, "None"),
    ((200, {}, [{"index": 0, "score": "1"}, {"index": 1, "score": 1}]), BackendError, "'1'"),
    ((200, {"Content-Encoding": "gzip"}, b"x"), BackendError, "uncompressed"),
    ((307, {"Location": "http://example.com/rerank"}, b""), BackendError, "redirects to another"),
    ((302, {"Location": "//127.0.0.1:1/rerank"}, b""), BackendError, "redirects to another"),
    ((307, {"Location": "/rerank"}, b""), BackendError, "redirects for ever"),
]


@pytest.mark.parametrize(("fault", "kind", "words"), NEVER)
def test_what_will_not_go_better_is_asked_once(
    fault: Answer, kind: type[Exception], words: str
) -> None:
    """The error says who answered what, and never the key; redirects stay on the server."""
    with serving(lambda asked: fault) as server, asking(server, key=KEY) as reranker:
        with pytest.raises(kind, match=words) as caught:
            reranker.score("q", ["a", "b"])
        assert len(server.posts) == (4 if fault[1].get("Location") == "/rerank" else 1)
    assert KEY not in str(caught.value)


def test_a_redirect_on_the_same_server_is_followed() -> None:
    """With the body and the key, as a POST."""

    def moved(asked: Asked) -> Answer:
        if asked.path == "/rerank":
            return 308, {"Location": "/v2/there"}, b""
        return tei(asked)

    with serving(moved) as server, asking(server, key=KEY) as reranker:
        assert len(reranker.score("q", ["a", "b"])) == 2
        assert [it.path for it in server.posts] == ["/rerank", "/v2/there"]
        assert server.posts[1].headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(("status", "kind"), [(429, OverloadedError), (502, BackendError)])
def test_patience_ends(status: int, kind: type[Exception]) -> None:
    """After `retries` more attempts; a pause beyond the deadline is not begun."""
    with serving(lambda asked: (status, {}, {"error": "busy"})) as server:
        with asking(server, retries=2) as reranker, pytest.raises(kind, match=f"answered {status}"):
            reranker.score("q", ["a"])
        assert len(server.posts) == 3
    for pause in ("3600", "9" * 400):
        with serving(lambda asked, pause=pause: (status, {"Retry-After": pause}, {})) as server:
            with asking(server) as reranker, pytest.raises(kind):
                reranker.score("q", ["a"], timeout=30)
            assert len(server.posts) == 1


def test_too_many_documents_are_sent_in_halves_once() -> None:
    """A server whose limit nobody knew; one that takes no document at all is an InputError."""

    def small(asked: Asked) -> Answer:
        if len(asked.body["texts"]) > 6:
            return 422, {}, {"error": "batch size 11 > maximum", "error_type": "Validation"}
        return tei(asked)

    with serving(small) as server, asking(server) as reranker:
        found = reranker.score("query", DOCUMENTS)
        assert [len(it.body["texts"]) for it in server.posts] == [11, 5, 6]
    np.testing.assert_allclose(found, sigmoid(logits("query", DOCUMENTS)), 0, 1e-6)
    refusal = (413, {}, {"detail": [{"type": "too_long", "msg": "too long"}]})
    with serving(lambda asked: refusal) as server:
        with asking(server) as reranker, pytest.raises(InputError, match="413: too long"):
            reranker.score("query", DOCUMENTS)
        assert len(server.posts) == 2


def test_a_slow_server_is_left_at_the_deadline() -> None:
    """A byte now and then does not put it off; a call without a timeout has the server's."""
    slow = (200, {}, trickle)
    with serving(lambda asked: slow) as server:
        with asking(server) as reranker, pytest.raises(TimeoutError):
            reranker.score("q", ["a"], timeout=0.3)
        with asking(server, timeout=0.3) as reranker, pytest.raises(TimeoutError):
            reranker.score("q", ["a"])
        with asking(server) as reranker, pytest.raises(TimeoutError):
            asyncio.run(reranker.ascore("q", ["a"], timeout=0.3))


@pytest.mark.parametrize("body", [flood, flood_in_chunks])
def test_an_answer_has_a_cap_in_bytes(body: Callable[[Any], None]) -> None:
    """A hundred megabytes are left after the first; the server sees the connection end."""
    with serving(lambda asked: (200, {}, body)) as server:
        told = pytest.raises(BackendError, match="max_answer_bytes is 1048576")
        with asking(server, max_answer_bytes=2**20) as reranker, told:
            reranker.score("q", ["a"])
        assert len(server.posts) == 1


def test_a_public_page_has_its_limits_too() -> None:
    """A page without an end tells nothing; one that never comes is left at the deadline."""
    with serving(pages={"/info": flood}) as server:
        told = pytest.raises(ConfigError, match="dialect must be named")
        with asking(server, dialect="auto") as reranker, told:
            reranker.score("q", ["a"])
    with serving(pages={"/info": trickle}) as server:
        for options in ({"dialect": "auto"}, {"dialect": "tei"}):
            with asking(server, timeout=0.3, **options) as reranker, pytest.raises(TimeoutError):
                reranker.score("q", ["a"])
        assert server.posts == []


@pytest.mark.parametrize("server_of", [tei, results])
def test_answers_may_come_in_any_order(server_of: Callable[[Asked], Answer]) -> None:
    """Indices place the scores, part by part; in which order a server names them is nothing."""

    def shuffled(asked: Asked) -> Answer:
        status, headers, body = server_of(asked)
        random.Random(len(asked.body["query"])).shuffle(
            body if server_of is tei else body["results"]
        )
        return status, headers, body

    dialect = "tei" if server_of is tei else "infinity"
    options = {"dialect": dialect, "documents_per_request": 4}
    with serving(shuffled) as server, asking(server, **options) as reranker:
        for query in ("a", "query", "a longer one"):
            wanted = logits(query, DOCUMENTS)
            np.testing.assert_allclose(reranker.score(query, DOCUMENTS), sigmoid(wanted), 0, 1e-6)
            order = np.argsort(-wanted, kind="stable").tolist()
            assert reranker.rerank(query, DOCUMENTS).indices == order


def test_a_burst_of_500_fails_those_whom_it_meets() -> None:
    """None is sent again, each has its own error, and all others their rankings."""
    turn = count()

    def burst(asked: Asked) -> Answer:
        return (500, {}, b"Internal Server Error") if next(turn) < 8 else tei(asked)

    queries = ["q" * number for number in range(1, 17)]
    with serving(burst) as server, asking(server) as reranker:
        futures = {query: reranker.submit(query, DOCUMENTS) for query in queries}
        errors = {query: future.exception(20) for query, future in futures.items()}
        assert len(server.posts) == len(queries)
    assert sum(isinstance(error, BackendError) for error in errors.values()) == 8
    for query in (query for query, error in errors.items() if error is None):
        order = np.argsort(-logits(query, DOCUMENTS), kind="stable").tolist()
        assert futures[query].result().indices == order
    assert sum(error is None for error in errors.values()) == 8


def test_one_part_that_fails_ends_the_others() -> None:
    """One error, and what was in flight is dropped; the next call is answered."""
    turn = count()

    def second_fails(asked: Asked) -> Answer:
        return (500, {}, b"no") if next(turn) == 1 else tei(asked)

    with serving(second_fails) as server, asking(server, documents_per_request=2) as reranker:
        with pytest.raises(BackendError, match="answered 500"):
            reranker.score("query", DOCUMENTS)
        found = reranker.score("query", DOCUMENTS)
    np.testing.assert_allclose(found, sigmoid(logits("query", DOCUMENTS)), 0, 1e-6)


def test_a_poisoned_request_fails_alone() -> None:
    """Law 4: with return_exceptions its neighbours are answered."""

    def poison(asked: Asked) -> Answer:
        return (500, {}, b"no") if asked.body["query"] == "bad" else tei(asked)

    with serving(poison) as server, asking(server) as reranker:
        found = reranker.rerank_many(
            [("good", ["a", "bb"]), ("bad", ["a"]), ("fine", ["c"])], return_exceptions=True
        )
        assert isinstance(found[1], BackendError)
        assert [len(found[0]), len(found[2])] == [2, 1]


def test_what_waits_is_cancelled_with_its_future_and_by_close() -> None:
    """A cancelled Future drops its request; close ends all with ClosedError, and later calls."""
    begun, release = threading.Event(), threading.Event()

    def waits(asked: Asked) -> Answer:
        begun.set()
        release.wait(10)
        return tei(asked)

    with serving(waits) as server:
        scorer = Remote(RemoteConfig(url=server.url, dialect="tei"))
        future = scorer.submit_pairs([("q", "a")], Call())
        assert begun.wait(10)
        assert future.cancel()
        other = scorer.submit_pairs([("q", "a")], Call())
        begun.clear()
        begun.wait(10)
        scorer.close()
        with pytest.raises(ClosedError):
            other.result(10)
        with pytest.raises(ClosedError):
            scorer.submit_pairs([("q", "a")], Call())
        release.set()


def test_no_server_is_a_backend_error_that_names_it() -> None:
    """After all attempts."""
    with serving() as server:
        gone = server.url
    told = pytest.raises(BackendError, match=f"no answer from {gone.removeprefix('http://')}")
    with Reranker.remote(gone, dialect="tei") as reranker, told:
        reranker.score("q", ["a"])


def test_halves_of_characters_are_cleaned_before_they_are_sent() -> None:
    """Joined where they pair, U+FFFD where they do not: no server gets invalid UTF-8."""
    with serving() as server:
        scorer = Remote(RemoteConfig(url=server.url, dialect="tei"))
        pairs = [("q\ud800", "a\ud83d\ude00"), ("q\ud800", "b\udfff")]
        scorer.submit_pairs(pairs, Call()).result(10)
        scorer.close()
        assert server.posts[0].body["query"] == "q�"
        assert server.posts[0].body["texts"] == ["a\N{GRINNING FACE}", "b�"]


def test_blank_documents_go_by_the_rule_and_never_to_vllm() -> None:
    """Rankings put them last unasked; as a score vLLM would give the query's own."""
    with serving(results) as server, asking(server, dialect="vllm") as reranker:
        assert reranker.rerank("q", ["", "a", " "]).indices == [1, 0, 2]
        assert [it.body["documents"] for it in server.posts] == [["a"]]
        with pytest.raises(InputError, match="document 0 is blank"):
            reranker.score("q", [""])
    with serving() as server, asking(server) as reranker:
        assert len(reranker.score("q", ["", "a"])) == 2


def test_activations_are_applied_here_where_outputs_are_raw() -> None:
    """Identity leaves them; a service's own scores are not to be changed."""
    with serving() as server:
        raw = Reranker(remote={"url": server.url, "dialect": "tei"}, activation="identity")
        assert raw.score("query", DOCUMENTS).tolist() == logits("query", DOCUMENTS).tolist()
        raw.close()
        service = {"url": server.url, "dialect": "cohere", "model": "m"}
        told = pytest.raises(ConfigError, match="activation must be 'default'")
        with Reranker(remote=service, activation="identity") as reranker, told:
            reranker.score("q", ["a"])


def test_a_server_s_scores_are_calibrated_by_its_raw_outputs() -> None:
    """The order is the outputs'; what was fitted to another server's model is refused."""
    with serving() as server:
        remote = {"url": server.url, "dialect": "tei"}
        labels = [int(it > 0) for it in logits("query", DOCUMENTS)]
        labels[0] = 1 - labels[0]
        with Reranker(remote=remote) as reranker:
            fitted = reranker.calibrate([("query", it) for it in DOCUMENTS], labels)
        assert fitted.weights == (f"server:{server.url}",)
        with Reranker(remote=remote, calibration=fitted) as reranker:
            wanted = fitted.scores(logits("query", DOCUMENTS))
            assert reranker.score("query", DOCUMENTS).tolist() == wanted.tolist()
        with pytest.raises(ConfigError, match="calibration must be of the weights that run"):
            Reranker(remote={**remote, "model": "other"}, calibration=fitted)


def test_prompts_are_refused_and_progress_is_counted() -> None:
    """What no server takes is an error, and a bar sees every document."""
    with serving() as server, asking(server, documents_per_request=4) as reranker:
        with pytest.raises(InputError, match="prompt must be None"):
            reranker.rerank("q", ["a"], prompt="Find it.")
        seen: list[int] = []
        reranker.rerank_many([("q", DOCUMENTS)], on_progress=seen.append)
        assert sorted(seen) == [3, 4, 4]


def test_a_cache_stands_before_the_server() -> None:
    """What scored before is not asked again; another model's scores are not taken for it."""
    cache = ScoreCache.memory(bytes=2**20)
    with serving(results) as server:
        for model in ("one", "two"):
            remote = {"url": server.url, "dialect": "infinity", "model": model}
            with Reranker(remote=remote, cache=cache) as reranker:
                first = reranker.score("q", DOCUMENTS)
                assert reranker.score("q", DOCUMENTS).tobytes() == first.tobytes()
        assert [it.body["model"] for it in server.posts] == ["one", "two"]


def test_adapters_take_a_server_as_any_configuration() -> None:
    """LangChain and LlamaIndex, sync and async, from a value and from a mapping; one lease."""
    with serving() as server:
        remote = RemoteConfig(url=server.url, dialect="tei")
        documents = [Document(page_content=text) for text in DOCUMENTS]
        order = np.argsort(-logits("query", DOCUMENTS), kind="stable").tolist()
        for given in (remote, remote.to_dict()):
            compressor = CrossEncoderCompressor(remote=given, top_n=3)
            found = compressor.compress_documents(documents, "query")
            assert [it.page_content for it in found] == [DOCUMENTS[row] for row in order[:3]]
            again = asyncio.run(compressor.acompress_documents(documents, "query"))
            assert again == found
            twin = pickle.loads(pickle.dumps(compressor))
            assert twin.compress_documents(documents, "query") == found
            assert CrossEncoderCompressor(**compressor.model_dump()) == compressor
            assert CrossEncoderCompressor.model_validate_json(compressor.model_dump_json())
        assert CrossEncoderPostprocessor(remote=remote).remote == remote
        assert acquire(remote).get() is acquire(RerankerConfig(remote=remote)).get()
        assert configuration(remote, "model") == RerankerConfig(remote=remote)
        assert saved(RerankerConfig(remote=remote)) == {"remote": remote.to_dict()}


def test_keys_are_never_shown_nor_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    """repr, str, pickle, dumps, schemas; a variable's name may be, and is read when it is sent."""
    remote = RemoteConfig(url="https://api.jina.ai", dialect="jina", model="m", key=SecretStr(KEY))
    compressor = CrossEncoderCompressor(remote=remote)
    shown = [repr(remote), str(RerankerConfig(remote=remote)), remote.to_dict(), repr(compressor)]
    shown += [compressor.model_dump(), compressor.model_dump_json()]
    assert KEY not in str(shown)
    for dumped in (remote, RerankerConfig(remote=remote), compressor):
        assert KEY.encode() not in pickle.dumps(dumped)
    assert remote.secret() == copy.deepcopy(remote).secret() == KEY
    assert pickle.loads(pickle.dumps(remote)).secret() is None
    assert remote != RemoteConfig(url=remote.url, dialect="jina", model="m", key="other")
    named = RemoteConfig(url="https://x", dialect="tei", key_variable="OUR_TEST_KEY")
    monkeypatch.setenv("OUR_TEST_KEY", KEY)
    assert pickle.loads(pickle.dumps(named)).secret() == KEY
    monkeypatch.delenv("OUR_TEST_KEY")
    with pytest.raises(ConfigError, match="key_variable must name a variable that is set"):
        named.secret()


@pytest.mark.parametrize("key", [f"{KEY}\n", f"{KEY}\r\nX: y", f" {KEY}", f"{KEY}\u00e9"])
def test_a_key_that_no_header_holds_is_not_shown(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line's end from a file, for one: told before anything is sent, without the key."""
    monkeypatch.setenv("OUR_TEST_KEY", key)
    with pytest.raises(ConfigError, match="key must be visible ASCII") as caught:
        RemoteConfig(url="https://x", key=key)
    assert KEY not in str(caught.value)
    with serving() as server, asking(server, key_variable="OUR_TEST_KEY") as reranker:
        with pytest.raises(ConfigError, match="OUR_TEST_KEY must be visible ASCII") as caught:
            reranker.score("q", ["a"])
        assert server.posts == []
    assert KEY not in str(caught.value)


def test_the_environment_is_asked_for_proxies_only_where_it_may(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A proxy in the environment is not used, unless trust_env says so."""
    with serving() as server, serving() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        asking(server).score("q", ["a"])
        assert (len(server.posts), len(proxy.posts)) == (1, 0)
        asking(server, trust_env=True).score("q", ["a"])
        assert (len(server.posts), len(proxy.posts)) == (1, 1)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"url": "ftp://x"}, "url must be http"),
    ({"url": "http://x?key=1"}, "url must be http"),
    ({"url": 3}, "url must be http"),
    ({"url": "https://me:pw@x"}, "url must hold no user or password"),
    ({"url": "http://example.com", "key": KEY}, "url must begin with https://"),
    ({"url": "http://10.0.0.3", "key_variable": "A"}, "url must begin with https://"),
    ({"dialect": "voyage"}, "dialect must be one of"),
    ({"dialect": "cohere"}, "model must be named"),
    ({"model": " "}, "model must be a str that is not blank"),
    ({"model": "jinaai/jina-reranker-v3"}, "model must score each document by itself"),
    ({"key": 3}, "key must be a str or a SecretStr: got a int"),
    ({"retries": -1}, "retries must be an int of at least 0"),
    ({"max_in_flight": 0}, "max_in_flight must be an int of at least 1"),
    ({"documents_per_request": 1.5}, "documents_per_request must be an int"),
    ({"timeout": float("nan")}, "timeout must be above 0"),
    ({"trust_env": 1}, "trust_env must be True or False"),
]


@pytest.mark.parametrize(("options", "words"), BAD)
def test_wrong_servers_name_the_field(options: dict[str, Any], words: str) -> None:
    """Before anybody is asked; a key may go to this machine without https."""
    with pytest.raises(ConfigError, match=words) as caught:
        RemoteConfig(**{"url": "http://localhost:1", **options})
    assert KEY not in str(caught.value)
    for url in ("http://localhost:1", "http://127.0.0.1", "http://[::1]:8", "https://x"):
        assert RemoteConfig(url=url, key=KEY).secret() == KEY


def test_options_of_a_model_here_are_refused_beside_a_server() -> None:
    """Each by its name; so is what is no server."""
    remote = {"url": "http://localhost:1"}
    with pytest.raises(ConfigError, match="where model, max_length would change nothing"):
        RerankerConfig(model="x/y", max_length=3, remote=remote)
    with pytest.raises(ConfigError, match="activation must be 'sigmoid' or 'identity'"):
        RerankerConfig(remote=remote, activation="softmax")
    for wrong in ("http://x", {"dialect": "tei"}, {"url": "http://x", "port": 3}):
        with pytest.raises(ConfigError, match="remote must be RemoteConfig"):
            RerankerConfig(remote=wrong)
    made = RerankerConfig(remote=remote, rerank_count=3, fuse="rrf", on_empty_text="drop")
    assert made.remote == RemoteConfig(**remote)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_asks_by_itself() -> None:
    """Threads and sockets stay with the parent; both go on."""
    with serving() as server, asking(server) as reranker:
        before = reranker.score("query", DOCUMENTS).tolist()
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.write(write, json.dumps(reranker.score("query", DOCUMENTS).tolist()).encode())
            finally:
                os._exit(0)
        os.close(write)
        deadline = monotonic() + 20
        with os.fdopen(read) as told:
            assert json.load(told) == before
        os.waitpid(child, 0)
        assert monotonic() < deadline
        assert reranker.score("query", DOCUMENTS).tolist() == before


def test_many_threads_share_one_server() -> None:
    """Each has its own scores."""
    with serving() as server, asking(server, documents_per_request=3) as reranker:
        found: dict[int, list[float]] = {}

        def ask(number: int) -> None:
            found[number] = reranker.score("q" * number, DOCUMENTS).tolist()

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(1, 9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for number in range(1, 9):
            wanted = sigmoid(logits("q" * number, DOCUMENTS))
            np.testing.assert_allclose(found[number], wanted, 0, 1e-6)
