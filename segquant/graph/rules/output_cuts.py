"""Output cuts: channels that are chunked, split, unbound or sliced."""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import pairwise

from torch.fx import Graph, Node

from segquant.graph.rules import axes, ops
from segquant.graph.rules.axes import Layout
from segquant.graph.rules.ops import Window

logger = logging.getLogger(__name__)
_ENDS = ops.SPLIT | ops.WINDOW | {"glu"}
_PASSED = ops.IDENTITY | ops.UNARY | ops.BINARY | ops.RESHAPE | ops.PERMUTE | ops.EXPAND | ops.CAT | {"getitem"}
Range = tuple[int, int]


@dataclass(frozen=True)
class Value:
    """A tensor on the way, with a layer's channels [low, high)."""

    layout: Layout
    low: int
    high: int


@dataclass
class _Cuts:
    """By range of channels."""

    splits: dict[Range, set[tuple[Range, ...]]] = field(default_factory=lambda: defaultdict(set))
    slices: dict[Range, set[Range]] = field(default_factory=lambda: defaultdict(set))


def leading_to_cuts(graph: Graph) -> frozenset[Node]:
    """The nodes that reach a chunk, split, unbind, slice or GLU."""
    found: set[Node] = set()
    for node in reversed(graph.nodes):
        kind = ops.name(node)
        passed = kind in _PASSED or ops.mixed_axes(node) is not None
        if kind in _ENDS or (passed and any(user in found for user in node.users)):
            found.add(node)
    return frozenset(found)


def output_cut(call: Node, order: dict[Node, int], useful: frozenset[Node]) -> tuple[int, ...] | None:
    """Sizes of the channel ranges that a layer's output is cut into, or None.

    Followed: casts, dropout, reshapes, permutes, elementwise functions, sums, pooling, resampling, padding, depthwise
    convolution. Pieces must be contiguous, unlike the halves of rotary heads. A piece cut again counts as its parts;
    slices count if they tile the channels. Channels on which consumers disagree stay whole.

    Args:
        order: position by node.
        useful: `leading_to_cuts(graph)`.
    """
    shape = ops.shape(call)
    if shape is None:
        return None
    axis = ops.channel_axis(call, len(shape))
    channels = shape[axis]
    cuts = _Cuts()
    pending: dict[Node, set[Value]] = {call: {Value(axes.channels_on(axis, shape), 0, channels)}}
    while pending:
        node = min(pending, key=order.__getitem__)
        values = pending.pop(node)
        for user in node.users:
            if user not in useful:
                continue
            for value in values:
                for target, result in _follow(user, node, value, cuts):
                    pending.setdefault(target, set()).add(result)
    ranges = _resolve((0, channels), cuts, call)
    return tuple(high - low for low, high in ranges) if len(ranges) > 1 else None


def _follow(user: Node, node: Node, value: Value, cuts: _Cuts) -> list[tuple[Node, Value]]:
    kind = ops.name(user)
    if kind in ops.SPLIT:
        return _follow_split(user, value, cuts)
    if kind in ops.WINDOW:
        window = ops.window(user)
        part = part_of(value, window) if window else None
        if window and part and axes.outermost_stride(value.layout, window.axis) is not None:
            cuts.slices[value.low, value.high].add((part.low, part.high))
        return [(user, part)] if part else []
    if kind == "glu":
        _note_glu(user, value, cuts)
        return []
    layout = layout_after(user, node, kind, value.layout)
    return [(user, Value(layout, value.low, value.high))] if layout else []


def layout_after(user: Node, node: Node, kind: str, layout: Layout) -> Layout | None:
    """The layout of `user`'s result from that of its operand `node`; None where channels are lost."""
    shape = ops.shape(user)
    if shape is None:
        return None
    if kind in ops.IDENTITY | ops.UNARY:
        return layout
    if kind in ops.BINARY | ops.EXPAND:
        return axes.broadcast(layout, shape)
    if kind in ops.RESHAPE:
        return axes.reshape(layout, shape)
    if kind in ops.PERMUTE:
        order = ops.permutation(user, len(layout))
        return axes.permute(layout, order) if order else None
    if (mixed := ops.mixed_axes(user)) is not None and user.args[0] is node:
        return axes.mixed(layout, mixed, shape)
    if kind in ops.CAT and (joined := ops.joined(user)):
        axis, parts, _ = joined
        if len(layout) == len(shape) and not axes.has_channels(layout[axis]) and node in parts:
            return axes.replace(layout, axis, axes.other(shape[axis]))
    return None


def _follow_split(user: Node, value: Value, cuts: _Cuts) -> list[tuple[Node, Value]]:
    windows = ops.pieces(user)
    parts = [part_of(value, window) for window in windows or ()]
    ranges = tuple((part.low, part.high) for part in parts if part)
    across = windows and axes.outermost_stride(value.layout, windows[0].axis) is not None
    if across and len(ranges) == len(parts) > 1:
        cuts.splits[value.low, value.high].add(ranges)
    followed = []
    for item in user.users:
        index = item.args[1] if ops.name(item) == "getitem" else None
        if isinstance(index, int) and parts and (part := parts[index]):
            followed.append((item, part))
    return followed


def _note_glu(user: Node, value: Value, cuts: _Cuts) -> None:
    axis = ops.axis_of(ops.argument(user, 1, "dim", -1), len(value.layout))
    if axis is not None and axes.outermost_stride(value.layout, axis) is not None:
        middle = (value.low + value.high) // 2
        cuts.splits[value.low, value.high].add(((value.low, middle), (middle, value.high)))


def part_of(value: Value, window: Window) -> Value | None:
    """`value` in `window`; None if no contiguous channels."""
    layout, axis, size = value.layout, window.axis, len(range(window.start, window.stop, window.step))
    if size < 1:
        return None
    low, high = value.low, value.high
    dimension = axes.other(size)
    if axes.has_channels(layout[axis]) and size != axes.size_of(layout[axis]):
        stride = axes.outermost_stride(layout, axis)
        if stride is None or window.step != 1:
            return None
        low, high = value.low + window.start * stride, value.low + window.stop * stride
        dimension = ((size, stride),) if size > 1 else ()
    elif axes.has_channels(layout[axis]):
        dimension = layout[axis]
    if window.keeps:
        return Value(axes.replace(layout, axis, dimension), low, high)
    return Value((*layout[:axis], *layout[axis + 1 :]), low, high)


def _resolve(whole: Range, cuts: _Cuts, call: Node) -> list[Range]:
    """Cut `whole` where consumers agree, then each piece likewise."""
    ways = set(cuts.splits.get(whole, ()))
    slices = sorted(cuts.slices.get(whole, set()) - {whole})
    edges = [whole[0], *(high for _, high in slices)]
    if slices and edges[-1] == whole[1] and list(pairwise(edges)) == slices:
        ways.add(tuple(slices))
    if len(ways) > 1:
        logger.info("%s: channels %d to %d are cut in %d different ways; left whole", call, *whole, len(ways))
    if len(ways) != 1:
        return [whole]
    return [piece for part in ways.pop() for piece in _resolve(part, cuts, call)]
