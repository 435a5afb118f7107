"""Where a factor per channel of a layer's input can go: into the parameters that make the input."""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass, field
from math import prod

from torch.fx import Node

from segquant.graph.capture.calls import Capture
from segquant.graph.producers import Producer, Rows
from segquant.graph.rules import axes, ops
from segquant.graph.rules.axes import Layout
from segquant.graph.rules.output_cuts import Value, layout_after
from segquant.graph.rules.views import (
    VIEWS,
    before_view,
    channel_part,
    channels_of,
    occurrences,
    only_on,
    viewed,
    writes,
)

logger = logging.getLogger(__name__)
_AFFINE = {"layer_norm": (2, 3), "rms_norm": (2, None), "group_norm": (2, 3)}
"""Positions of a norm's weight and bias."""
_DEEPEST = 64
"""Operators between a layer and its producer; a residual stream may be thousands long."""


class _NotFound(Exception):
    """The factor has no place; says why."""


@dataclass(frozen=True)
class _Source:
    """Part of a linear's output or of a parameter, seen through views only."""

    owner: Node
    value: Value


@dataclass
class _Way:
    """What was found on the way back from one layer."""

    rows: list[Rows] = field(default_factory=list)
    readers: set[Node] = field(default_factory=set)
    kinds: set[str] = field(default_factory=set)


def find_producers(captured: Capture) -> tuple[Producer, ...]:
    """Every input that a factor per channel can be folded out of, in the order of its readers' calls.

    Found: an affine norm; x · (1 + scale) + shift or x · y with pieces of a linear's output; a linear's output itself.
    Casts, reshapes and permutes may lie between. None where any value on the way is used elsewhere too, a parameter
    or a layer is used twice, or a layer that would have to change is called under several names.
    """
    return _Finder(captured).all()


