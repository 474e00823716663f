"""A checkpoint's template is somebody's program: it ends soon, and writes little, or is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, ParamSpec, TypeVar

from ..errors import ModelError

MOST_STEPS = 300_000
"""Lines of Python that one rendering may run: the longest seen takes a fifth of it."""

MOST_LETTERS = 200_000
"""Length of what a template may write, and of a text or list that it may hold."""

P = ParamSpec("P")
R = TypeVar("R")


def bounded(render: Callable[P, R]) -> Callable[P, R]:
    """Return *render* that raises ModelError where it takes too many steps or holds too much.

    Jinja compiles a template to Python, and its sandbox keeps that from files and attributes, not
    from loops within loops. Counted in the thread that renders; its own trace function is put back.
    """

    def counted(*args: P.args, **kwargs: P.kwargs) -> R:
        before = sys.gettrace()
        sys.settrace(_Count().step)
        try:
            return render(*args, **kwargs)
        finally:
            sys.settrace(before)

    return counted


class _Count:
    def __init__(self) -> None:
        self.steps = self.written = 0

    def step(self, frame: FrameType, event: str, arg: object) -> Any:
        self.steps += 1
        if self.steps > MOST_STEPS:
            raise _refused(f"end within {MOST_STEPS:,} steps")
        if frame.f_code.co_filename == "<template>":
            if event == "return" and isinstance(arg, str):  # each piece that it writes
                self.written += len(arg)
            held = max(map(_size, frame.f_locals.values()), default=0)
            if max(self.written, held) > MOST_LETTERS:
                raise _refused(f"keep to {MOST_LETTERS:,} letters")
        return self.step


def _size(value: object) -> int:
    held = getattr(value, "_Namespace__attrs", None)  # what `{% set it.x = … %}` writes to
    if isinstance(held, dict):
        return max(map(_size, held.values()), default=0)
    return len(value) if isinstance(value, str | list | tuple | dict) else 0


def _refused(rule: str) -> ModelError:
    return ModelError(
        f"the chat template does not {rule}: give the text around a pair as template=, or mend it"
    )
