"""The API reference: it builds without warnings, holds every public name, and each says its job."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urldefrag, urljoin

import pytest
from bs4 import BeautifulSoup
from pydantic import BaseModel

ROOT = Path(__file__).parents[1]
MODULES = (
    "rerank_adapters",
    "rerank_adapters.fastembed",
    "rerank_adapters.langchain",
    "rerank_adapters.llama_index",
)
NAMES = [
    *((module, name) for module in MODULES for name in importlib.import_module(module).__all__),
    ("rerank_adapters.langchain.fields", "RankingFields"),
    ("rerank_adapters.adapter_fields", "RerankerFields"),
    ("rerank_adapters.export", "export_onnx"),
    ("rerank_adapters.ranking.plotting", "plot_rank_changes"),
    ("rerank_adapters.testing", "ranker_from"),
    ("rerank_adapters.testing", "ranker_of"),
    ("rerank_adapters.testing", "FunctionScorer"),
    ("rerank_adapters.protocols", "Ranker"),
    ("rerank_adapters.protocols", "Scorer"),
    ("rerank_adapters.protocols", "ModelFamily"),
    ("rerank_adapters.protocols", "Backend"),
]
FIELDS = [  # of a dataclass, of pydantic models, own and inherited: a line of their docstring each
    ("rerank_adapters.langchain", "CrossEncoderCompressor.top_n", "Documents that come back"),
    (
        "rerank_adapters.langchain.fields",
        "RankingFields.score_key",
        "Where in a document's metadata",
    ),
    ("rerank_adapters.llama_index", "CrossEncoderPostprocessor.metadata_mode", "Which metadata"),
]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The HTML of each module's page, built as `make docs` builds it; a warning is an error."""
    folder = tmp_path_factory.mktemp("reference")
    command = [sys.executable, "-W", "error", ".docs/reference.py", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return {
        path.relative_to(folder).with_suffix("").as_posix().replace("/", "."): path.read_text(
            "utf-8"
        )
        for path in folder.rglob("*.html")
    }


def anchors(page: str) -> set[str]:
    return set(re.findall(r'\bid="([^"]+)"', page))


def test_every_guide_has_a_page_that_the_index_lists(pages: dict[str, str]) -> None:
    """Each Markdown file of .docs, its tables as tables."""
    guides = {path.stem for path in (ROOT / ".docs").glob("*.md")}
    assert {"telemetry", "migration-langchain"} <= guides
    assert {name.partition(".")[2] for name in pages if name.startswith("guides.")} == guides
    assert all(f'href="guides/{name}.html"' in pages["rerank_adapters"] for name in guides)
    assert "<table>" in pages["guides.migration-langchain"]


def test_every_link_in_our_own_pages_leads_to_a_file() -> None:
    """README, CONTRIBUTING, CHANGELOG and the guides, from where each of them lies."""
    named = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
    checked = 0
    for page in [*map(ROOT.joinpath, named), *(ROOT / ".docs").glob("*.md")]:
        for link in re.findall(r"\]\((?![a-z]+:|#)([^)#\s]+)", page.read_text("utf-8")):
            checked += 1
            assert (page.parent / link).exists(), f"{page.name}: {link}"
    assert checked >= 15


def test_every_public_name_is_on_its_page(pages: dict[str, str]) -> None:
    """Those of the package, loaded lazily or not, of the adapters, and `export_onnx`."""
    missing = [(page, name) for page, name in NAMES if name not in anchors(pages[page])]
    assert missing == []


def test_every_public_method_is_on_its_page(pages: dict[str, str]) -> None:
    """What a class defines itself; what it inherits is linked to from there."""
    missing = [
        f"{page}.{name}.{method}"
        for page, name in NAMES
        for method in own_methods(found(page, name))
        if f"{name}.{method}" not in anchors(pages[page])
    ]
    assert missing == []


@pytest.mark.parametrize(("page", "field", "words"), FIELDS)
def test_fields_are_explained(pages: dict[str, str], page: str, field: str, words: str) -> None:
    """The docstring below a field, which Python itself forgets, stands beside it."""
    after = pages[page].partition(f'<div id="{field}"')[2]
    assert words in after[:3000]


@pytest.mark.parametrize("name", ["RerankerConfig", "Reranker.from_pretrained"])
def test_options_are_explained_where_they_are_taken(pages: dict[str, str], name: str) -> None:
    """The one text of each option stands in the docstring, by group."""
    after = (
        pages["rerank_adapters"].partition(f'<section id="{name}"')[2]
        or pages["rerank_adapters"].partition(f'<div id="{name}"')[2]
    )
    assert "special tokens included" in after[:40_000]
    assert "max_queue_pairs" in after[:40_000]


def test_no_link_leads_nowhere(pages: dict[str, str]) -> None:
    """Each link within the reference, to the page and the name on it.

    A member may be missing: pdoc links `bind` to what a class has of its framework, unlisted here.
    """
    for name, page in pages.items():
        for link in BeautifulSoup(page, "html.parser").find_all("a", href=True):
            path, fragment = urldefrag(urljoin(f"/{name.replace('.', '/')}.html", link["href"]))
            target = path.removeprefix("/").removesuffix(".html").replace("/", ".")
            if not path.startswith("https:"):
                assert target in pages, f"{name} links to {path}"
                owner = fragment.partition(".")[0]
                assert not owner or owner in anchors(pages[target]), f"{name}: {path}#{fragment}"


def found(module: str, name: str) -> object:
    return getattr(importlib.import_module(module), name)


def own_methods(thing: object) -> dict[str, object]:
    """Public methods and properties that a class itself defines, by name, less pydantic's own."""
    if not inspect.isclass(thing):
        return {}
    return {
        name: getattr(value, "__func__", getattr(value, "fget", value))
        for name, value in vars(thing).items()
        if not name.startswith("_")
        and not hasattr(BaseModel, name)
        and (inspect.isroutine(value) or isinstance(value, property))
    }


def says_something(thing: object) -> bool:
    """An own docstring of two words or more, with the end of a sentence."""
    text = getattr(thing, "__doc__", None) or ""
    return len(re.findall(r"\w{2,}", text)) >= 2 and bool(re.search(r"[.:](\s|$)", text))


def test_every_public_name_and_method_says_its_job() -> None:
    """A docstring of its own, not one inherited from a framework's base class."""
    seen = {f"{module}.{name}": found(module, name) for module, name in NAMES}
    things = {name: thing for name, thing in seen.items() if not isinstance(thing, str)}
    for name, thing in list(things.items()):
        things |= {f"{name}.{method}": it for method, it in own_methods(thing).items()}
    assert len(things) > 50
    assert [name for name, thing in things.items() if not says_something(thing)] == []
