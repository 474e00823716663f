"""Folders of small files, for tests of what is read from them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tests.checkpoints import build


def without_weights(folder: Path, kind: str = "bert", **changes: dict[str, Any]) -> Path:
    """The checkpoint *kind* in *folder*, with *changes* written into its JSON files."""
    shutil.copytree(build(kind), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    for name, change in changes.items():
        file = folder / f"{name}.json"
        content = json.loads(file.read_text()) if file.is_file() else {}
        file.write_text(json.dumps({**content, **change}))
    return folder
