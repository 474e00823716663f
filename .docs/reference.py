"""Writes the API reference, from docstrings by pdoc, and the guides that lie beside this script:
`python .docs/reference.py FOLDER`.
"""

# ruff: noqa: INP001  # a script, not a package
from __future__ import annotations

import re
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import markdown2
import pdoc
import pdoc.render

PAGES: dict[str, list[str] | None] = {
    "rerank_adapters": None,
    "rerank_adapters.langchain": None,
    "rerank_adapters.langchain.fields": ["RankingFields"],
    "rerank_adapters.llama_index": None,
    "rerank_adapters.adapter_fields": ["RerankerFields"],
    "rerank_adapters.export": ["export_onnx"],
    "rerank_adapters.fastembed": None,
    "rerank_adapters.ranking.plotting": None,
    "rerank_adapters.testing": ["ranker_from", "ranker_of", "FunctionScorer"],
    "rerank_adapters.sharing": ["acquire", "close_all", "Lease"],
    "rerank_adapters.protocols": [
        *("Ranker", "Scorer", "Backend", "ModelFamily", "TokenCounter", "Queue"),
        *("RerankRequest", "Call", "Scored", "ModelInfo", "BackendTraits"),
    ],
}
"""The modules with a page, and what is on it; None: the module's own `__all__`."""

GUIDES = sorted(Path(__file__).parent.glob("*.md"))

NEIGHBOURS = {
    "rerank_adapters.haystack": "haystack",
    "rerank_adapters.ray": "ray",
    "rerank_adapters.ray.serve": "ray",
}
"""Modules that have a page where the library that they need is installed."""


def write(folder: Path) -> None:
    """One page per module of PAGES, with an index and a search; a warning of pdoc's is its fault
    or ours, and is shown.
    """
    beside = {page: None for page, library in NEIGHBOURS.items() if find_spec(library)}
    pages: dict[str, list[str] | None] = {**PAGES, **beside}
    for page, names in pages.items():
        module = import_module(page)
        module.__all__ = module.__all__ if names is None else names
        for name in module.__all__:  # pdoc sees what a module holds, not what it would load
            setattr(module, name, getattr(module, name))
    pdoc.render.configure(docformat="markdown", show_source=False)
    pdoc.pdoc(*pages, output_directory=folder)
    titles = {guide.stem: _write_guide(guide, folder / "guides") for guide in GUIDES}
    links = "".join(
        f'<li><a href="guides/{name}.html">{it}</a></li>' for name, it in titles.items()
    )
    index = folder / "rerank_adapters.html"  # where the reference begins
    listed = re.sub(
        r"(<main[^>]*>)",
        rf"\1<h2>Guides</h2><ul>{links}</ul>",
        index.read_text("utf-8"),
        count=1,
    )
    index.write_text(listed, "utf-8")


def _write_guide(guide: Path, folder: Path) -> str:
    """One page of Markdown as HTML; returns its title.

    Links to other guides lead to their pages; a file that the reference does not hold is named.
    """
    text = guide.read_text("utf-8")
    text = re.sub(r"\]\(([\w-]+)\.md(#[\w-]*)?\)", r"](\1.html)", text)
    text = re.sub(r"!?\[([^\]]*)\]\((?![a-z]+:|#|[\w-]+\.html)([^)]+)\)", r"\1 (`\2`)", text)
    body = markdown2.markdown(text, extras=["tables", "fenced-code-blocks", "header-ids"])
    title = text.partition("\n")[0].lstrip("# ")
    page = f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>body {{ max-width: 60em; margin: 2em auto; font-family: sans-serif }}</style>
<a href="../rerank_adapters.html">reference and guides</a>{body}</html>"""
    folder.mkdir(exist_ok=True)
    (folder / f"{guide.stem}.html").write_text(page, "utf-8")
    return title


if __name__ == "__main__":
    write(Path(sys.argv[1]))
