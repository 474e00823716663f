"""Whether an engine takes no more requests, and why."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ClosedError

CLOSED = "the reranker is closed: load it again"
FORKED_REQUEST = "this request was made before the process forked: make it again in the child"
FORKED_ENGINE = (
    "this process was forked after the model was loaded, and the model's runtime does not survive "
    "a fork: load the model in the child process alone, or start children by 'spawn' instead"
)


@dataclass(slots=True)
class Ending:
    """Closed for a reason, or abandoned: then what is unfinished is still finished."""

    why_closed: str = ""
    cause: BaseException | None = None
    abandoned: bool = False

    @property
    def begun(self) -> bool:
        """Whether no more requests are taken."""
        return bool(self.why_closed) or self.abandoned

    def close(self, why: str, cause: BaseException | None = None) -> None:
        """Close; the first reason stays."""
        if not self.why_closed:
            self.why_closed, self.cause = why, cause

    def check(self) -> None:
        """Raise ClosedError where no more requests are taken, and say why."""
        if self.begun:
            raise self.error()

    def error(self) -> ClosedError:
        """What a request gets that comes too late."""
        error = ClosedError(self.why_closed or CLOSED)
        error.__cause__ = self.cause
        return error
