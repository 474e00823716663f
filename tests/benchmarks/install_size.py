"""What each extra adds to an empty environment, in megabytes on disk.

    python tests/benchmarks/install_size.py [--extras langchain llama-index cli torch]

Builds one virtual environment an extra, with the versions of .ci/constraints.txt, and prints a
Markdown table. `torch` takes torch's pin first, as the Makefile does.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONSTRAINTS = ROOT / ".ci" / "constraints.txt"
EXTRAS = ("", "langchain", "llama-index", "cli", "torch")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--extras", nargs="*", default=EXTRAS)
    options = parser.parse_args()
    print("| install | MB on disk | packages |\n|---|---:|---:|")
    for extra in options.extras:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            empty = _megabytes(_environment(folder))
            _install(folder, extra)
            packages = len(list(_site(folder).glob("*.dist-info"))) - 1  # pip
            name = f"`rerank-adapters[{extra}]`" if extra else "`rerank-adapters`"
            print(f"| {name} | {_megabytes(folder) - empty:.0f} | {packages} |", flush=True)


def _environment(folder: Path) -> Path:
    venv.create(folder, with_pip=True)
    return folder


def _install(folder: Path, extra: str) -> None:
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-compile"]
    pip += ["--disable-pip-version-check", "--constraint", CONSTRAINTS]
    if extra == "torch":
        pin = next(it for it in CONSTRAINTS.read_text().splitlines() if it.startswith("torch=="))
        subprocess.run([*pip, pin], check=True, capture_output=True)
    target = f"{ROOT}[{extra}]" if extra else str(ROOT)
    subprocess.run([*pip, target], check=True, capture_output=True)


def _site(folder: Path) -> Path:
    return next(folder.glob("lib/*/site-packages"))


def _megabytes(folder: Path) -> float:
    return sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6


if __name__ == "__main__":
    main()
