"""Activations: does a tensor come out of SiLU, GELU or a gated form of them?"""

from __future__ import annotations

from torch.fx import Node

from segquant import graph_ops

_NAMED = frozenset(["silu", "gelu", "mish", "hardswish"])
_GATED = {"silu": "swiglu", "gelu": "geglu"}
_PASSED = graph_ops.IDENTITY | graph_ops.RESHAPE | graph_ops.PERMUTE | graph_ops.EXPAND | graph_ops.WINDOW
_QUICK_GELU = 1.702


def activation_of(node: Node) -> str | None:
    """Name of the activation that the tensor of `node` comes out of, element for element; None if of none.

    Followed: casts, dropout, reshapes, permutes, parts of the tensor, joining of parts that all come out of
    the same activation, and products with a positive number. x · SiLU(y) is "swiglu", x · GELU(y) "geglu";
    x · σ(x) is "silu" and x · σ(1.702 x) "gelu", as they are written in some models.
    """
    current: Node | None = node
    while current is not None:
        kind = graph_ops.name(current)
        if kind in _NAMED:
            return kind
        if kind in graph_ops.CAT or kind == "stack":
            joined = graph_ops.joined(current)
            names = {activation_of(part) for part in joined[1]} if joined else {None}
            return names.pop() if len(names) == 1 else None
        if kind in graph_ops.PRODUCT:
            operands = graph_ops.tensor_operands(current)
            if len(operands) == 2:
                return _gated(current, operands, kind)
            if len(operands) == 1 and _positive_factor(current) is not None:
                current = operands[0]
                continue
            return None
        if kind == "getitem" and graph_ops.window(current) is not None:
            current = graph_ops.window_source(current)
        elif kind in _PASSED:
            current = graph_ops.source(current)
        else:
            return None
    return None


def _gated(node: Node, operands: list[Node], kind: str) -> str | None:
    if kind not in ("mul", "multiply") or any(graph_ops.shape(o) != graph_ops.shape(node) for o in operands):
        return None
    for gate, value in (operands, operands[::-1]):
        if graph_ops.name(gate) == "sigmoid":
            return _sigmoid_gated(gate, value)
        name = activation_of(gate)
        if name in _GATED:
            return _GATED[name]
    return None


def _sigmoid_gated(gate: Node, value: Node) -> str | None:
    inner, factor = _identity_source(gate.args[0]), 1.0
    if graph_ops.name(inner) in graph_ops.PRODUCT and len(graph_ops.tensor_operands(inner)) == 1:
        factor = _positive_factor(inner) or 0.0
        inner = _identity_source(graph_ops.tensor_operands(inner)[0])
    if inner is not _identity_source(value):
        return None
    if factor == 1.0:
        return "silu"
    return "gelu" if abs(factor - _QUICK_GELU) < 0.01 else None


def _identity_source(node: Node) -> Node:
    while graph_ops.name(node) in graph_ops.IDENTITY and graph_ops.source(node) is not None:
        node = node.args[0]
    return node


def _positive_factor(node: Node) -> float | None:
    """c > 0 of a product c · x with a number, or 1 / c of x / c; None otherwise."""
    divides = "div" in graph_ops.name(node)
    position = next((i for i, a in enumerate(node.args[:2]) if type(a) in (int, float)), None)
    if position is None or node.args[position] <= 0 or (divides and position == 0):
        return None
    number = float(node.args[position])
    return 1.0 / number if divides else number