class _Finder:
    def __init__(self, captured: Capture) -> None:
        self.graph, self.parameters = captured.graph, captured.parameters
        self.uses: dict[str, list[Node]] = defaultdict(list)
        for node, name in self.parameters.items():
            self.uses[name] += node.users
        self.names = self._once_called(captured)
        self.sources: dict[Node, _Source] = {}
        self.ends: dict[str, list[tuple[int, int, Node]]] = defaultdict(list)
        """By parameter, or node of a linear's call: channels [low, high) and who uses them other than by a view."""
        for node, name in self.parameters.items():
            if shape := ops.shape(node):
                flat = axes.channels_on(0, (prod(shape),))
                if layout := axes.reshape(flat, shape):
                    self._spread(node, name, Value(layout, 0, prod(shape)))
        for node in self.names:
            shape = ops.shape(node)
            if ops.name(node) == "linear" and shape:
                value = Value(axes.channels_on(len(shape) - 1, shape), 0, shape[-1])
                self._spread(node, node.name, value)

    def _once_called(self, captured: Capture) -> dict[Node, str]:
        """Layers with one name and one call, that use their own weight and nothing else does, by the call, in order."""
        names: dict[Node, list[str]] = defaultdict(list)
        for name, calls in captured.calls.items():
            for call in calls:
                names[call].append(name)
        found = {}
        for call, own in names.items():
            whole = len(own) == 1 and captured.calls[own[0]] == [call]
            if whole and self._only_use(call.args[1], call, f"{own[0]}.weight"):
                bias = ops.argument(call, 2, "bias")
                if bias is None or self._only_use(bias, call, f"{own[0]}.bias"):
                    found[call] = own[0]
        order = {node: index for index, node in enumerate(captured.graph.nodes)}
        return dict(sorted(found.items(), key=lambda entry: order[entry[0]]))

    def _only_use(self, parameter: object, user: Node, name: str) -> bool:
        return isinstance(parameter, Node) and self.parameters.get(parameter) == name and self.uses[name] == [user]

    def _spread(self, start: Node, owner: str, value: Value) -> None:
        pending = [(start, value)]
        while pending:
            node, value = pending.pop()
            self.sources[node] = _Source(start, value)
            if not node.users:  # what the model returns
                self.ends[owner].append((value.low, value.high, node))
            for user in node.users:
                parts = viewed(user, node, value)
                if parts is None:
                    self.ends[owner].append((value.low, value.high, user))
                else:
                    pending += parts

    def all(self) -> tuple[Producer, ...]:
        found: list[Producer] = []
        known: set[str] = set()
        for call, name in self.names.items():
            if name in known:
                continue
            try:
                producer = self._producer(call)
            except _NotFound as reason:
                logger.debug("%s: nothing before it takes a factor: %s", name, reason)
                continue
            if known.isdisjoint(producer.readers):
                found.append(producer)
            known.update(producer.readers)
        return tuple(found)

    def _producer(self, call: Node) -> Producer:
        given, axis = ops.source(call), channels_of(call)
        shape = ops.shape(given)
        if given is None or axis is None or shape is None or shape[axis] < 2:
            raise _NotFound("its input has no channels")
        way = _Way()
        self._divide(given, axes.channels_on(axis, shape), 0.0, None, way, 0)
        if call not in way.readers:
            raise _NotFound("it does not read its input alone")
        order = {node: index for index, node in enumerate(self.names)}
        readers = sorted(way.readers, key=order.__getitem__)
        kind = next((kind for kind in ("adaln", "norm") if kind in way.kinds), "linear")
        return Producer(kind, tuple(way.rows), tuple(self.names[node] for node in readers))

    def _divide(self, node: Node, layout: Layout, plus: float, consumer: Node | None, way: _Way, depth: int) -> None:
        """Note the rows that make `node` + plus be divided by s, for the consumer and readers alone."""
        if depth > _DEEPEST:
            raise _NotFound("what makes it is too far")
        if plus == 0:
            self._read_by(node, layout, consumer, way)
        elif consumer is None or list(node.users) != [consumer] or occurrences(node, consumer) != 1:
            raise _NotFound(f"{node} is used elsewhere")
        if node in self.sources:
            return self._rows(node, layout, plus, consumer, way)
        if writes(node):
            raise _NotFound(f"{node} writes to its input")
        kind = ops.name(node)
        if kind in ops.SUM | ops.PRODUCT:
            return self._arithmetic(node, kind, layout, plus, way, depth)
        if kind in _AFFINE and plus == 0:
            return self._norm(node, kind, layout, way)
        source, shape = ops.source(node), ops.shape(ops.source(node))
        before = None if shape is None else before_view(node, kind, layout, shape)
        if source is None or before is None:
            raise _NotFound(f"{kind or node} does not pass a factor on")
        self._divide(source, before, plus, node, way, depth + 1)

    def _read_by(self, node: Node, layout: Layout, consumer: Node | None, way: _Way) -> None:
        """Every user is the consumer, once, or leads to layers that read the channels."""
        for user in node.users:
            if user is consumer:
                if occurrences(node, user) != 1:
                    raise _NotFound(f"{user} takes it twice")
            elif (found := self._readers(user, node, layout)) is None:
                raise _NotFound(f"{node} is used by {user}, too")
            else:
                way.readers |= found

    def _readers(self, user: Node, node: Node, layout: Layout) -> set[Node] | None:
        """The layers that `user` of `node` leads to by views; None if to anything else."""
        if user in self.names:
            axis = channels_of(user)
            whole = axis is not None and user.args[0] is node and occurrences(node, user) == 1
            return {user} if whole and only_on(layout, axis) else None
        kind = ops.name(user)
        after = layout_after(user, node, kind, layout) if kind in VIEWS and not writes(user) else None
        if after is None or user.args[0] is not node or not user.users:
            return None
        found: set[Node] = set()
        for later in user.users:
            inner = self._readers(later, user, after)
            if inner is None:
                return None
            found |= inner
        return found

    def _arithmetic(self, node: Node, kind: str, layout: Layout, plus: float, way: _Way, depth: int) -> None:
        operands = ops.tensor_operands(node)
        if node.kwargs or len(node.args) != 2:
            raise _NotFound(f"{node} has further arguments")
        numbers = [a for a in node.args if isinstance(a, (int, float)) and not isinstance(a, bool)]
        if kind == "add" and len(operands) == 2 and plus == 0:
            for operand in operands:
                self._divide(operand, _operand(layout, operand), 0.0, node, way, depth + 1)
        elif kind == "add" and len(operands) == len(numbers) == 1:
            self._divide(operands[0], _operand(layout, operands[0]), plus + float(numbers[0]), node, way, depth + 1)
        elif kind in ops.PRODUCT and plus == 0 and len(operands) == 1 and operands[0] is node.args[0]:
            self._divide(operands[0], _operand(layout, operands[0]), 0.0, node, way, depth + 1)
        elif kind in ("mul", "multiply") and plus == 0 and len(operands) == 2:
            self._product(node, operands, layout, way, depth)
        else:
            raise _NotFound(f"{kind} does not pass a factor on")

    def _product(self, node: Node, operands: list[Node], layout: Layout, way: _Way, depth: int) -> None:
        reasons = []
        for operand in operands:
            tried = _Way(readers=set(way.readers))
            try:
                self._divide(operand, _operand(layout, operand), 0.0, node, tried, depth + 1)
            except _NotFound as reason:
                reasons.append(str(reason))
                continue
            way.rows += tried.rows
            way.readers |= tried.readers
            way.kinds |= tried.kinds
            return
        raise _NotFound(" and ".join(reasons))

    def _norm(self, node: Node, kind: str, layout: Layout, way: _Way) -> None:
        shape = ops.shape(node) or ()
        axis = 1 if kind == "group_norm" else len(shape) - 1
        if not only_on(layout, axis) or (kind != "group_norm" and list(node.args[1]) != [shape[axis]]):  # type: ignore[arg-type]
            raise _NotFound(f"{node} has its weights on other dimensions")
        positions = zip(_AFFINE[kind], ("weight", "bias"), strict=True)
        given = [None if place is None else ops.argument(node, place, key) for place, key in positions]
        if given[0] is None:
            raise _NotFound(f"{node} has no weight")
        for parameter in given:
            if parameter is not None:
                name = self.parameters.get(parameter)
                if name is None or self.uses[name] != [node]:
                    raise _NotFound(f"a weight of {node} is used elsewhere")
                way.rows.append(Rows(name, 0, shape[axis]))
        way.kinds.add("norm")

    def _rows(self, node: Node, layout: Layout, plus: float, consumer: Node | None, way: _Way) -> None:
        source = self.sources[node]
        owner, low, high = source.owner, source.value.low, source.value.high
        if channel_part(source.value.layout) != channel_part(layout) or high - low != axes.extent(layout):
            raise _NotFound(f"{node} has its channels elsewhere")
        key = self.parameters.get(owner, owner.name)
        for start, stop, user in self.ends[key]:
            if start < high and low < stop and user is not consumer and user not in way.readers:
                raise _NotFound(f"{user} uses the same part of {key}")
        if owner in self.parameters:
            way.kinds.add("norm")
            way.rows.append(Rows(key, low, high, plus=plus))
            return
        name, bias = self.names[owner], ops.argument(owner, 2, "bias")
        if bias is None and plus:
            raise _NotFound(f"{name} has no bias")
        if plus or any(row.parameter == f"{name}.weight" for row in way.rows):
            way.kinds.add("adaln")
        way.rows.append(Rows(f"{name}.weight", low, high, width=(ops.shape(owner.args[1]) or (1, 1))[1]))
        if bias is not None:
            way.rows.append(Rows(f"{name}.bias", low, high, plus=plus))


def _operand(layout: Layout, operand: Node) -> Layout:
    found = axes.operand(layout, ops.shape(operand) or ())
    if found is None:
        raise _NotFound(f"{operand} has one value for all channels")
    return found
