"""The examples in docstrings run and print what they say; every public class has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import pytest

import rerank_adapters
from tests.test_public_api import NAMES, public

MODULES = [
    it.name
    for it in pkgutil.walk_packages(rerank_adapters.__path__, "rerank_adapters.")
    if not it.name.endswith("__main__")
]


def _examples(value: object, name: str, module: str) -> list[doctest.DocTest]:
    tests = doctest.DocTestFinder(recurse=True).find(
        value, name, module=importlib.import_module(module)
    )
    return [test for test in tests if test.examples]


@pytest.mark.parametrize("module", MODULES)
def test_examples_print_what_they_say(module: str) -> None:
    """In the module's own names, as a reader of its source would try them."""
    for test in _examples(public(module), module, module):
        runner = doctest.DocTestRunner()
        report: list[str] = []
        runner.run(test, out=report.append)
        assert runner.failures == 0, "".join(report)


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module, names in NAMES.items() for name in names]
)
def test_every_public_class_has_an_example(module: str, name: str) -> None:
    """In its own docstring, not one of its methods'."""
    value = getattr(public(module), name)
    if inspect.isclass(value):
        assert doctest.DocTestParser().get_examples(value.__doc__ or ""), name


def test_a_wrong_example_is_seen() -> None:
    """The runner fails where the output is another."""
    test = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "planted", None, 0)
    assert doctest.DocTestRunner().run(test, out=lambda text: None).failed == 1
