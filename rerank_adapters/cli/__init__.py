"""The command line: `rerank-adapters`. Errors are one line on stderr and exit code 2."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Sequence

from ..backends import BACKENDS
from ..clean import one_line
from ..errors import MissingDependencyError, RerankError
from ..hints import option_hint

EXTRAS = {
    **{entry.needs: entry.extra for entry in BACKENDS.values() if entry.extra},
    "transformers": "torch",
    "sentence_transformers": "torch",
    "onnx": "export",
    "onnxscript": "export",
    "langchain_core": "langchain,llama-index",  # the demo shows both
    "llama_index": "langchain,llama-index",
    "ray": "ray",
    "pyarrow": "ray",
}
"""The extra that brings a module; every other comes with `cli`."""

INTERRUPTED = 130
"""What shells expect of a program that Ctrl-C ended: 128 and the signal's number."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line on *arguments* (None: the process's own); leave with its exit code."""
    _fill_closed()
    if sys.stdout is None:
        raise SystemExit(_stop("standard output must be open, for the answer: it is closed"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a bar or an accent must not end the program
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = _stop("interrupted", INTERRUPTED)
    except BrokenPipeError:
        _forget_output()
        code = 1
    except RerankError as error:
        code = _stop(str(error))
    except ImportError as error:
        module = (error.name or "typer").partition(".")[0]
        code = _stop(str(MissingDependencyError(module, EXTRAS.get(module, "cli"))))
    except OSError as error:
        file = f": {error.filename}" if error.filename else ""
        code = _stop(f"{error.strerror or error}{file}")
        _forget_output()
    raise SystemExit(code)


def _run(arguments: Sequence[str] | None) -> int:
    import typer

    from .app import app

    # typer gives a name to this one of click's usage errors alone
    usage_error: type[Exception] = typer.BadParameter.__mro__[1]
    try:
        code = int(app(arguments, prog_name="rerank-adapters", standalone_mode=False) or 0)
        return _stop("interrupted", code) if code == INTERRUPTED else code
    except usage_error as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "rerank-adapters"
        message = error.format_message().rstrip(".")  # type: ignore[attr-defined]  # click's, unnamed
        return _stop(f"{message}{_hint(message)} (see {command} --help)")
    except typer.Abort:  # how older typers say Ctrl-C
        return _stop("interrupted", INTERRUPTED)


def _hint(message: str) -> str:
    """What an option of another tool is called here."""
    found = re.search(r"--([a-z-]+)", message) if "option" in message.lower() else None
    return option_hint(found[1].replace("-", "_")) if found else ""


def _fill_closed() -> None:
    """Put /dev/null where a standard stream was closed (`2>&-`, cron).

    Else the next file opened, a model's perhaps, would stand there and be written into.
    """
    while (device := os.open(os.devnull, os.O_RDWR)) < 3:
        pass
    os.close(device)


def _stop(message: str, code: int = 2) -> int:
    if sys.stderr is None:  # there is nobody to tell
        return code
    print(f"rerank-adapters: {one_line(message)}", file=sys.stderr)  # noqa: T201  # no rich here: it may be what is missing
    return code


def _forget_output() -> None:
    """Nobody reads on, or the disk is full: what Python still holds must not raise at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
