"""Hub ids: a cache laid out as huggingface_hub lays it out, and a hub on loopback."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest

from rerank_adapters import ModelError, Reranker
from rerank_adapters.loading.hub import HubModel, LocalFolder, matching, open_model
from tests.checkpoints import PAIRS
from tests.exported import exported

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b'{"model_type": "bert"}',
    "tokenizer.json": b"{}",
    "onnx/model.onnx": b"graph",
    "onnx/model.onnx_data": b"weights",
    "onnx/model_quantized.onnx": b"small graph",
    "model.safetensors": b"many weights",
    "openvino/openvino_model.bin": b"never wanted",
}


def lay_out_cache(
    cache: Path, model: str, files: dict[str, bytes], *, revision: str = "main"
) -> Path:
    """blobs, refs and a snapshot of relative links: the layout huggingface_hub documents."""
    root = cache / f"models--{model.replace('/', '--')}"
    (root / "blobs").mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / revision).write_text(COMMIT)
    snapshot = root / "snapshots" / COMMIT
    for name, content in files.items():
        blob = root / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        link = snapshot / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


def test_a_cached_model_is_found_without_network(tmp_path: Path) -> None:
    """local_files_only reads the snapshot of the revision asked for, and tells its commit."""
    snapshot = lay_out_cache(tmp_path, "org/reranker", FILES)
    source = open_model("org/reranker", cache_folder=str(tmp_path), local_files_only=True)
    assert isinstance(source, HubModel)
    assert source.revision == COMMIT
    assert source.files == frozenset(FILES)
    assert (source.fetch(["onnx/model.onnx"]) / "onnx/model.onnx").read_bytes() == b"graph"
    assert source.fetch(["*"]) == snapshot


def test_a_revision_that_is_not_cached_is_an_error(tmp_path: Path) -> None:
    """Another branch is not silently answered by main."""
    lay_out_cache(tmp_path, "org/reranker", FILES)
    with pytest.raises(ModelError, match=r"model 'org/reranker' is no local folder.*default"):
        open_model("org/reranker", revision="v2", cache_folder=str(tmp_path), local_files_only=True)


def test_a_model_that_is_not_cached_names_the_cures(tmp_path: Path) -> None:
    """Offline and unknown: the message names the model and what to do."""
    with pytest.raises(
        ModelError, match=r"'org/none'.*check the name, pass token=.*go online once"
    ):
        open_model("org/none", cache_folder=str(tmp_path), local_files_only=True)


def test_the_offline_switch_of_huggingface_hub_is_honoured(tmp_path: Path) -> None:
    """HF_HUB_OFFLINE=1 answers from the cache and never opens a socket."""
    lay_out_cache(tmp_path, "org/reranker", FILES)
    script = (
        "import socket, sys\n"
        "def refuse(*_): raise AssertionError('a socket was opened')\n"
        "socket.socket.connect = refuse\n"
        "from rerank_adapters.loading.hub import open_model\n"
        "print(len(open_model('org/reranker', cache_folder=sys.argv[1]).files))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, str(len(FILES))), done.stderr


@pytest.mark.parametrize(
    "name", ["/no/such/folder", "./none", "~/none-such-folder", "~no-such-user/x"]
)
def test_a_path_that_is_no_folder_is_not_taken_for_a_hub_id(name: str) -> None:
    """A mistyped path asks no hub."""
    with pytest.raises(ModelError, match="model must be a folder or a hub id: no folder at"):
        open_model(name)


def test_a_local_folder_needs_no_hub(tmp_path: Path) -> None:
    """A folder lists its own files, and everything there is, is here."""
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx/model.onnx").write_bytes(b"")
    source = open_model(str(tmp_path))
    assert isinstance(source, LocalFolder)
    assert source.files == {"onnx/model.onnx"}
    assert source.fetch(["nothing"]) == tmp_path


def test_matching_is_sorted_and_by_pattern() -> None:
    """Fnmatch patterns against whole paths."""
    names = frozenset(FILES)
    assert matching(names, ["onnx/model.onnx*"]) == ["onnx/model.onnx", "onnx/model.onnx_data"]


def test_the_token_is_not_shown() -> None:
    """Repr of a hub model and of a configuration keep the token to themselves."""
    from rerank_adapters import RerankerConfig

    assert "hf_secret" not in repr(RerankerConfig(model="org/x", token="hf_secret"))


@pytest.fixture
def hub_server() -> Iterator[tuple[str, list[str]]]:  # noqa: C901  # one small server, whole
    """A hub on loopback that serves FILES and keeps what it was asked."""
    asked: list[str] = []
    revisions = {"main", "v2", COMMIT}

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            path = self.path.partition("?")[0]
            if "/org/private" in path and self.headers["Authorization"] != "Bearer hf_right":
                return self.send_error(401)
            path = path.replace("/org/private", "/org/reranker")
            named = re.search(r"/(?:revision|tree|resolve)/([^/]+)", path)
            if named and named[1] not in revisions:
                return self.send_error(404)
            if path.startswith("/api/models/org/reranker/tree/"):
                return self._json(
                    [
                        {"type": "file", "path": name, "size": len(data), "oid": oid(data)}
                        for name, data in FILES.items()
                    ]
                )
            if path.startswith("/api/models/org/reranker"):
                siblings = [{"rfilename": name} for name in FILES]
                return self._json({"id": "org/reranker", "sha": COMMIT, "siblings": siblings})
            name = path.partition(f"/resolve/{COMMIT}/")[2]
            if name not in FILES:
                self.send_error(404)
                return None
            if body:
                asked.append(name)
            self.send_response(200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{oid(FILES[name])}"')
            self.send_header("Content-Length", str(len(FILES[name])))
            self.end_headers()
            if body:
                self.wfile.write(FILES[name])
            return None

        def _json(self, value: object) -> None:
            data = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with serving(Hub) as address:
        yield address, asked


@contextmanager
def serving(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    """A server on loopback while inside; its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def oid(data: bytes) -> str:
    """What a hub calls these bytes."""
    return hashlib.sha1(data).hexdigest()


