"""Capture by torch.export, subgraphs inlined."""

from __future__ import annotations

import contextlib
import io
import logging
import operator
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Graph, GraphModule, Node

from segquant.errors import QuantizationError
from segquant.graph.capture.calls import Capture, find_calls, note_called, parameter_names
from segquant.graph.capture.copies import example_copy, fake, fake_copy, tensors_in

logger = logging.getLogger(__name__)
# Operators that only run a subgraph under another grad or autocast mode, or with recomputation.
_WRAPPERS = ("wrap_with_set_grad_enabled", "wrap_with_autocast", "tag_activation_checkpoint", "wrap")


class _Root(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        output = self.model(*args, **kwargs)
        tensors = list(tensors_in(output))
        if not tensors:
            raise QuantizationError(
                f"forward returned a {type(output).__name__} without tensors in it (looked for in lists, "
                "tuples, mappings and dataclasses)"
            )
        return tensors


def exported(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], device: torch.device) -> Capture:
    """Export a fake copy of `model`, called with fake copies of `args` and `kwargs`."""
    from torch.fx.experimental.symbolic_shapes import ShapeEnv  # imports sympy, half a second of `import segquant`

    fake_mode = FakeTensorMode(shape_env=ShapeEnv())
    with torch.no_grad():
        root = _Root(fake_copy(model, fake_mode, device)).eval()
        given = example_copy(args, kwargs, lambda tensor: fake(tensor, fake_mode, device))
        ran, written = note_called(root.model), io.StringIO()
        try:
            with contextlib.redirect_stderr(written):
                program = torch.export.export(root, *given, strict=False)
        finally:
            if written.getvalue():  # torch prints the half of the graph that it has; not every user wants it
                logger.debug("%s", written.getvalue())
    return _flatten(program, root, ran)


def _flatten(program: ExportedProgram, root: _Root, ran: Set[str]) -> Capture:
    graph, placeholders = _inlined(program.graph_module)
    signature = program.graph_signature
    parameters = {placeholders[name]: root.get_parameter(key) for name, key in signature.inputs_to_parameters.items()}
    user = {spec.arg.name for spec in signature.input_specs if spec.kind is InputKind.USER_INPUT}
    inputs = frozenset(node for name, node in placeholders.items() if name in user)
    calls = find_calls(graph, root.model, parameters, ran)
    return Capture(graph, calls, inputs, parameter_names(root.model, parameters))


def _inlined(module: GraphModule) -> tuple[Graph, dict[str, Node]]:
    flat = Graph()
    placeholders: dict[str, Node] = {}

    def emit(owner: GraphModule, values: dict[Node, Any]) -> Any:
        for node in owner.graph.nodes:
            if node.op == "output":
                return torch.fx.map_arg(node.args[0], values.__getitem__)
            if node.op == "placeholder" and node in values:
                continue
            inner = _subgraph(owner, node)
            if inner is not None:
                subgraph, position = inner
                passed = torch.fx.map_arg(tuple(node.args[position + 1 :]), values.__getitem__)
                heads = [n for n in subgraph.graph.nodes if n.op == "placeholder"]
                values[node] = emit(subgraph, dict(zip(heads, passed, strict=True)))
            elif node.target is operator.getitem and not isinstance(values[node.args[0]], Node):
                values[node] = values[node.args[0]][node.args[1]]
            else:
                values[node] = flat.node_copy(node, values.__getitem__)
                if node.op == "placeholder":
                    placeholders[node.name] = values[node]
        raise AssertionError("a graph without an output node")

    flat.output(emit(module, {}))
    return flat, placeholders


def _subgraph(owner: GraphModule, node: Node) -> tuple[GraphModule, int] | None:
    """The graph that a wrapper operator runs, and its argument position; operands follow."""
    for position, argument in _subgraph_names(node):
        inner = owner.get_submodule(argument)
        if isinstance(inner, GraphModule):
            return inner, position
    return None


def _subgraph_names(node: Node) -> Iterator[tuple[int, str]]:
    if node.op == "call_function" and getattr(node.target, "_name", None) in _WRAPPERS:
        for position, argument in enumerate(node.args):
            if isinstance(argument, Node) and argument.op == "get_attr":
                yield position, str(argument.target)
