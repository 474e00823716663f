"""What is not installed, not writable or full ends in our error with the cure, on every way in."""

from __future__ import annotations

import errno
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from rerank_adapters import ConfigError, MissingDependencyError, Reranker, RerankError
from rerank_adapters.errors import ModelError
from rerank_adapters.export.files import draft
from rerank_adapters.ranking import RankedDocument, Ranking
from tests.checkpoints import build
from tests.exported import exported

ENTRIES = {
    # the module that is imported: (what it needs, the extra that brings it)
    "rerank_adapters.export": [
        ("onnx", "export"),
        ("onnxscript", "export"),
        ("sentence_transformers", "export"),
    ],
    "rerank_adapters.haystack": [("haystack", "haystack")],
    "rerank_adapters.langchain": [("langchain_core", "langchain")],
    "rerank_adapters.langchain.middleware": [("langchain", "langchain-agents")],
    "rerank_adapters.llama_index": [("llama_index.core", "llama-index")],
    "rerank_adapters.ranking.plotting": [("matplotlib", "plot")],
}
CASES = [(entry, *needed) for entry, several in ENTRIES.items() for needed in several]


def hide(monkeypatch: pytest.MonkeyPatch, library: str, *entries: str) -> None:
    """As where *library* is not installed and *entries* were not imported yet."""
    for name in list(sys.modules):
        if (
            name == library
            or name.startswith(f"{library}.")
            or any(name == entry or name.startswith(f"{entry}.") for entry in entries)
        ):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)


@pytest.mark.parametrize(("entry", "library", "extra"), CASES)
def test_an_import_names_what_is_missing_and_its_extra(
    monkeypatch: pytest.MonkeyPatch, entry: str, library: str, extra: str
) -> None:
    """Never a bare ModuleNotFoundError."""
    hide(monkeypatch, library, entry)
    with pytest.raises(MissingDependencyError) as caught:
        importlib.import_module(entry)
    assert f"pip install 'rerank-adapters[{extra}]'" in str(caught.value)
    assert library in str(caught.value)


def test_a_plot_without_matplotlib_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a notebook the method is called, not the module imported."""
    import rerank_adapters

    hide(monkeypatch, "matplotlib", "rerank_adapters.ranking.plotting")
    monkeypatch.delitem(vars(rerank_adapters), "plot_rank_changes", raising=False)
    with pytest.raises(MissingDependencyError, match=r"rerank-adapters\[plot\]"):
        rerank_adapters.plot_rank_changes(Ranking((RankedDocument(0, 0.5, False),)), ["text"])


@pytest.mark.parametrize(("library", "backend"), [("torch", "torch"), ("onnxruntime", "onnx")])
def test_a_backend_without_its_library_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, library: str, backend: str
) -> None:
    """Torch by its extra; onnxruntime comes with every install, so with a new one."""
    model = str(exported("bert") if backend == "onnx" else build("bert"))
    hide(monkeypatch, library, f"rerank_adapters.backends.{backend}")
    with pytest.raises(MissingDependencyError, match=rf"`{library}` is not installed: pip install"):
        Reranker(model, backend=backend, device="cpu")


COMMANDS = {
    "typer": [],
    "rich": ["--version"],
    "bm25s": ["search", "q", "."],
    "bs4": ["search", "q", "."],
    "ir_measures": ["evaluate", "."],
    "onnx": ["export", "a", "b"],
    "langchain_core": ["demo"],
}
HIDDEN = """
import sys
for name in sys.argv[1].split(","):
    sys.modules[name] = None
sys.argv = ["rerank-adapters", *sys.argv[2:]]
from rerank_adapters.cli import main
main()
"""


@pytest.mark.parametrize("library", COMMANDS)
def test_a_command_without_its_library_says_so_in_one_line(library: str) -> None:
    """Exit code 2, the library, pip install; no traceback."""
    done = subprocess.run(
        [sys.executable, "-c", HIDDEN, library, *COMMANDS[library]],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert f"`{library}`" in done.stderr
    assert "pip install 'rerank-adapters[" in done.stderr


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT])
def test_a_hub_cache_that_cannot_be_written_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int
) -> None:
    """Read-only, full, over quota: the option that moves it."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, "no", "/cache/models--org--model")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(ConfigError, match=r"cache_folder must be .*HF_HOME"):
        Reranker("org/model", cache_folder=str(tmp_path))


def test_a_cache_that_is_a_file_is_named(tmp_path: Path) -> None:
    """huggingface_hub itself meets it, and says it in its own way."""
    (tmp_path / "file").write_text("")
    with pytest.raises(RerankError, match=r"cache_folder|online"):
        Reranker("org/model", cache_folder=str(tmp_path / "file"))


@pytest.mark.parametrize("where", ["file", "file/below", "/proc/nothing/there"])
def test_an_export_that_cannot_be_written_names_its_folder(tmp_path: Path, where: str) -> None:
    """Before anything is loaded, with the system's reason."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="folder must be"), draft(tmp_path / where):
        pass


def test_an_export_onto_a_full_disk_names_its_folder(tmp_path: Path) -> None:
    """And leaves nothing half written; what others raise is left as it is."""

    def fill(error: Exception) -> None:
        with draft(tmp_path / "out") as folder:
            (folder / "half").write_text("x")
            raise error

    with pytest.raises(ConfigError, match=r"folder must be .*No space left"):
        fill(OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(ModelError, match="drift"):
        fill(ModelError("drift"))
    assert list(tmp_path.iterdir()) == []
