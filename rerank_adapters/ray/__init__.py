"""Past one machine: lists in bulk by Ray Data, a server by Ray Serve (`rerank_adapters.ray.serve`).

Batches, isolation and cancellation are the engine's; actors, retries, resumption and progress are
Ray's own.
"""

from __future__ import annotations

from ..errors import MissingDependencyError

try:
    import pyarrow as pa  # noqa: F401  # what Ray's tables are
    import ray.data  # noqa: F401
except ImportError as error:
    raise MissingDependencyError(error.name or "ray", "ray") from error

from .actors import keep_statistics_home
from .bulk import Job, rerank_dataset, rerank_files

__all__ = ["Job", "rerank_dataset", "rerank_files"]

keep_statistics_home()  # at import: Ray looks once, when it starts, and often others start it
