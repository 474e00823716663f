"""The command line: `rerank-adapters`. Errors are one line on stderr and exit code 2."""

from __future__ import annotations

import sys

from ..errors import MissingDependencyError, RerankError


def main() -> None:
    """Run the command line and leave with its exit code."""
    try:
        from .app import app
    except ImportError as error:
        _stop(MissingDependencyError(error.name or "typer", "cli"))
    try:
        app(prog_name="rerank-adapters")
    except (RerankError, OSError) as error:
        _stop(error)


def _stop(error: Exception) -> None:
    print(f"rerank-adapters: {error}", file=sys.stderr)  # noqa: T201  # no rich here: it may be what is missing
    raise SystemExit(2)
