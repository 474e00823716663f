"""From a configuration to a scorer: the one place where options meet rooms.

find   which files, which backend, and why       (hub or folder, nothing loaded yet)
read   what the files mean                        (family, tokenizer)
start  the network on its devices, behind a queue
compose  the chain of scorers over it
"""

from __future__ import annotations

from ..config import RerankerConfig
from ..protocols import Scorer
from .assembly import Loaded, assemble, compose, start
from .finding import Found, find
from .meaning import Meaning, read
from .server import over_server

__all__ = [
    "Found",
    "Loaded",
    "Meaning",
    "assemble",
    "compose",
    "find",
    "load",
    "read",
    "start",
]


def load(config: RerankerConfig) -> Scorer:
    """Load what *config* says, for one owner: closing the scorer frees the model.

    Raises ConfigError (an option), ModelError (the checkpoint), BackendError (the device),
    MissingDependencyError (the extra that brings the backend).
    """
    if config.remote is not None:
        return over_server(config, config.remote)
    found = find(config)
    meaning = read(found)
    loaded = start(found, meaning)
    try:
        return compose(found, meaning, loaded)
    except BaseException:
        loaded.engine.close()
        raise
