"""A hub on loopback for this process: what tests put into it, and what it was asked."""

from __future__ import annotations

import http.server
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.loading.test_hub import oid, serving

COMMIT = "89abcdef0123456789abcdef0123456789abcdef"


@dataclass
class Hub:
    """Repositories by id, each a mapping of files; `asked` are the paths of requests, in order."""

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def put(self, model: str, folder: Path) -> None:
        """Serve every file of *folder* as *model*."""
        files = (path for path in sorted(folder.rglob("*")) if path.is_file())
        self.repositories[model] = {
            path.relative_to(folder).as_posix(): path.read_bytes() for path in files
        }

    def answer(self, path: str) -> tuple[bytes, bytes] | None:
        """Return the body for a path of the hub's API, and the bytes that its tag is made of."""
        self.asked.append(path)
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            data = self.repositories.get(found[1], {}).get(found[2])
            return None if data is None else (data, data)
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)(/tree/.*|/revision/.*)?", path)
        if found is None or found[1] not in self.repositories:
            return None
        files = self.repositories[found[1]]
        about: Any = {
            "id": found[1],
            "sha": COMMIT,
            "siblings": [{"rfilename": it} for it in files],
        }
        if (found[2] or "").startswith("/tree"):
            about = [
                {"type": "file", "path": name, "size": len(data), "oid": oid(data)}
                for name, data in files.items()
            ]
        return json.dumps(about).encode(), b""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """An empty hub, which huggingface_hub asks here; code that is fetched is kept by this test."""
    made = Hub()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            found = made.answer(self.path.partition("?")[0])
            if found is None:
                return self.send_error(404)
            self.send_response(200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{oid(found[1])}"')
            self.send_header("Content-Length", str(len(found[0])))
            self.end_headers()
            if body:
                self.wfile.write(found[0])
            return None

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with serving(Handler) as address:
        constants = "huggingface_hub.constants"
        template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(f"{constants}.ENDPOINT", address)
        monkeypatch.setattr(f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(f"{constants}.HF_HUB_OFFLINE", False)
        monkeypatch.setattr(
            "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules")
        )
        yield made