def _with_hub(endpoint: str, script: str, cache: Path, **environment: str) -> str:
    """What *script* prints in a new interpreter whose hub is *endpoint*; argv[1] is *cache*."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    clean |= {"HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HOME": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", script, str(cache)],
        env=clean | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


OPEN = """
import sys
from rerank_adapters import ModelError
from rerank_adapters.loading.hub import open_model
def show(model, **options):
    try:
        print(len(open_model(model, cache_folder=sys.argv[1], **options).files))
    except ModelError as error:
        print("ModelError:", error)
"""


def test_the_token_opens_a_private_model(hub_server: tuple[str, list[str]], tmp_path: Path) -> None:
    """It is sent as the bearer; without it, or with another, the error names the cure, not it."""
    script = OPEN + (
        "show('org/private')\n"
        "show('org/private', token='hf_wrong')\n"
        "show('org/private', token='hf_right')\n"
    )
    none, wrong, right = _with_hub(hub_server[0], script, tmp_path).splitlines()
    for refused in (none, wrong):
        assert refused.startswith("ModelError: model 'org/private'")
        assert "pass token= for a private or gated model" in refused
        assert "hf_" not in refused
    assert right == str(len(FILES))


def test_the_revision_asked_for_is_the_one_fetched(
    hub_server: tuple[str, list[str]], tmp_path: Path
) -> None:
    """A tag the hub has is resolved to its commit; one it lacks is an error, not main."""
    script = OPEN + "show('org/reranker', revision='v2')\nshow('org/reranker', revision='v3')\n"
    there, absent = _with_hub(hub_server[0], script, tmp_path).splitlines()
    assert there == str(len(FILES))
    assert absent.startswith("ModelError: model 'org/reranker'")
    refs = tmp_path / "models--org--reranker" / "refs"
    assert (refs / "v2").read_text() == COMMIT
    assert not (refs / "v3").exists()


def test_the_second_download_is_of_the_commit_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A push in between moves the branch: the weights are still those of the configuration."""
    asked: list[str | None] = []

    def download(model: str, *, revision: str | None, **_: object) -> str:
        asked.append(revision)
        return str(tmp_path / COMMIT)

    (tmp_path / COMMIT).mkdir()
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    source = open_model("org/reranker", revision="main", local_files_only=True)
    source.fetch(["*.safetensors"])
    assert asked == ["main", COMMIT]


def test_a_dead_hub_leaves_the_cache(tmp_path: Path) -> None:
    """Without network and without any flag a cached model loads; another names the cures."""
    lay_out_cache(tmp_path, "org/reranker", FILES)
    script = OPEN + "show('org/reranker')\nshow('org/none')\n"
    cached, none = _with_hub("http://127.0.0.1:9", script, tmp_path).splitlines()
    assert cached == str(len(FILES))
    assert none.startswith("ModelError: model 'org/none' is no local folder")


def test_a_hub_id_scores_from_the_cache_as_its_folder_does(tmp_path: Path) -> None:
    """End to end through links, with the graph in `onnx/` and its weights beside it: same bits."""
    source = exported("bert")
    graph = onnx.load(source / "model.onnx")
    (tmp_path / "onnx").mkdir()
    onnx.save_model(
        graph, tmp_path / "onnx/model.onnx", save_as_external_data=True,
        location="model.onnx_data", size_threshold=1024,
    )  # fmt: skip
    files = {path.name: path.read_bytes() for path in source.glob("*.json")}
    files |= {f"onnx/{path.name}": path.read_bytes() for path in (tmp_path / "onnx").iterdir()}
    lay_out_cache(tmp_path / "hub", "org/x", files)
    with Reranker.from_pretrained(str(source), backend="onnx", dtype="float32") as folder:
        wanted = folder.score_pairs(PAIRS)
    with Reranker.from_pretrained(
        "org/x", cache_folder=str(tmp_path / "hub"), local_files_only=True, device="cpu"
    ) as hub:
        assert hub.info().revision == COMMIT
        assert hub.info().backend == "onnx"
        np.testing.assert_array_equal(hub.score_pairs(PAIRS), wanted)


def test_only_the_files_needed_are_asked_of_the_hub(
    hub_server: tuple[str, list[str]], tmp_path: Path
) -> None:
    """Choosing the ONNX file downloads it, its weights and the small files; nothing else."""
    endpoint, asked = hub_server
    script = (
        "import sys; from rerank_adapters.loading.hub import CONFIG_FILES, open_model\n"
        "from rerank_adapters.checkpoints import choose_graph\n"
        "source = open_model('org/reranker', cache_folder=sys.argv[1])\n"
        "file = choose_graph(source.files, dtype='float32', file_name=None)\n"
        "folder = source.fetch([*CONFIG_FILES, file, f'{file}*data*'])\n"
        "print(source.revision, (folder / file).read_text())\n"
    )
    assert _with_hub(endpoint, script, tmp_path).split() == [COMMIT, "graph"]
    assert set(asked) == {
        "config.json",
        "tokenizer.json",
        "onnx/model.onnx",
        "onnx/model.onnx_data",
    }
