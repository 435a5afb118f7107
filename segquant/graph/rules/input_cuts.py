"""Input cuts: what a layer's input is made of."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from math import prod

from torch.fx import Graph, Node

from segquant.graph.rules import axes, ops
from segquant.graph.rules.axes import Layout

logger = logging.getLogger(__name__)
_PRODUCTS = frozenset(["matmul", "bmm", "einsum", "scaled_dot_product_attention", "flex_attention", "attention"])
_POSITIONAL_THROUGH = (
    ops.IDENTITY
    | ops.UNARY
    | ops.BINARY
    | ops.RESHAPE
    | ops.PERMUTE
    | ops.EXPAND
    | ops.SPLIT
    | ops.WINDOW
    | ops.CAT
    | {"getitem", "stack", "flip"}
)


@dataclass(frozen=True)
class Provenance:
    """Nodes that no model input reaches, and those of sines and cosines only."""

    constant: frozenset[Node]
    positional: frozenset[Node]


def provenance(graph: Graph, inputs: Iterable[Node]) -> Provenance:
    """Which nodes are constant or positional; `inputs`: placeholders."""
    given = frozenset(inputs)
    constant: set[Node] = set()
    positional: set[Node] = set()
    for node in graph.nodes:
        if node.op == "output" or node in given:
            continue
        kind, sources = ops.name(node), node.all_input_nodes
        is_constant = all(source in constant for source in sources)
        passes = kind in _POSITIONAL_THROUGH and all(source in positional for source in sources)
        if is_constant:
            constant.add(node)
        if is_constant or passes or kind in ("sin", "cos"):
            positional.add(node)
    return Provenance(frozenset(constant), frozenset(positional))


@dataclass(frozen=True)
class InputCut:
    """Sizes in channels, and the node of each piece's activation; none for heads."""

    sizes: tuple[int, ...]
    nodes: tuple[Node, ...] | None


Place = tuple[Node, Layout]
Step = Generator[Place, "InputCut | None", "InputCut | None"]
"""Asks for the cuts at other places, and returns the one at its own."""


