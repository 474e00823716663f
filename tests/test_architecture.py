"""The import contracts hold, each was seen to break, and importing the package stays light."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import grimp
import networkx as nx
import pytest

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "pyproject.toml"
CONTRACTS = tomllib.loads(CONFIG.read_text("utf-8"))["tool"]["importlinter"]["contracts"]

PLANTS = {
    # contract: (file, a line that breaks it, what the report must say)
    "layers": (
        "engine/batching.py",
        "from ..reranker import Reranker",
        "rerank_adapters.engine.batching -> rerank_adapters.reranker",
    ),
    "adapters": (
        "llama_index/__init__.py",
        "def late():\n    from ..scorers import cross_encoder",
        "rerank_adapters.llama_index -> rerank_adapters.scorers.cross_encoder",
    ),
    "scorers": (
        "scorers/cached.py",  # a new file: the contract does not list files by name
        "from .distinct import Distinct",
        "rerank_adapters.scorers.cached -> rerank_adapters.scorers.distinct",
    ),
    "backends": (
        "backends/openvino.py",
        "from .onnx import OnnxBackend",
        "rerank_adapters.backends.openvino -> rerank_adapters.backends.onnx",
    ),
    "rewrites": (
        "export/rewrites/half.py",
        "from .int8 import quantize",
        "rerank_adapters.export.rewrites.half -> rerank_adapters.export.rewrites.int8",
    ),
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
        before = path.read_text("utf-8") if path.exists() else '"""New."""'
        path.write_text(before + f"\n\n{line}\n", "utf-8")
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


THIRD_PARTY = {
    "adapter_fields": {"pydantic"},
    "backends.onnx": {"numpy", "onnxruntime"},
    "backends.openvino": {"numpy", "openvino"},
    "backends.torch": {"jinja2", "numpy", "sentence_transformers", "torch", "transformers"},
    "calibration": {"numpy"},
    "calls": {"numpy"},
    "checkpoints": {"numpy"},
    "checks": {"numpy"},
    "cherche": {"cherche"},
    "cli": {
        *("Stemmer", "bm25s", "bs4", "docx", "ir_measures", "langchain_core"),
        *(
            "langchain_text_splitters",
            "llama_index",
            "numpy",
            "pathspec",
            "pyarrow",
            "pypdf",
            "rich",
        ),
        "typer",
    },
    "document_tokens": {"numpy"},
    "early_exit": {"numpy"},
    "engine": {"numpy"},
    "export": {
        *("numpy", "onnx", "onnxruntime", "onnxscript", "sentence_transformers", "torch"),
        "transformers",
    },
    "families": {"numpy"},
    "haystack": {"haystack"},
    "langchain": {"langchain", "langchain_core", "langgraph", "pydantic", "typing_extensions"},
    "llama_index": {"llama_index", "pydantic"},
    "loading.assembly": {"numpy"},
    "loading.bundled": {"numpy"},
    "loading.exit_training": {"numpy"},
    "loading.exits": {"numpy"},
    "loading.hub": {"huggingface_hub"},
    "parity": {"numpy"},
    "progress": {"tqdm"},
    "protocols": {"numpy"},
    "ranking.plotting": {"matplotlib"},
    "ranking.ranking": {"numpy"},
    "ray": {"pyarrow", "ray", "starlette"},
    "scorers": {"numpy"},
    "scorers.cached": {"numpy"},
    "scorers.calibrated": {"numpy"},
    "scorers.cross_encoder": {"numpy"},
    "scorers.distinct": {"numpy"},
    "scorers.early_exit": {"numpy"},
    "scorers.long_documents": {"numpy"},
    "scorers.queued": {"numpy"},
    "scorers.remote": {"httpx", "numpy"},
    "testing": {"numpy"},
    "tokenization": {"nanotoken", "numpy", "tokenizers"},
    "texts": {"numpy"},
    "tokens": {"numpy"},
}
"""Which room may import which library. A new file stands in no room that lists what it owns, so
`scorers/elsewhere.py` and its aiohttp break this until somebody has thought about them."""


def third_party(package: Path) -> dict[str, set[str]]:
    """The libraries that each room of *package* imports, by the names of THIRD_PARTY."""
    found: dict[str, set[str]] = {}
    for file in package.rglob("*.py"):
        parts = file.relative_to(package).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        alone = parts[:1] in {("backends",), ("loading",), ("ranking",), ("scorers",)}
        names = {name for name in _imported(file) if name not in sys.stdlib_module_names}
        if names:
            found.setdefault(".".join(parts[: 2 if alone else 1]), set()).update(names)
    return found


def _imported(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(str(node.module).partition(".")[0])
    return names


def test_each_library_is_imported_where_it_belongs():
    """The table is exact, both ways: nothing unlisted, nothing listed that is gone."""
    assert third_party(ROOT / "rerank_adapters") == THIRD_PARTY


NEIGHBOURS = {"haystack": ["haystack-ai"]}
"""What brings a library that the tests' own environment lacks: see .ci/neighbours.txt."""


