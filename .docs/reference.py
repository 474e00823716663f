"""Writes the API reference, from docstrings by pdoc: `python .docs/reference.py FOLDER`."""

# ruff: noqa: INP001  # a script, not a package
from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pdoc
import pdoc.render

PAGES: dict[str, list[str] | None] = {
    "rerank_adapters": None,
    "rerank_adapters.langchain": None,
    "rerank_adapters.langchain.fields": ["RankingFields"],
    "rerank_adapters.llama_index": None,
    "rerank_adapters.adapter_fields": ["RerankerFields"],
    "rerank_adapters.export": ["export_onnx"],
    "rerank_adapters.ranking.plotting": None,
    "rerank_adapters.testing": ["ranker_from", "ranker_of", "FunctionScorer"],
    "rerank_adapters.sharing": ["acquire", "close_all", "Lease"],
    "rerank_adapters.protocols": [
        *("Ranker", "Scorer", "Backend", "ModelFamily", "TokenCounter", "Queue"),
        *("RerankRequest", "Call", "Scored", "ModelInfo", "BackendTraits"),
    ],
}
"""The modules with a page, and what is on it; None: the module's own `__all__`."""


def write(folder: Path) -> None:
    """One page per module of PAGES, with an index and a search; a warning of pdoc's is its fault
    or ours, and is shown.
    """
    for page, names in PAGES.items():
        module = import_module(page)
        module.__all__ = module.__all__ if names is None else names
        for name in module.__all__:  # pdoc sees what a module holds, not what it would load
            setattr(module, name, getattr(module, name))
    pdoc.render.configure(docformat="markdown", show_source=False)
    pdoc.pdoc(*PAGES, output_directory=folder)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
