"""Runs the notebooks, each in a clean kernel of this interpreter that cannot leave the machine.

`python -m tests.notebooks [PATH...]` (`make notebooks`) keeps their outputs, those of all without
a path.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import matplotlib.font_manager  # noqa: F401 (builds the font cache, or a notebook would say so)
import nbformat
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("[1-9]*_*.ipynb"), key=lambda path: int(path.stem.partition("_")[0]))
KERNEL = Path(__file__).with_name("offline_kernel.py")
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}

QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # transformers' as well
    "TORCH_LOGS": "-torch.onnx._internal.exporter._registration",  # that torchvision is absent
    "LANGSMITH_TRACING": "false",
}


class OneKernel(KernelSpecManager):
    """Knows no kernel but ours, whatever is installed in this account."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        argv = [sys.executable, str(KERNEL), "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name="Python 3", language="python")


def execute(notebook: NotebookNode) -> NotebookNode:
    """*notebook* with the outputs of a run from top to bottom. CellExecutionError names a cell.

    Nothing of this account's takes part: neither its kernels nor its IPython profile.
    """
    with tempfile.TemporaryDirectory() as scratch:
        client = NotebookClient(
            notebook,
            km=AsyncKernelManager(
                kernel_spec_manager=OneKernel(), transport="ipc", ip=f"{scratch}/kernel"
            ),
            resources={"metadata": {"path": str(FOLDER)}},
            timeout=600,
            coalesce_streams=True,
            record_timing=False,
            store_widget_state=False,
        )
        client.execute(env={**os.environ, **QUIET, "IPYTHONDIR": scratch}, cleanup_kc=True)
    notebook.metadata = nbformat.from_dict(METADATA)
    return notebook


def read(path: Path) -> NotebookNode:
    """The notebook in *path*, as it is kept."""
    return nbformat.read(path, as_version=4)


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]) if sys.argv[1:] else NOTEBOOKS:
        print(path.name, flush=True)
        nbformat.write(execute(read(path)), path)
