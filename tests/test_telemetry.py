"""Law 8, no telemetry: importing and using each extra opens no connection of Python's, and turns
ONNX Runtime's own reporter off before it begins.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

BLOCK = """
import socket, sys

def refuse(self, address, *rest):
    tried.append(address)
    raise OSError(f"blocked: {address}")

def unknown(host, *rest, **options):
    tried.append(host)
    raise socket.gaierror(f"blocked: {host}")

tried = []
socket.socket.connect = socket.socket.connect_ex = socket.socket.sendto = refuse
socket.getaddrinfo = socket.gethostbyname = unknown
"""

USES = {
    "base": """
from rerank_adapters import Reranker
with Reranker() as reranker:
    assert reranker.rerank("how tall is it?", ["It is red.", "It is 70 m tall."])[0].index == 1
import os
assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"  # set before onnxruntime was imported
""",
    "langchain": """
from langchain_core.documents import Document
from rerank_adapters.langchain import CrossEncoderCompressor, RerankingMiddleware
documents = [Document("It is red."), Document("It is 70 m tall.")]
(best,) = CrossEncoderCompressor(top_n=1).compress_documents(documents, "how tall is it?")
assert best.page_content == "It is 70 m tall."
""",
    "llama_index": """
from llama_index.core.schema import NodeWithScore, TextNode
from rerank_adapters.llama_index import CrossEncoderPostprocessor
nodes = [NodeWithScore(node=TextNode(text=text)) for text in ("It is red.", "It is 70 m tall.")]
(best,) = CrossEncoderPostprocessor(top_n=1).postprocess_nodes(nodes, query_str="how tall is it?")
assert best.node.text == "It is 70 m tall."
""",
    "torch": """
from rerank_adapters import Reranker
with Reranker(backend="torch", device="cpu") as reranker:
    assert reranker.info().backend == "torch"
    assert reranker.rerank("how tall is it?", ["It is red.", "It is 70 m tall."])[0].index == 1
""",
    "cli": """
from rerank_adapters.cli import main
sys.argv = ["rerank-adapters", "info", "--json"]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
""",
}


@pytest.mark.parametrize("extra", USES)
def test_no_connection_is_opened(extra: str, tmp_path: Path) -> None:
    """Not even one that failed quietly: what was tried is counted, whoever catches the error."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HF_", "LANGSMITH_", "LANGCHAIN_", "ORT_", "DO_NOT_TRACK"))
    }
    script = BLOCK + USES[extra] + "\nassert not tried, tried\nprint('none')"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=environment | {"HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("none\n")


def test_the_block_sees_a_connection(tmp_path: Path) -> None:
    """The test's own test: a refused connection is noticed though its error is caught."""
    use = "try:\n    socket.create_connection(('127.0.0.1', 9))\nexcept OSError:\n    pass"
    done = subprocess.run(
        [sys.executable, "-c", f"{BLOCK}\n{use}\nassert not tried, tried"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "AssertionError: ['127.0.0.1']" in done.stderr