def _distribution(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def _undeclared(imported: set[str], declared: set[str]) -> set[str]:
    """The libraries among *imported* that no distribution of *declared* brings.

    One that is not installed is taken for the distribution of its name.
    """
    brings = {**NEIGHBOURS, **packages_distributions()}
    return {
        name
        for name in imported - sys.stdlib_module_names
        if not declared & {_distribution(it) for it in brings.get(name, [name])}
    }


def test_every_imported_distribution_is_declared():
    """The package's by itself or an extra, the tests' and notebooks' by the test group as well."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    extras = project["project"]["optional-dependencies"].values()
    declared = {_distribution(it) for it in project["project"]["dependencies"]}
    declared |= {_distribution(it) for extra in extras for it in extra}
    used = set().union(*third_party(ROOT / "rerank_adapters").values())
    assert _undeclared(used, declared) == set()
    assert _undeclared({"aiohttp"}, declared) == {"aiohttp"}
    groups = project["dependency-groups"]
    test = declared | {_distribution(it) for it in [*groups["test"], *groups["peers"]]}
    for folder in ("tests", "notebooks", ".ci", ".docs"):
        files = list((ROOT / folder).rglob("*.py"))
        beside = {file.stem for file in files} | {"rerank_adapters", "tests", "notebooks"}
        used = {name for file in files for name in _imported(file)} - beside
        assert _undeclared(used, test) == set(), folder


@pytest.mark.parametrize(
    ("file", "line", "seen"),
    [
        ("scorers/elsewhere.py", "import aiohttp", ("scorers.elsewhere", "aiohttp")),
        ("scorers/cached.py", "def late():\n    import diskcache", ("scorers.cached", "diskcache")),
        ("backends/tensorrt.py", "import tensorrt", ("backends.tensorrt", "tensorrt")),
        ("reranker.py", "from langchain_core import documents", ("reranker", "langchain_core")),
        ("stray.py", "import requests", ("stray", "requests")),
    ],
)
def test_an_unlisted_import_is_seen(tmp_path, file: str, line: str, seen: tuple):
    """Whatever a new or old file imports beyond the table shows under its room."""
    shutil.copytree(ROOT / "rerank_adapters", tmp_path / "package")
    path = tmp_path / "package" / file
    path.write_text((path.read_text("utf-8") if path.exists() else "") + f"\n{line}\n", "utf-8")
    found = third_party(tmp_path / "package")
    room, library = seen
    assert found[room] - THIRD_PARTY.get(room, set()) == {library}


def circles(graph: grimp.ImportGraph) -> list[set[str]]:
    """Groups of modules that import each other, however far around; type-only imports count."""
    edges = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    network = nx.DiGraph({name: list(targets) for name, targets in edges.items()})
    return [group for group in nx.strongly_connected_components(network) if len(group) > 1]


def test_no_file_imports_itself_around_a_corner():
    """No circle at file level, `if TYPE_CHECKING` included."""
    assert circles(grimp.build_graph("rerank_adapters", cache_dir=None)) == []


def test_a_planted_circle_is_seen(tmp_path, monkeypatch):
    """One type-only import back is enough."""
    package = tmp_path / "circling"
    package.mkdir()
    (package / "__init__.py").write_text("", "utf-8")
    (package / "one.py").write_text("from .two import B\n", "utf-8")
    (package / "two.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .one import A\n", "utf-8"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert circles(grimp.build_graph("circling", cache_dir=None)) == [
        {"circling.one", "circling.two"}
    ]


MOST_LINES = {"function": 41, "class": 239, "reranker.py": 294}
"""Lines of code: docstrings, comments, blank lines and declarations of fields do not count."""


def code_lines(source: str, node: ast.AST) -> int:
    """The lines of *node* that hold code."""
    counted = set(
        range(getattr(node, "lineno", 1), getattr(node, "end_lineno", source.count("\n") + 1) + 1)
    )
    lines = source.splitlines()
    counted &= {n for n, line in enumerate(lines, 1) if line.strip() and line.strip()[0] != "#"}
    for part in ast.walk(node):
        words = isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant)
        if words and isinstance(part.value.value, str):
            counted -= set(range(part.lineno, part.end_lineno + 1))
        if isinstance(part, ast.ClassDef):
            for field in part.body:
                if isinstance(field, ast.AnnAssign):
                    counted -= set(range(field.lineno, field.end_lineno + 1))
    return len(counted)


def oversized(source: str) -> list[tuple[str, int]]:
    """Functions and classes of *source* above their limits, and how long they are."""
    found = []
    for node in ast.walk(ast.parse(source)):
        kind = "class" if isinstance(node, ast.ClassDef) else "function"
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            lines = code_lines(source, node)
            if lines > MOST_LINES[kind]:
                found.append((node.name, lines))
    return found


def test_functions_classes_and_the_facade_stay_small():
    """No function over 40 lines, no class over 239; the facade within its own."""
    package = ROOT / "rerank_adapters"
    large = {
        file.relative_to(package).as_posix(): oversized(file.read_text("utf-8"))
        for file in package.rglob("*.py")
    }
    assert {file: found for file, found in large.items() if found} == {}
    facade = (package / "reranker.py").read_text("utf-8")
    assert code_lines(facade, ast.parse(facade)) <= MOST_LINES["reranker.py"]


def test_an_oversized_function_is_seen():
    """42 lines of code are one too many; comments and a docstring beside 40 are not."""
    body = "\n".join(f"    x = {n}" for n in range(41))
    assert oversized(f"def f():\n{body}\n") == [("f", 42)]
    words = '    """Words."""\n' + "    # a comment\n" * 20
    assert oversized(f"def f():\n{words}{body[: body.rindex('    x')]}\n") == []


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
