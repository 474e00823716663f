"""Adapters in the handlers of a web application: made per request, loaded once."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from llama_index.core.schema import MetadataMode

from rerank_adapters import InputError, sharing
from rerank_adapters.langchain import CrossEncoderCompressor
from rerank_adapters.llama_index import CrossEncoderPostprocessor
from tests.exported import exported
from tests.langchain_adapter import samples
from tests.llama_index_adapter import examples

fastapi = pytest.importorskip("fastapi", reason="fastapi is not installed: make test-neighbours")

pytestmark = pytest.mark.long("observers")

FIELDS: dict[str, Any] = {"model": str(exported("bert")), "backend": "onnx", "device": "cpu"}
PLAIN: dict[str, Any] = {"metadata_mode": MetadataMode.NONE}  # the texts alone, as in LangChain
QUERY = samples.QUERY


def application() -> Any:
    """Handlers that are awaited, and such that run in threads, each with an adapter of its own."""
    app = fastapi.FastAPI()

    @app.exception_handler(InputError)
    def refuse(request: fastapi.Request, error: InputError) -> fastapi.responses.JSONResponse:
        return fastapi.responses.JSONResponse({"detail": str(error)}, status_code=422)

    @app.get("/langchain/awaited")
    async def langchain_awaited(q: str, top_n: int) -> list[list[Any]]:
        compressor = CrossEncoderCompressor(**FIELDS, top_n=top_n)
        found = await compressor.acompress_documents(samples.documents(), q)
        return [[one.id, one.metadata["relevance_score"]] for one in found]

    @app.get("/langchain/threaded")
    def langchain_threaded(q: str, top_n: int) -> list[list[Any]]:
        with CrossEncoderCompressor(**FIELDS) as compressor:
            found = compressor.compress_documents(samples.documents(), q, top_n=top_n)
        return [[one.id, one.metadata["relevance_score"]] for one in found]

    @app.get("/llama_index/awaited")
    async def llama_index_awaited(q: str, top_n: int) -> list[list[Any]]:
        postprocessor = CrossEncoderPostprocessor(**FIELDS, **PLAIN, top_n=top_n)
        found = await postprocessor.apostprocess_nodes(examples.nodes(samples.TEXTS), query_str=q)
        return [[one.node_id.replace("node-", "d"), one.score] for one in found]

    @app.get("/llama_index/threaded")
    def llama_index_threaded(q: str, top_n: int) -> list[list[Any]]:
        postprocessor = CrossEncoderPostprocessor(**FIELDS, **PLAIN)
        given = examples.nodes(samples.TEXTS)
        found = postprocessor.postprocess_nodes(given, query_str=q, top_n=top_n)
        return [[one.node_id.replace("node-", "d"), one.score] for one in found]

    return app


PATHS = [f"/{way}/{how}" for way in ("langchain", "llama_index") for how in ("awaited", "threaded")]


async def test_forty_requests_at_once_load_one_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """All answers are sentence-transformers' best, from one load of the network."""
    sharing.close_all()
    loads: list[object] = []
    start = sharing.start
    monkeypatch.setattr(sharing, "start", lambda *it: loads.append(it) or start(*it))
    asked = [(path, count) for count in range(1, 11) for path in PATHS]
    # FastAPI's own threads, as many as there are requests that wait in them.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(20))
    transport = httpx.ASGITransport(application())
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:

        async def ask(path: str, top_n: int) -> list[list[Any]]:
            answer = await client.get(path, params={"q": QUERY, "top_n": top_n})
            assert answer.status_code == 200, answer.text
            return answer.json()

        answers = await asyncio.gather(*(ask(*it) for it in asked))
    assert len(loads) == 1
    expected = samples.oracle(QUERY)
    for (path, count), answer in zip(asked, answers, strict=True):
        assert [name for name, _ in answer] == samples.best(expected, count), path
        wanted = [float(expected[int(name[1:])]) for name, _ in answer]
        assert [score for _, score in answer] == pytest.approx(wanted, abs=samples.TOLERANCE)


@pytest.mark.parametrize("path", PATHS)
async def test_a_wrong_request_is_the_user_s_and_names_the_cure(path: str) -> None:
    """A blank question and a top_n of 0: InputError, which a handler can turn into a 422."""
    transport = httpx.ASGITransport(application(), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        blank = await client.get(path, params={"q": " ", "top_n": 2})
        assert blank.status_code == 422
        assert 'on_blank_query="keep"' in blank.json()["detail"]
        if "threaded" in path:  # there top_n is the call's, not the adapter's
            none = await client.get(path, params={"q": QUERY, "top_n": 0})
            assert none.status_code == 422
            assert none.json()["detail"].startswith("top_n must be an int of at least 1")
