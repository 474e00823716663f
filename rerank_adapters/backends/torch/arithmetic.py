"""What one expression of a chat template may compute: `families.bounded` stops between two."""

from __future__ import annotations

import re
from collections.abc import Iterator

from jinja2 import Environment, TemplateError, nodes

from ...checkpoints import Checkpoint
from ...errors import ModelError

MOST_TIMES = 1000
"""How many times a template may repeat a text: some indent by a few blanks."""

MOST = 1_000_000
"""The largest number that a template may state, as a number or within a text: a width, a count."""

_GENERATION = re.compile(r"{%-?\s*(end)?generation\s*-?%}")  # transformers' own tag, for training
_READER = Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=True)  # renders nothing
_LONG_NUMBER = re.compile(r"\d{7}")


def check_arithmetic(checkpoint: Checkpoint) -> None:
    """Raise ModelError where a chat template of *checkpoint* raises to a power, or counts too far.

    Jinja computes constants while it compiles, in one step that nothing interrupts: a power of
    powers would not end, and a text times 10,000,000,000 take all memory.
    """
    for source in _templates(checkpoint):
        try:
            tree = _READER.parse(_GENERATION.sub("", source))
        except (TemplateError, RecursionError):
            continue  # whoever renders it says what is wrong
        for node in tree.find_all((nodes.Pow, nodes.Mul, nodes.Const)):
            if _is_too_much(node):
                raise ModelError(
                    f"a chat template of {checkpoint.folder} must neither raise to a power, nor "
                    f"repeat more than {MOST_TIMES:,} times, nor state a number above {MOST:,}: "
                    f"line {node.lineno} does; give the text around a pair as template=, or mend it"
                )


def _is_too_much(node: nodes.Node) -> bool:
    if isinstance(node, nodes.Const):
        value = node.value
        if isinstance(value, str):
            return bool(_LONG_NUMBER.search(value))
        return isinstance(value, int | float) and abs(value) > MOST
    if isinstance(node, nodes.Mul):
        sides = [it.value for it in (node.left, node.right) if isinstance(it, nodes.Const)]
        few = any(isinstance(it, int) and abs(it) <= MOST_TIMES for it in sides)
        return not few or node.find(nodes.Mul) is not None
    return True


def _templates(checkpoint: Checkpoint) -> Iterator[str]:
    """Every chat template that transformers or sentence-transformers may take."""
    folder = checkpoint.folder
    for file in (folder / "chat_template.jinja", *folder.glob("additional_chat_templates/*.jinja")):
        if file.is_file():
            yield file.read_text(encoding="utf-8", errors="replace")
    yield from _texts(checkpoint.tokenizer.get("chat_template"))
    yield from _texts(checkpoint.transformer.get("processing_kwargs"))


def _texts(stated: object) -> Iterator[str]:
    """Every str in what a JSON file holds: a template, a list of named ones, one among options."""
    if isinstance(stated, str):
        yield stated
    elif isinstance(stated, dict | list):
        for each in stated.values() if isinstance(stated, dict) else stated:
            yield from _texts(each)
