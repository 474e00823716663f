"""What each module needs: langchain-core alone, and `langchain` for the middleware alone."""

from __future__ import annotations

import subprocess
import sys

import pytest

import rerank_adapters.langchain as adapter

HIDE = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hidden())
from rerank_adapters.errors import MissingDependencyError
"""


def in_a_fresh_process(hidden: set[str], script: str, *arguments: str) -> str:
    """What *script* prints where the packages *hidden* are not installed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"HIDDEN = {hidden!r}{HIDE}{script}", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_langchain_core_the_error_names_the_extra() -> None:
    """At import, before anything else."""
    script = """
try:
    import rerank_adapters.langchain
except MissingDependencyError as error:
    print(error)
"""
    cure = "`langchain_core` is not installed: pip install 'rerank-adapters[langchain]'\n"
    assert in_a_fresh_process({"langchain_core"}, script) == cure


def test_langchain_core_alone_is_enough(model: str) -> None:
    """Compressor, retriever, cross-encoder and a chain, without torch as well."""
    script = """
from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda, RunnableParallel, RunnablePassthrough
from rerank_adapters.langchain import (
    CrossEncoderCompressor, LangChainCrossEncoder, RerankingRetriever,
)
fields = dict(model=sys.argv[1], backend="onnx", device="cpu")
find = RunnableLambda(lambda _: [Document("rain fell"), Document("short wavelengths scatter")])
compressor = CrossEncoderCompressor(**fields)
chain = RunnableParallel(documents=find, query=RunnablePassthrough()) | compressor
found = RerankingRetriever(base_retriever=find, **fields).invoke("sky")
assert chain.invoke("sky") == found and len(found) == 2
score = LangChainCrossEncoder(**fields).score([("sky", found[0].page_content)])
assert abs(score[0] - found[0].metadata["relevance_score"]) < 1e-5
try:
    from rerank_adapters.langchain import RerankingMiddleware
except MissingDependencyError as error:
    print(error.module)
"""
    hidden = {"langchain", "langchain_classic", "langchain_community", "langgraph", "torch"}
    assert in_a_fresh_process(hidden, script, model) == "langchain\n"


def test_the_middleware_is_loaded_on_first_use() -> None:
    """Importing the adapter imports neither langchain nor langgraph, nor any runtime."""
    script = """
import rerank_adapters.langchain as adapter
print(sorted({"langchain", "langgraph", "torch", "onnxruntime"} & set(sys.modules)))
print(adapter.RerankingMiddleware.__name__, "langchain" in sys.modules)
"""
    assert in_a_fresh_process(set(), script) == "[]\nRerankingMiddleware True\n"


def test_public_names() -> None:
    """dir() lists them, the lazy one too; others are an AttributeError."""
    assert dir(adapter) == sorted(adapter.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Reranker3000'"):
        _ = adapter.Reranker3000
