"""A thin layer over onnx's protobufs: who makes a tensor, who reads it, and what shape it has."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Dimension = int | str
"""A fixed size, or the name of an open one; 0 and "" are unknown."""


class Editor:
    """Reads and extends a graph; `finish` drops what nothing reads and puts nodes in order."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.producers = {name: node for node in self.graph.node for name in node.output}
        self.consumers: defaultdict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.graph.node:
            for name in node.input:
                self.consumers[name].append(node)
        self.initializers = {tensor.name: tensor for tensor in self.graph.initializer}
        self.shapes = {tensor.name: tuple(tensor.dims) for tensor in self.graph.initializer} | {
            value.name: tuple(
                dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim
            )
            for value in (*self.graph.value_info, *self.graph.input, *self.graph.output)
        }
        self._numbers = itertools.count()
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def shape(self, name: str) -> tuple[Dimension, ...] | None:
        """The dimensions of a tensor, None where the graph does not say."""
        return self.shapes.get(name)

    def array(self, name: str) -> NDArray[np.generic] | None:
        """The values of a constant, None for a computed tensor."""
        tensor = self.initializers.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def constant(self, values: NDArray[np.generic], name: str = "constant") -> str:
        """A constant of these values; equal ones are stored once."""
        key = (str(values.dtype), values.shape, values.tobytes())
        if key not in self._constants:
            unique = self._name(name)
            self._constants[key] = unique
            self.initializers[unique] = numpy_helper.from_array(values, unique)
            self.graph.initializer.append(self.initializers[unique])
            self.shapes[unique] = values.shape
        return self._constants[key]

    def add(
        self, operator: str, inputs: Sequence[str], output: str | None = None, **attributes: object
    ) -> str:
        """A new node with one output, whose name comes back."""
        name = output or self._name(operator)
        made = helper.make_node(operator, inputs, [name])
        made.attribute.extend(
            helper.make_attribute(key, value) for key, value in attributes.items()
        )
        self.graph.node.append(made)
        self.producers[name] = self.graph.node[-1]
        return name

    def remove(self, node: onnx.NodeProto) -> None:
        """Takes the node out; its outputs may then be made by `add(…, output=name)`."""
        self.graph.node.remove(node)

    def ancestors(self, name: str) -> set[str]:
        """The tensor and every tensor it is computed from."""
        found: set[str] = set()
        waiting = [name]
        while waiting:
            current = waiting.pop()
            if current not in found:
                found.add(current)
                waiting += self.producers[current].input if current in self.producers else []
        return found

    def finish(self) -> None:
        """Keeps the nodes and constants the outputs need, each node after those it reads."""
        order: list[onnx.NodeProto] = []
        done: set[str] = set()
        for output in self.graph.output:
            self._visit(output.name, order, done)
        used = {name for node in order for name in node.input}
        constants = [tensor for tensor in self.graph.initializer if tensor.name in used]
        values = [value for value in self.graph.value_info if value.name in done]
        _replace(self.graph.node, order)
        _replace(self.graph.initializer, constants)
        _replace(self.graph.value_info, values)

    def _visit(self, name: str, order: list[onnx.NodeProto], done: set[str]) -> None:
        stack = [(name, False)]  # a stack of our own: deep graphs pass Python's recursion limit
        while stack:
            current, ready = stack.pop()
            node = self.producers.get(current)
            if current in done or node is None:
                continue
            if ready:
                done.update(node.output)
                order.append(node)
            else:
                stack.append((current, True))
                stack += [(name, False) for name in reversed(node.input)]

    def _name(self, stem: str) -> str:
        names = (f"{stem}_{number}" for number in self._numbers)
        return next(n for n in names if n not in self.producers and n not in self.initializers)


def attribute(node: onnx.NodeProto, name: str, default: object = None) -> object:
    """The value of a node's attribute."""
    for candidate in node.attribute:
        if candidate.name == name:
            return helper.get_attribute_value(candidate)
    return default


def _replace(field: object, items: Iterable[object]) -> None:
    kept = list(items)
    del field[:]  # type: ignore[attr-defined]  # protobuf's repeated fields carry no types
    field.extend(kept)  # type: ignore[attr-defined]  # as above
