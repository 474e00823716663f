"""An IPython kernel whose Python talks to this machine alone: `python offline_kernel.py -f FILE`.

The hook sees every socket that Python opens, whatever library asks, and cannot be taken off again.
The kernel's own sockets are ZeroMQ's, which it does not see.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

from ipykernel.kernelapp import launch_new_instance

HERE = {"", "localhost", "127.0.0.1", "::1", None}
ADDRESSES = {"socket.connect", "socket.sendto", "socket.sendmsg"}
LOOKUPS = {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"}


def refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """Raise OSError where a socket would leave the machine, or ask for a name beyond it."""
    if event in ADDRESSES and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    elif event in LOOKUPS:
        host = arguments[0]
    else:
        return
    if host not in HERE:
        raise OSError(f"notebooks run offline: this one reached for {host}")


if __name__ == "__main__":
    sys.path.pop(0)  # this folder is no place for a notebook to import from
    sys.addaudithook(refuse)
    # bm25s imports tqdm for bars that are switched off; no notebook draws one.
    warnings.filterwarnings("ignore", message="IProgress not found")
    launch_new_instance()
