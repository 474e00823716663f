"""The import contracts hold, each was seen to break, and importing the package stays light."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "pyproject.toml"
CONTRACTS = tomllib.loads(CONFIG.read_text("utf-8"))["tool"]["importlinter"]["contracts"]

PLANTS = {
    # contract: (file, a line that breaks it, what the report must say)
    "layers": (
        "batching.py",
        "from .reranker import Reranker",
        "rerank_adapters.batching -> rerank_adapters.reranker",
    ),
    "adapters": (
        "llama_index/__init__.py",
        "def late():\n    from ..scorers import cross_encoder",
        "rerank_adapters.llama_index -> rerank_adapters.scorers.cross_encoder",
    ),
    "scorers": (
        "scorers/scheduling.py",
        "from . import cross_encoder",
        "rerank_adapters.scorers.scheduling -> rerank_adapters.scorers.cross_encoder",
    ),
    "backends": (
        "backends/onnx.py",
        "from .torch import TorchBackend",
        "rerank_adapters.backends.onnx -> rerank_adapters.backends.torch",
    ),
    "onnxruntime": (
        "families/__init__.py",
        "import onnxruntime",
        "rerank_adapters.families -> onnxruntime",
    ),
    "torch": (
        "scorers/cross_encoder.py",
        "def late():\n    import transformers",
        "rerank_adapters.scorers.cross_encoder -> transformers",
    ),
    "onnx": ("backends/onnx.py", "import onnx", "rerank_adapters.backends.onnx -> onnx"),
    "hub": (
        "batching.py",
        "import huggingface_hub",
        "rerank_adapters.batching -> huggingface_hub",
    ),
    "langchain": (
        "reranker.py",
        "import langchain_core",
        "rerank_adapters.reranker -> langchain_core",
    ),
    "llama_index": (
        "langchain/__init__.py",
        "import llama_index.core",
        "rerank_adapters.langchain -> llama_index",
    ),
    "cli": ("values.py", "import typer", "rerank_adapters.values -> typer"),
    "plotting": ("cli/models.py", "import matplotlib", "rerank_adapters.cli.models -> matplotlib"),
}


def _lint(folder: Path) -> subprocess.CompletedProcess[str]:
    code = (
        "import sys; from importlinter.cli import lint_imports;"
        f"sys.exit(lint_imports(config_filename={str(CONFIG)!r}, cache_dir=None, no_logo=True))"
    )
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )


def test_every_contract_holds():
    """`lint-imports` keeps every contract of pyproject.toml on the package as it is."""
    done = _lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_contract_has_a_planted_violation():
    """No contract is listed that nobody has seen break."""
    assert {contract["id"] for contract in CONTRACTS} == set(PLANTS)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report on a copy that breaks every contract once and has a stray module."""
    folder = tmp_path_factory.mktemp("planted")
    shutil.copytree(ROOT / "rerank_adapters", folder / "rerank_adapters")
    for file, line, _ in PLANTS.values():
        path = folder / "rerank_adapters" / file
        path.write_text(path.read_text("utf-8") + f"\n\n{line}\n", "utf-8")
    (folder / "rerank_adapters" / "stray.py").write_text('"""In no layer."""\n', "utf-8")
    done = _lint(folder)
    assert done.returncode == 1, done.stdout + done.stderr
    return " ".join(done.stdout.split())


@pytest.mark.parametrize("contract", PLANTS)
def test_contract_breaks_on_its_planted_violation(planted: str, contract: str):
    """The report names the planted import, under the contract it breaks."""
    name = next(it["name"] for it in CONTRACTS if it["id"] == contract)
    assert f"{name} BROKEN" in planted
    assert PLANTS[contract][2] in planted


def test_a_module_in_no_layer_breaks_the_layers(planted: str):
    """A new top-level module must be given its layer."""
    assert "rerank_adapters.stray" in planted


def _fresh(code: str) -> str:
    """What *code* prints in a new interpreter whose import path begins at the repository's root."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_loads_numpy_at_most():
    """`import rerank_adapters` brings the standard library, numpy and itself, and nothing else."""
    code = """
import sys
import numpy
before = set(sys.modules)
import rerank_adapters
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(sorted(new - sys.stdlib_module_names - {"numpy", "rerank_adapters"}))
"""
    assert _fresh(code) == "[]"


def test_importing_the_package_changes_no_global_state():
    """Root logger, warning filters, signal handlers, environment and locale stay as they were."""
    code = """
import locale, logging, os, signal, sys, threading, warnings
import numpy
def state():
    root = logging.getLogger()
    return (root.level, list(root.handlers), logging.raiseExceptions, list(warnings.filters),
            dict(os.environ), [signal.getsignal(it) for it in signal.valid_signals()],
            locale.setlocale(locale.LC_ALL), sys.excepthook, threading.excepthook,
            threading.active_count(), numpy.geterr(), list(sys.path))
before = state()
import rerank_adapters
rerank_adapters.Reranker
assert state() == before
assert all(
    not logger.handlers and logger.level == logging.NOTSET
    for name, logger in logging.root.manager.loggerDict.items()
    if name.startswith("rerank_adapters") and isinstance(logger, logging.Logger)
)
print("same")
"""
    assert _fresh(code) == "same"


def test_star_import_works_without_any_optional_library():
    """`from rerank_adapters import *` needs numpy and tokenizers alone, as without any extra."""
    code = """
import sys
absent = ["torch", "transformers", "sentence_transformers", "onnx", "langchain", "langchain_core",
          "langchain_classic", "llama_index", "typer", "rich", "bm25s", "ir_measures", "matplotlib"]
for name in absent:
    sys.modules[name] = None
from rerank_adapters import *
import rerank_adapters.protocols
print(Reranker.__name__, RerankerConfig().model)
"""
    assert _fresh(code) == "Reranker default"
