"""What a checkpoint's files say, parsed once; nothing here knows a runtime."""

from __future__ import annotations

from .damage import as_model_error, refuse_pointer
from .files import Checkpoint
from .graphs import GRAPHS, HEADS, WEIGHTS, choose_graph, graph_of, has_weights, part_name
from .json import NO_LIMIT
from .links import check_links, inside
from .manifest import ABSENT, FILE_NAME, FORMAT, Absent, ExitFiles, Manifest
from .template import JOINT, TextTemplate
from .trust import check_files
from .unbounded import check_bounded
from .weights import check_stored, why_unreadable

__all__ = [
    "ABSENT",
    "FILE_NAME",
    "FORMAT",
    "GRAPHS",
    "HEADS",
    "JOINT",
    "NO_LIMIT",
    "WEIGHTS",
    "Absent",
    "Checkpoint",
    "ExitFiles",
    "Manifest",
    "TextTemplate",
    "as_model_error",
    "check_bounded",
    "check_files",
    "check_links",
    "check_stored",
    "choose_graph",
    "graph_of",
    "has_weights",
    "inside",
    "part_name",
    "refuse_pointer",
    "why_unreadable",
]
