"""What type checkers say of a user's module: mypy and pyright, offline, each in seconds.

mypy reads this package, the two frameworks and what their classes are made of; every other library
(torch alone takes it a minute) is Any to it. pyright is basedpyright, whose wheel brings its
JavaScript along, with pyright's own rules.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLLOWED = "rerank_adapters langchain_core llama_index llama_index_instrumentation pydantic numpy"
MYPY = f"""\
[mypy]
strict = True
follow_imports = skip
[mypy-{",".join(f"{name}.*" for name in FOLLOWED.split())}]
follow_imports = silent
"""
PYRIGHT = {"typeCheckingMode": "standard", "include": ["user.py"], "extraPaths": [str(ROOT)]}


def mypy(code: str, folder: Path) -> list[str]:
    """Lines of `mypy --strict` on *code*: "LINE: KIND: TEXT". *folder* is written into."""
    (folder / "mypy.ini").write_text(MYPY)
    options = ["--config-file", str(folder / "mypy.ini"), "--cache-dir", str(folder / "cache")]
    command = [sys.executable, "-m", "mypy", "--no-pretty", *options, str(_written(code, folder))]
    done = _run(command)
    seen = re.findall(r"user\.py:(.*)$", done.stdout, re.MULTILINE)
    assert len(seen) == len(done.stdout.splitlines()) - 1, done.stdout + done.stderr
    return seen


def pyright(code: str, folder: Path) -> list[str]:
    """Errors and revealed types of pyright on *code*, likewise."""
    (folder / "pyrightconfig.json").write_text(json.dumps(PYRIGHT))
    _written(code, folder)
    options = ["--project", str(folder), "--pythonpath", sys.executable, "--outputjson"]
    done = _run([sys.executable, "-m", "basedpyright", *options])
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return [
        f"{one['range']['start']['line'] + 1}: {one['severity']}: {one['message']}"
        for one in json.loads(done.stdout)["generalDiagnostics"]
    ]


def _written(code: str, folder: Path) -> Path:
    module = folder / "user.py"
    module.write_text(code)
    return module


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """In the repository's folder, so that it is this package that is read."""
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
