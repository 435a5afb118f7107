"""What OpenVINO runs faster when it is written otherwise; values are the same but for roundings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir import convenience
from onnx_ir.passes.common import RemoveUnusedNodesPass

from segquant.deploy.onnx.tape import Tape

HEADS = [0, 2, 1, 3]
"""From [batch, tokens, heads, width] to [batch, heads, tokens, width], and back."""
SWAPPED = [0, 1, 3, 2]
POSITIONS: dict[tuple[float | None, ...], int] = {(-2, -1): 2, (-1, float(np.iinfo(np.int64).max)): 3}
"""Which of four sizes a Slice takes, by where it starts and stops."""


def rewrite(model: ir.Model) -> None:
    """Attention and modulation, in place."""
    tape = Tape(model.graph)
    for kind, change in (("Concat", _join_tokens), ("Softmax", _attend), ("Div", _modulate)):
        for node in list(model.graph):
            if node.op_type == kind:
                tape.begin(node.name or node.outputs[0].name or kind)
                change(tape, node)
    RemoveUnusedNodesPass()(model)


def _join_tokens(tape: Tape, node: ir.Node) -> None:
    """Tokens are joined before they are split into heads: one piece of memory behind the other, and one transpose."""
    heads = [_producer(value, "Transpose") for value in node.inputs]
    if node.attributes["axis"].as_int() not in (2, -2) or any(_order(each) != HEADS for each in heads):
        return
    joined = tape.op("Concat", *(each.inputs[0] for each in heads if each is not None), axis=1)
    _replace(tape, node, tape.op("Transpose", joined, perm=HEADS))


def _attend(tape: Tape, softmax: ir.Node) -> None:
    """One factor, of the queries as they come, and keys that one transpose turns, which products do themselves."""
    product = _producer(softmax.inputs[0], "MatMul")
    if product is None:
        return
    queries, keys = (_producer(value, "Mul") for value in product.inputs)
    if queries is None or keys is None:
        return
    turned = _turned(keys.inputs[0])
    factors = [_number(queries.inputs[1]), _number(keys.inputs[1])]
    if turned is None or factors[0] is None or factors[1] is None:
        return
    factor, split = tape.number(factors[0] * factors[1]), _producer(queries.inputs[0], "Transpose")
    if split is None:
        query = tape.op("Mul", queries.inputs[0], factor)
    else:
        query = tape.op("Transpose", tape.op("Mul", split.inputs[0], factor), perm=_order(split))
    _replace(tape, product, tape.op("MatMul", query, tape.op("Transpose", turned, perm=SWAPPED)))


def _turned(value: ir.Value | None) -> ir.Value | None:
    """Whose last two dimensions torch turns by Reshape, Transpose and Reshape into `value`; None: they are not."""
    last = _producer(value, "Reshape")
    turn = _producer(last.inputs[0], "Transpose") if last else None
    first = _producer(turn.inputs[0], "Reshape") if turn else None
    if last is None or first is None or _order(turn) != [0, 2, 1]:
        return None
    x = first.inputs[0]
    if x is None or x.shape is None or len(x.shape) != 4:
        return None
    before, after = _sizes(first.inputs[1], x), _sizes(last.inputs[1], x)
    tokens, width = _size(x, 2), _size(x, 3)
    flat = before is not None and before[-2:] == [tokens, width] and len(before) == 3
    return x if flat and after is not None and after[-2:] == [width, tokens] else None


def _sizes(shape: ir.Value | None, x: ir.Value) -> list[Any] | None:
    """A Reshape's sizes: integers, or dimensions of x as `_size` has them; those in front may be one entry."""
    known = None if shape is None else shape.const_value
    if known is not None:
        return [int(size) for size in known.numpy()]
    joined = _producer(shape, "Concat")
    if joined is None:
        return None
    found: list[Any] = []
    for part in joined.inputs:
        cut = _producer(part, "Slice")
        of = _producer(cut.inputs[0], "Shape") if cut else None
        if cut is None or of is None or of.inputs[0] is not x:
            found.append(None)
            continue
        position = POSITIONS.get(tuple(_number(bound) for bound in cut.inputs[1:3]))
        found.append(None if position is None else _size(x, position))
    return found


def _size(x: ir.Value, position: int) -> Any:
    """One dimension of x: its number, or its position where that is free."""
    assert x.shape is not None
    size = x.shape[position]
    return size if isinstance(size, int) else ("of x", position)


def _modulate(tape: Tape, node: ir.Node) -> None:
    """A smoothing goes into the modulation of one row before it: tokens are read once instead of twice."""
    total = _producer(node.inputs[0], "Add")
    scaled = _producer(total.inputs[0], "Mul") if total else None
    if total is None or scaled is None or _producer(scaled.inputs[0], "LayerNormalization") is None:
        return
    smooth = node.inputs[1]
    if not all(_one_row(value) for value in (scaled.inputs[1], total.inputs[1])):
        return
    scale, shift = (tape.op("Div", value, smooth) for value in (scaled.inputs[1], total.inputs[1]))
    _replace(tape, node, tape.op("Add", tape.op("Mul", scaled.inputs[0], scale), shift))


def _one_row(value: ir.Value | None) -> bool:
    shape = None if value is None else value.shape
    return shape is not None and len(shape) > 1 and shape[-2] == 1


def _producer(value: ir.Value | None, kind: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == kind else None


def _order(node: ir.Node | None) -> Sequence[int] | None:
    return None if node is None else list(node.attributes["perm"].as_ints())


def _number(value: ir.Value | None) -> float | None:
    known = None if value is None else value.const_value
    return float(known.numpy().reshape(())) if known is not None and known.size == 1 else None


def _replace(tape: Tape, node: ir.Node, new: ir.Value) -> None:
    old = node.outputs[0]
    new.shape, new.type = old.shape, old.type
    convenience.replace_nodes_and_values(tape.graph, node, [node], tape.nodes, [old], [new])
