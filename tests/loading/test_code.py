"""Code in another repository: fetched as the checkpoint is, from a hub on loopback."""

from __future__ import annotations

import http.server
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rerank_adapters import ModelError, Reranker
from tests.checkpoints import PAIRS, build, oracle
from tests.loading.test_hub import lay_out_cache, oid, serving
from tests.replicas import copy_of

COMMIT = "89abcdef0123456789abcdef0123456789abcdef"
SOME = PAIRS[:6]
CODE = {
    "configuration.py": b"from transformers import BertConfig\n"
    b"class NewConfig(BertConfig):\n    model_type = 'new'\n",
    "modeling.py": b"from transformers import BertForSequenceClassification\n"
    b"from .configuration import NewConfig\n"
    b"class NewForSequenceClassification(BertForSequenceClassification):\n"
    b"    config_class = NewConfig\n",
}
"""A class of its own beside the weights, as gte-multilingual's lies in another repository."""


@pytest.fixture
def hub() -> Iterator[tuple[str, list[str]]]:
    """A hub that serves CODE as org/new-impl, and keeps what it was asked."""
    asked: list[str] = []

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            path = self.path.partition("?")[0]
            asked.append(path)
            if path.startswith("/api/models/org/new-impl/tree/"):
                tree = [
                    {"type": "file", "path": name, "size": len(data), "oid": oid(data)}
                    for name, data in CODE.items()
                ]
                return self._send(json.dumps(tree).encode())
            if path.startswith("/api/models/org/new-impl"):
                siblings = [{"rfilename": name} for name in CODE]
                about = {"id": "org/new-impl", "sha": COMMIT, "siblings": siblings}
                return self._send(json.dumps(about).encode())
            found = re.fullmatch(r"/org/new-impl/resolve/[^/]+/(.+)", path)
            if found is None or found[1] not in CODE:
                return self.send_error(404)
            return self._send(CODE[found[1]], body=body)

        def _send(self, data: bytes, *, body: bool = True) -> None:
            self.send_response(200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{oid(data)}"')
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with serving(Hub) as address:
        yield address, asked


def gte(folder: Path) -> Path:
    """The tiny BERT as gte-multilingual is stored: its classes are in org/new-impl."""
    use = {
        "AutoConfig": "org/new-impl--configuration.NewConfig",
        "AutoModelForSequenceClassification": (
            "org/new-impl--modeling.NewForSequenceClassification"
        ),
    }
    names = ["NewForSequenceClassification"]
    return copy_of("bert", folder, auto_map=use, model_type="new", architectures=names)


SCRIPT = """
import json, sys
from rerank_adapters import ModelError, Reranker
folder, pairs = sys.argv[1], [tuple(pair) for pair in json.loads(sys.argv[2])]
try:
    with Reranker(folder, backend="torch", device="cpu", **json.loads(sys.argv[3])) as reranker:
        print(json.dumps(reranker.score_pairs(pairs).tolist()))
except ModelError as error:
    print("ModelError:", error)
"""


def scored(folder: Path, endpoint: str, home: Path, **options: object) -> str:
    """What SCRIPT prints in a new interpreter whose hub is *endpoint* and whose cache *home*."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    clean |= {"HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HOME": str(home)}
    values = {"trust_remote_code": True, **options}
    arguments = [str(folder), json.dumps(SOME), json.dumps(values)]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        env=clean, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_code_of_another_repository_is_fetched_at_first_use(
    hub: tuple[str, list[str]], tmp_path: Path
) -> None:
    """Into the cache asked for, once; then without a hub."""
    folder, (endpoint, asked) = gte(tmp_path / "model"), hub
    cache = str(tmp_path / "cache")
    expected = oracle(build("bert"), SOME)
    first = json.loads(scored(folder, endpoint, tmp_path / "home", cache_folder=cache))
    np.testing.assert_allclose(first, expected, rtol=0, atol=1e-4)
    assert any(path.endswith("modeling.py") for path in asked)
    asked.clear()
    options = {"cache_folder": cache, "local_files_only": True}
    again = json.loads(scored(folder, endpoint, tmp_path / "home", **options))
    assert (again, asked) == (first, [])


def test_offline_another_cache_has_nothing_of_it(tmp_path: Path) -> None:
    """local_files_only holds for the code too; a file that is not there is named."""
    folder, cache = gte(tmp_path / "model"), tmp_path / "cache"
    options = {"trust_remote_code": True, "local_files_only": True, "cache_folder": str(cache)}
    with pytest.raises(ModelError, match=r"takes its code from another repository.*org/new-impl"):
        Reranker(str(folder), backend="torch", device="cpu", **options)
    files = {"configuration.py": CODE["configuration.py"]}
    lay_out_cache(cache, "org/new-impl", files)
    with pytest.raises(ModelError, match=r"code from org/new-impl, and modeling\.py is not there"):
        Reranker(str(folder), backend="torch", device="cpu", **options)


def test_without_trust_nothing_is_asked_for(tmp_path: Path) -> None:
    """The class is refused with the cure, and no hub is looked for."""
    with pytest.raises(ModelError, match="trust_remote_code=True"):
        Reranker(str(gte(tmp_path / "model")), backend="torch", device="cpu")
