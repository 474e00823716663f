"""What keeps a runtime busy for ever, told from an ONNX file's bytes before anything opens it."""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ..errors import ModelError
from .damage import refuse_pointer

MOST_NODES = 1_000_000
"""Nodes that a graph may have with its local functions written out; a large decoder has 20,000."""

MOST_LEVELS = 64
"""How deep local functions may call each other; modules of a network nest to ten or so."""

LOOPS = (b"\x22\x04Loop", b"\x22\x04Scan")
"""A node's field 4, its operator: tag, length, name."""

Bytes = bytes | memoryview
Calls = Counter[bytes]
_GRAPH, _FUNCTIONS = 7, 25  # of a ModelProto
_NODES = {_GRAPH: 1, _FUNCTIONS: 7}
_OPERATOR, _NAME = 4, 1  # of a node, of a function


def check_bounded(file: Path) -> None:
    """Raise ModelError where the graph in *file* loops, or its functions call each other too often.

    A runtime writes local functions out while it loads: thirty that call the next one twice would
    be a billion nodes. No network that scores pairs loops over nodes, and nothing bounds one that
    does. Bytes that are no graph are for the runtime to refuse, but for a pointer of Git LFS.
    """
    refuse_pointer(file)
    with file.open("rb") as stream:
        if not file.stat().st_size:
            return
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as graph:
            if any(graph.find(mark) >= 0 for mark in LOOPS):
                raise ModelError(f"{file} must not loop: it has a Loop or Scan node; {_CURE}")
            with memoryview(graph) as data:
                if _written_out(data) > MOST_NODES:
                    raise ModelError(
                        f"{file} must have at most {MOST_NODES:,} nodes with its local functions "
                        f"written out, {MOST_LEVELS} levels deep: they call each other more; "
                        f"{_CURE}"
                    )


_CURE = "export the model again, with rerank-adapters export"


def _written_out(data: memoryview) -> int:
    """How many nodes there are with local functions written out; 0 where there are no functions."""
    functions: dict[bytes, Calls] = {}
    graph: Bytes = b""
    for number, value in _fields(data):
        if number == _FUNCTIONS:
            name = next((bytes(it) for at, it in _fields(value) if at == _NAME), b"")
            functions[name] = _calls(value, _NODES[_FUNCTIONS])
        elif number == _GRAPH:
            graph = value
    if not functions:  # as nearly always: no node of the graph need be read
        return 0
    sizes = dict.fromkeys(functions, 1)
    for _ in range(MOST_LEVELS):  # one more level of calls each time, until nothing grows
        before = sizes
        sizes = {name: 1 + _size(calls, before) for name, calls in functions.items()}
        if sizes == before:
            return _size(_calls(graph, _NODES[_GRAPH]), sizes)
    return MOST_NODES + 1  # they nest without end


def _size(calls: Calls, sizes: dict[bytes, int]) -> int:
    return min(sum(count * sizes.get(name, 1) for name, count in calls.items()), 10 * MOST_NODES)


def _calls(data: Bytes, nodes: int) -> Calls:
    """How often each operator stands in the nodes of a graph or function."""
    found: Calls = Counter()
    for number, node in _fields(data):
        if number == nodes:
            found.update(bytes(it) for at, it in _fields(node) if at == _OPERATOR)
    return found


def _fields(data: Bytes) -> Iterator[tuple[int, Bytes]]:
    """The fields of a protobuf message that have a length, by number; ends where it breaks."""
    at = 0
    try:
        while at < len(data):
            key, at = _varint(data, at)
            kind = key & 7
            if kind == 0:
                _, at = _varint(data, at)
            elif kind == 2:
                size, at = _varint(data, at)
                yield key >> 3, data[at : at + size]
                at += size
            elif kind in (1, 5):
                at += 8 if kind == 1 else 4
            else:
                return
    except IndexError:
        return


def _varint(data: Bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128 or shift > 63:
            return value, at