class InputTracer:
    """Walks back from a layer's input to a concat, a stack, or an attention with merged heads.

    Followed: casts, dropout, reshapes, permutes, slices and concats of tokens, elementwise functions, token- or
    group-wise normalization, pooling, resampling, padding, depthwise convolution, products with a gate or mask, sums
    with a constant.

    - Concat, stack: cut if operands are contiguous channels and not all positional. An operand that is such a concat
      counts as its parts; merged heads stay one piece.
    - Heads: cut if a product of two activations (attention, matmul, bmm, einsum) has the outer part of the channels
      among its batch dimensions.
    """

    def __init__(self, origins: Provenance) -> None:
        self._origins = origins
        self._known: dict[Place, InputCut | None] = {}

    def cut(self, call: Node) -> InputCut | None:
        """The input cut of the aten.linear or aten.conv2d node `call`, or None.

        Pieces of a grouped convolution must be whole groups.
        """
        given = ops.source(call)
        shape = ops.shape(given)
        if given is None or shape is None:
            return None
        axis = ops.channel_axis(call, len(shape))
        found = self._trace((given, axes.channels_on(axis, shape)))
        width = shape[axis] // ops.groups(call)
        if found is not None and ops.groups(call) > 1 and any(size % width for size in found.sizes):
            logger.info("%s: input pieces %s tear its groups of %d channels; left whole", call, found.sizes, width)
            return None
        return found

    def _trace(self, place: Place) -> InputCut | None:
        if place in self._known:
            return self._known[place]
        waiting = [(place, self._step(*place))]  # a stack: the way back may be thousands of operators long
        answer: InputCut | None = None
        while waiting:
            place, step = waiting[-1]
            try:
                asked = step.send(answer)
            except StopIteration as done:
                answer = self._known[place] = done.value
                waiting.pop()
                continue
            answer = self._known.get(asked)
            if asked not in self._known:
                waiting.append((asked, self._step(*asked)))
        return answer

    def _step(self, node: Node, layout: Layout) -> Step:
        kind = ops.name(node)
        if kind in ops.BINARY:
            return (yield from self._binary(node, layout, kind))
        if kind in ops.CAT or kind == "stack":
            return (yield from self._joined(node, layout))
        if kind in _PRODUCTS:
            return self._heads(node, layout, kind)
        whole = ops.input_node(node)
        if kind == "getitem" and whole is not None and ops.name(whole) in _PRODUCTS:
            return self._heads(whole, layout, ops.name(whole))
        if kind in ops.WINDOW or kind == "getitem":
            window, source = ops.window(node), ops.window_source(node)
            if window and source:
                return (yield from _at(source, _before_window(layout, window, source)))
            return None
        source = ops.source(node)
        shape = ops.shape(source)
        if source is None or shape is None:
            return None
        if kind in ops.IDENTITY:
            return (yield source, layout)
        if (mixed := ops.mixed_axes(node)) is not None:
            return _changed_at(node, (yield from _at(source, axes.mixed(layout, mixed, shape))))
        if kind in ops.UNARY | ops.NORM:
            return _changed_at(node, (yield source, layout))
        if kind in ops.RESHAPE:
            return (yield from _at(source, axes.reshape(layout, shape)))
        if kind in ops.EXPAND:
            return (yield from _at(source, axes.operand(layout, shape)))
        if kind in ops.PERMUTE and (order := ops.permutation(node, len(layout))):
            inverse = sorted(range(len(order)), key=order.__getitem__)
            return (yield from _at(source, axes.permute(layout, inverse)))
        return None

    def _binary(self, node: Node, layout: Layout, kind: str) -> Step:
        candidates = [
            (operand, before)
            for operand in dict.fromkeys(ops.tensor_operands(node))
            if operand not in self._origins.constant
            and (before := axes.operand(layout, ops.shape(operand) or ())) is not None
        ]
        if kind in ops.SUM and len(candidates) != 1:
            return None
        found: set[InputCut | None] = set()
        for place in candidates:
            found.add((yield place))
        found.discard(None)
        return _changed_at(node, found.pop()) if len(found) == 1 else None

    def _joined(self, node: Node, layout: Layout) -> Step:
        joined = ops.joined(node)
        if joined is None:
            return None
        axis, parts, kept = joined
        rest = (*layout[:axis], *layout[axis + 1 :])
        sizes = [(ops.shape(part) or ())[axis] if kept else 1 for part in parts]
        if not axes.has_channels(layout[axis]):
            befores = [axes.replace(layout, axis, axes.other(n)) if kept else rest for n in sizes]
            cuts: list[InputCut | None] = []
            for place in zip(parts, befores, strict=True):
                cuts.append((yield place))
            alike = len({cut.sizes if cut else None for cut in cuts}) == 1
            return _changed_at(node, cuts[0]) if alike else None
        stride = axes.outermost_stride(layout, axis)
        if stride is None or sum(sizes) != axes.size_of(layout[axis]):
            return None
        if len(parts) < 2 or all(part in self._origins.positional for part in parts):
            return None
        pieces: list[tuple[int, Node]] = []
        for part, size in zip(parts, sizes, strict=True):
            dimension = ((size, stride),) if size > 1 else ()
            inner = yield part, axes.replace(layout, axis, dimension) if kept else rest
            if inner is not None and inner.nodes is not None:
                pieces += zip(inner.sizes, inner.nodes, strict=True)
            else:
                pieces.append((size * stride, part))
        return InputCut(tuple(size for size, _ in pieces), tuple(part for _, part in pieces))

    def _heads(self, node: Node, layout: Layout, kind: str) -> InputCut | None:
        batch = _batch_axes(node, layout, kind)
        fused = kind.endswith("attention")  # only its mask may be constant
        if batch is None or (not fused and any(o in self._origins.constant for o in node.all_input_nodes)):
            return None
        outer = [factor for axis in batch for factor in layout[axis] if factor[1] is not None]
        heads, channels = prod(size for size, _ in outer), axes.extent(layout)
        size = channels // heads
        if heads < 2 or any(stride is None or stride < size for _, stride in outer):
            return None
        return InputCut((size,) * heads, None)


def _at(node: Node, layout: Layout | None) -> Step:
    return None if layout is None else (yield node, layout)


def _changed_at(node: Node, cut: InputCut | None) -> InputCut | None:
    return cut if cut is None or cut.nodes is None else InputCut(cut.sizes, (node,) * len(cut.sizes))


def _batch_axes(node: Node, layout: Layout, kind: str) -> list[int] | None:
    if kind != "einsum":
        return list(range(len(layout) - 2))
    equation, operands = node.args[0], node.args[1]
    if not isinstance(equation, str) or not isinstance(operands, list | tuple):
        return None
    if "->" not in equation or "." in equation or len(operands) != 2:
        return None
    given, result = equation.replace(" ", "").split("->")
    left, right = given.split(",")
    return [axis for axis, letter in enumerate(result) if letter in left and letter in right]


def _before_window(layout: Layout, window: ops.Window, source: Node) -> Layout | None:
    """The layout of the tensor that a window was cut from."""
    shape = ops.shape(source)
    if shape is None:
        return None
    if not window.keeps:
        return (*layout[: window.axis], axes.other(shape[window.axis]), *layout[window.axis :])
    if axes.has_channels(layout[window.axis]):
        return layout
    return axes.replace(layout, window.axis, axes.other(shape[window.axis]))
