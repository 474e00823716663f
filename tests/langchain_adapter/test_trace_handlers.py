"""What handlers are told at once, and what one that raises leaves behind: nothing open."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.runnables import Runnable

from rerank_adapters import Reranker
from rerank_adapters.langchain import CrossEncoderCompressor, RerankingRetriever
from tests.langchain_adapter.samples import QUERIES, TEXTS, ListRetriever, documents

NAME = "CrossEncoderCompressor"


class Log(BaseCallbackHandler):
    """Keeps the starts of runs, and their ends as what they ended with."""

    run_inline = True
    raise_error = True

    def __init__(self) -> None:
        self.starts: dict[Any, dict[str, Any]] = {}
        self.ends: dict[Any, list[str]] = {}

    def on_retriever_start(self, serialized, query, *, run_id, metadata=None, name="", **rest):
        self.starts[run_id] = {"name": name, "query": query, "metadata": dict(metadata or {})}

    def on_retriever_end(self, found, *, run_id, **rest):
        self.ends.setdefault(run_id, []).append("end")

    def on_retriever_error(self, error, *, run_id, **rest):
        self.ends.setdefault(run_id, []).append(type(error).__name__)


class Raising(Log):
    """Raises at the *nth* of one of its methods that concerns a rerank."""

    def __init__(self, method: str, nth: int) -> None:
        super().__init__()
        self.method, self.left, self.own = method, nth, set()

    def _count(self, method: str) -> None:
        if method == self.method:
            self.left -= 1
            if not self.left:
                raise LookupError(method)

    def on_retriever_start(self, serialized, query, *, run_id, name="", **rest):
        if name == NAME:
            self.own.add(run_id)
            self._count("start")

    def on_retriever_end(self, found, *, run_id, **rest):
        if run_id in self.own:
            self._count("end")

    def on_retriever_error(self, error, *, run_id, **rest):
        pass


async def batch(runnable: Runnable[Any, Any], given: Any, config: Any, way: str) -> Any:
    if way == "batch":
        return runnable.batch(given, config)
    return await runnable.abatch(given, config)


def adapters(**fields: Any) -> list[tuple[Runnable[Any, Any], list[Any]]]:
    base = ListRetriever(found=documents())
    given = [{"query": query, "documents": documents()} for query in QUERIES]
    return [
        (CrossEncoderCompressor(**fields), given),
        (RerankingRetriever(base_retriever=base, **fields), list(QUERIES)),
    ]


@pytest.mark.parametrize("way", ["batch", "abatch"])
async def test_a_run_starts_with_what_really_runs(model: str, way: str) -> None:
    """Where a model of these options serves another adapter already: not "auto" but what is."""
    fields: dict[str, Any] = {"model": model, "dtype": "float32"}
    with CrossEncoderCompressor(**fields) as other:
        other.warm()
        for adapter, given in adapters(**fields):
            log = Log()
            await batch(adapter, given, {"callbacks": [log]}, way)
            runs = [it for it in log.starts.values() if it["name"] == NAME]
            assert [it["query"] for it in runs] == QUERIES
            for run in runs:
                facts = run["metadata"]
                assert (facts["backend"], facts["device"]) == ("onnx", "cpu")
                assert (facts["model"], facts["n_in"]) == (model, len(TEXTS))
            assert list(log.ends.values()) == [["end"]] * len(log.starts)


@pytest.mark.parametrize("way", ["batch", "abatch"])
@pytest.mark.parametrize("method", ["start", "end"])
@pytest.mark.parametrize("nth", [1, 3])
async def test_a_handler_that_raises_leaves_no_run_open(
    ready: Reranker, way: str, method: str, nth: int
) -> None:
    """Its error comes out, and another handler sees the end of every run that it saw begin."""
    for adapter, given in adapters(reranker=ready):
        log = Log()
        handlers = [log, Raising(method, nth)]
        with pytest.raises(LookupError, match=method):
            await batch(adapter, given, {"callbacks": handlers}, way)
        own = [run_id for run_id, run in log.starts.items() if run["name"] == NAME]
        assert len(own) == (nth if method == "start" else len(QUERIES))
        assert set(log.ends) == set(log.starts)
        ended = [log.ends[run_id] for run_id in own]
        if method == "start":
            assert ended == [["LookupError"]] * nth
