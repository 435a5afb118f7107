"""Which tensors come out of SiLU, GELU or a gated form."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from torch import Tensor
from torch.fx import Graph, Node
from torch.utils._pytree import tree_leaves

from segquant.graph.rules import ops

_NAMED = frozenset(["silu", "gelu", "mish", "hardswish"])
_GATED = {"silu": "swiglu", "gelu": "geglu"}
_PASSED = ops.IDENTITY | ops.RESHAPE | ops.PERMUTE | ops.EXPAND | ops.WINDOW
_QUICK_GELU = 1.702


class Activations:
    """The activation that each tensor comes out of element for element, or None.

    Followed: casts, dropout, reshapes, permutes, parts, joins of equal activations, products with a positive number.
    x · SiLU(y) is "swiglu", x · GELU(y) "geglu", x · σ(x) "silu", x · σ(1.702 x) "gelu".
    """

    def __init__(self, graph: Graph) -> None:
        self._order = {node: position for position, node in enumerate(graph.nodes)}
        self._writes: dict[int, list[int]] = defaultdict(list)
        for node, position in self._order.items():
            for storage in _written(node):
                self._writes[storage].append(position)
        self._names: dict[Node, str | None] = {}
        for node in graph.nodes:
            self._names[node] = self._name(node)

    def of(self, node: Node, reader: Node) -> str | None:
        """The activation of `node`'s tensor as the later `reader` finds it."""
        name = self._names.get(node)
        if name is None:
            return None
        # A write whose result is read stands in the graph as a node of its own; one between went past the reader.
        first, last = self._order[node], self._order[reader]
        storage = _storage(node)
        writes = [] if storage is None else self._writes.get(storage, [])
        return None if any(first < position < last for position in writes) else name

    def _name(self, node: Node) -> str | None:
        kind = ops.name(node)
        if kind in _NAMED:
            return kind
        if kind in ops.CAT or kind == "stack":
            joined = ops.joined(node)
            names = {self.of(part, node) for part in joined[1]} if joined else {None}
            return names.pop() if len(names) == 1 else None
        if kind in ops.PRODUCT:
            operands = ops.tensor_operands(node)
            if len(operands) == 2:
                return self._gated(node, operands, kind)
            return self.of(operands[0], node) if len(operands) == 1 and _positive_factor(node) is not None else None
        source: Node | None = None
        if kind == "getitem" and ops.window(node) is not None:
            source = ops.window_source(node)
        elif kind in _PASSED:
            source = ops.source(node)
        return self.of(source, node) if source is not None else None

    def _gated(self, node: Node, operands: list[Node], kind: str) -> str | None:
        if kind not in ("mul", "multiply") or any(ops.shape(o) != ops.shape(node) for o in operands):
            return None
        for gate, value in (operands, operands[::-1]):
            if ops.name(gate) == "sigmoid":
                return _sigmoid_gated(gate, value)
            name = self.of(gate, node)
            if name in _GATED:
                return _GATED[name]
        return None


def _written(node: Node) -> Iterator[int]:
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return
    for position, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            for target in tree_leaves(ops.argument(node, position, argument.name)):
                if isinstance(target, Node) and (storage := _storage(target)) is not None:
                    yield storage


def _storage(node: Node) -> int | None:
    value = node.meta.get("val")
    try:
        return value.untyped_storage()._cdata if isinstance(value, Tensor) else None
    except NotImplementedError:
        return None


def _sigmoid_gated(gate: Node, value: Node) -> str | None:
    inner, factor = ops.input_node(gate), 1.0
    if inner is None:
        return None
    inner = _identity_source(inner)
    if ops.name(inner) in ops.PRODUCT and len(ops.tensor_operands(inner)) == 1:
        factor = _positive_factor(inner) or 0.0
        inner = _identity_source(ops.tensor_operands(inner)[0])
    if inner is not _identity_source(value):
        return None
    if factor == 1.0:
        return "silu"
    return "gelu" if abs(factor - _QUICK_GELU) < 0.01 else None


def _identity_source(node: Node) -> Node:
    while ops.name(node) in ops.IDENTITY and (source := ops.source(node)) is not None:
        node = source
    return node


def _positive_factor(node: Node) -> float | None:
    """c > 0 of c · x, or 1 / c of x / c."""
    divides = "div" in ops.name(node)
    operands = enumerate(node.args[:2])
    numbers = [(i, float(a)) for i, a in operands if isinstance(a, int | float) and not isinstance(a, bool)]
    if not numbers:
        return None
    position, number = numbers[0]
    if number <= 0 or (divides and position == 0):
        return None
    return 1.0 / number if divides else number
