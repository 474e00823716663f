"""Make the library wrong in one line at a time and see a test fail: `python tests/mutants.py`.

Prints a table, and exits with 1 where a mutant survives, where a test named in `mutations.py` fails
on the library as it is, or where a line to be changed is not there exactly once. Names of files or
words of a line choose some: `python tests/mutants.py engine/queue.py "kept["`.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE))

from mutations import MUTATIONS, Mutation  # noqa: E402 # it lies here, wherever this is run from

LIBRARIES = (
    *("numpy", "onnxruntime", "tokenizers", "torch", "transformers", "sentence_transformers"),
    *("langchain_core.documents", "llama_index.core", "pytest", "hypothesis"),
)
"""Loaded once: each mutant runs in a fork, and has only the library itself to import."""

COPIED = ("rerank_adapters", "tests", "notebooks/corpus", "pyproject.toml", "README.md", ".docs")
PATIENCE = 600.0
"""Seconds that a mutant's tests may take on a busy machine: one that hangs is noticed too."""

ALREADY_LOADED = "ignore::pytest.PytestAssertRewriteWarning"
SURVIVED, KILLED, HUNG, BROKEN = "SURVIVED", "killed", "killed (hangs)", "BROKEN ENTRY"


class Copy:
    """The library and its tests in a folder of their own, to be made wrong there."""

    _changes = itertools.count(1_000_000_000)

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pid = 0
        self.mutation: Mutation | None = None
        self._since = 0.0
        for name in COPIED:
            source, target = ROOT / name, folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target)

    def start(self, nodes: list[str], mutation: Mutation | None = None) -> None:
        """Run the tests *nodes* in a fork, with *mutation* in the source."""
        self.mutation = mutation
        if mutation:
            self._write(mutation, mutation.old, mutation.new)
        self._since = time.monotonic()
        self.pid = os.fork()
        if not self.pid:
            _run_tests(self.folder, nodes)

    def outcome(self) -> str | None:
        """What came of it, None while it runs."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        late = time.monotonic() - self._since > PATIENCE
        if not pid and not late:
            return None
        if not pid:
            os.killpg(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        if self.mutation:
            self._write(self.mutation, self.mutation.new, self.mutation.old)
        code = os.waitstatus_to_exitcode(status) if pid else None
        return {0: SURVIVED, 1: KILLED, None: HUNG}.get(code, BROKEN)

    def output(self) -> str:
        """What the tests printed."""
        return (self.folder / "output.txt").read_text("utf-8", "replace")

    def _write(self, mutation: Mutation, old: str, new: str) -> None:
        path = self.folder / "rerank_adapters" / mutation.file
        if new == mutation.old:  # back again
            path.write_text((ROOT / "rerank_adapters" / mutation.file).read_text("utf-8"), "utf-8")
        else:
            path.write_text(path.read_text("utf-8").replace(old, new), "utf-8")
        stamp = next(self._changes)  # else Python might take bytecode of the same second and size
        os.utime(path, (stamp, stamp))


def _run_tests(folder: Path, nodes: list[str]) -> None:
    """The life of a fork."""
    code = 3
    try:
        os.setsid()
        os.chdir(folder)
        out = os.open("output.txt", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        ours = ("rerank_adapters", "tests", "mutations", "mutants")
        for name in [it for it in sys.modules if it.partition(".")[0] in ours]:
            del sys.modules[name]
        sys.path[:] = [str(folder), *(it for it in sys.path if Path(it) not in (ROOT, HERE))]
        os.environ["PYTHONPATH"] = str(folder)  # for children of tests
        pytest = sys.modules["pytest"]
        # Plugins among the libraries are loaded already, of which pytest warns.
        options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "", "-W", ALREADY_LOADED]
        code = int(pytest.main([*options, *nodes]))
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(code)


def misfits() -> list[str]:
    """Mutations whose old text is not in its file exactly once, or whose tests are not there."""
    wrong = []
    for mutation in MUTATIONS:
        text = (ROOT / "rerank_adapters" / mutation.file).read_text("utf-8")
        if (count := text.count(mutation.old)) != 1:
            wrong.append(f"{mutation.file}: {mutation.old!r} stands there {count} times")
        for node in mutation.nodes:
            file, _, name = node.partition("::")
            if f"def {name}(" not in (ROOT / file).read_text("utf-8"):
                wrong.append(f"{mutation.file}: {node} is not there")
    return wrong


def _outcomes(chosen: list[Mutation], copies: list[Copy]) -> dict[Mutation, str]:
    """Run each of *chosen*, in as many forks as there are copies; print as they end."""
    found: dict[Mutation, str] = {}
    waiting, idle, busy = list(reversed(chosen)), list(copies), []
    while waiting or busy:
        while waiting and idle:
            mutation = waiting.pop()
            copy = idle.pop()
            copy.start(mutation.nodes, mutation)
            busy.append(copy)
        time.sleep(0.05)
        for copy in list(busy):
            if (outcome := copy.outcome()) and copy.mutation:
                mutation = copy.mutation
                found[mutation] = outcome
                first = mutation.old.strip().splitlines()[0]
                print(f"| {mutation.file} | `{first:.60}` | {outcome} |", flush=True)
                if outcome == BROKEN:
                    print(copy.output())
                busy.remove(copy)
                idle.append(copy)
    return found


def main(words: list[str]) -> int:
    """Run those whose file or line holds one of *words*, or all."""
    if wrong := misfits():
        print(*wrong, sep="\n")
        return 1
    chosen = [
        it for it in MUTATIONS if not words or any(word in it.file + it.old for word in words)
    ]
    for library in LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(library)
    with tempfile.TemporaryDirectory() as temporary:
        copies = [Copy(Path(temporary) / name) for name in ("one", "two")]
        nodes = list(dict.fromkeys(node for it in chosen for node in it.nodes))
        copies[0].start(nodes)
        while not (outcome := copies[0].outcome()):
            time.sleep(0.05)
        if outcome != SURVIVED:
            print(copies[0].output(), "\nthe tests fail without any mutation")
            return 1
        print("| file | line | |\n|---|---|---|", flush=True)
        found = _outcomes(chosen, copies)
    killed = sum(it in (KILLED, HUNG) for it in found.values())
    print(f"\n{killed} of {len(chosen)} killed")
    return 0 if killed == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
