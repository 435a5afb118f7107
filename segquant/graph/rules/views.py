"""Views of a tensor with channels: what they show, and what they show it of."""

from __future__ import annotations

from collections.abc import Iterable

from torch.fx import Node
from torch.utils._pytree import tree_leaves

from segquant.graph.rules import axes, ops
from segquant.graph.rules.axes import Layout
from segquant.graph.rules.output_cuts import Value, layout_after, part_of

VIEWS = ops.IDENTITY | ops.RESHAPE | ops.PERMUTE | ops.EXPAND


def viewed(user: Node, node: Node, value: Value) -> list[tuple[Node, Value]] | None:
    """What a view shows of the value; None if `user` is no view of it, or not one that keeps channels together."""
    kind = ops.name(user)
    if not user.args or user.args[0] is not node or occurrences(node, user) != 1 or writes(user):
        return None
    if kind in ops.SPLIT:
        return _split(user, value)
    if kind in ops.WINDOW:
        window = ops.window(user)
        part = part_of(value, window) if window else None
        return None if part is None else [(user, part)]
    layout = layout_after(user, node, kind, value.layout) if kind in VIEWS else None
    return None if layout is None else [(user, Value(layout, value.low, value.high))]


def _split(user: Node, value: Value) -> list[tuple[Node, Value]] | None:
    parts = [part_of(value, window) for window in ops.pieces(user) or ()]
    found: list[tuple[Node, Value]] = []
    for item in user.users:
        index = item.args[1] if ops.name(item) == "getitem" else None
        part = parts[index] if isinstance(index, int) and -len(parts) <= index < len(parts) else None
        if part is None:
            return None
        found.append((item, part))
    return found


def before_view(node: Node, kind: str, layout: Layout, shape: tuple[int, ...]) -> Layout | None:
    """The layout of a view's source."""
    if kind in ops.IDENTITY:
        return layout
    if kind in ops.RESHAPE:
        return axes.reshape(layout, shape)
    if kind in ops.EXPAND:
        return axes.operand(layout, shape)
    if kind in ops.PERMUTE and (order := ops.permutation(node, len(layout))):
        return axes.permute(layout, sorted(range(len(order)), key=order.__getitem__))
    return None


def channels_of(call: Node) -> int | None:
    """The axis of a layer's input channels; None for grouped convolutions."""
    shape = ops.shape(ops.source(call))
    return None if shape is None or ops.groups(call) > 1 else ops.channel_axis(call, len(shape))


def only_on(layout: Layout, axis: int | None) -> bool:
    """Whether all channels lie on this one axis, in order."""
    return axis is not None and axes.outermost_stride(layout, axis) == 1


def channel_part(layout: Layout) -> list[axes.Dimension]:
    return [dimension for dimension in layout if axes.has_channels(dimension)]


def writes(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def occurrences(node: Node, user: Node) -> int:
    leaves: Iterable[object] = tree_leaves((user.args, user.kwargs))
    return sum(leaf is node for leaf in leaves)
