"""From a model to one flat graph of operators, by torch.export on fake tensors of a copy."""

from __future__ import annotations

import copy
import operator
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._pytree import tree_map

from segquant.errors import QuantizationError

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)
# Operators that only run a subgraph under another grad or autocast mode, or with recomputation.
_WRAPPERS = ("wrap_with_set_grad_enabled", "wrap_with_autocast", "tag_activation_checkpoint", "wrap")


@dataclass(frozen=True)
class Capture:
    """A flat graph of a model.

    Attributes:
        graph: operators in the order of execution; `node.meta["val"]` holds the fake result.
        calls: the nodes that call each linear layer, by module name; every linear layer has an entry.
        inputs: the placeholders of the tensors that the caller passed to the model.
    """

    graph: Graph
    calls: dict[str, list[Node]]
    inputs: frozenset[Node]


class _Root(nn.Module):
    """The model, returning a plain list of tensors whatever its own output class is."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> list[torch.Tensor]:
        output = self.model(*args, **kwargs)
        tensors = list(_tensors_in(output))
        if not tensors:
            raise QuantizationError(
                f"forward returned a {type(output).__name__} without tensors in it (looked for in lists, "
                "tuples, mappings and dataclasses)"
            )
        return tensors


def capture(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Capture:
    """Export a fake copy of `model` called with `args` and `kwargs`; the model itself is not touched.

    Raises:
        QuantizationError: the model cannot be copied or exported; names the model's class and the cause.
    """
    fake_mode = FakeTensorMode(shape_env=ShapeEnv())
    device = _device_of(model, (args, kwargs))
    try:
        with torch.no_grad():
            root = _Root(_fake_copy(model, fake_mode, device)).eval()
            fake_args, fake_kwargs = tree_map(
                lambda leaf: _fake(leaf, fake_mode, device) if isinstance(leaf, torch.Tensor) else leaf,
                (tuple(args), dict(kwargs)),
            )
            program = torch.export.export(root, fake_args, fake_kwargs, strict=False)
    except Exception as error:
        raise QuantizationError(_export_message(model, args, kwargs, error)) from error
    return _flatten(program, root)


def _export_message(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], error: Exception) -> str:
    cause = next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")
    given = [*(f"argument {i}" for i in range(len(args))), *kwargs]
    return (
        f"torch.export could not read the graph of {type(model).__name__} called with "
        f"({', '.join(given) or 'no arguments'}): {type(error).__name__}: {cause.rstrip('.')}. "
        "Pass example inputs that its forward accepts and that take no data-dependent branch, "
        "or pass `segments` by hand."
    )


def _device_of(model: nn.Module, example: Any) -> torch.device:
    """The first device that is not meta: fake tensors pretend to be there, as some models ask for it."""
    tensors = [*model.parameters(), *model.buffers(), *_tensors_in(example)]
    return next((t.device for t in tensors if t.device.type != "meta"), torch.device("cpu"))


def _fake(tensor: torch.Tensor, fake_mode: FakeTensorMode, device: torch.device) -> torch.Tensor:
    with fake_mode:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)


def _fake_copy(model: nn.Module, fake_mode: FakeTensorMode, device: torch.device) -> nn.Module:
    """A copy with the same structure, fake tensors for weights, and no hooks (they would see fake tensors).

    Linear layers that share a weight get one each, so that the weight tells which layer a call is.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for name in _HOOKS:
            if (hooks := vars(module).get(name)) is not None:
                memo[id(hooks)] = OrderedDict()
        loose = [v for v in vars(module).values() if isinstance(v, torch.Tensor) and _needs_fake(v, device)]
        for tensor in [*module._buffers.values(), *loose]:
            if tensor is not None:
                memo[id(tensor)] = _fake(tensor, fake_mode, device)
        for tensor in module._parameters.values():
            if tensor is not None:
                memo[id(tensor)] = nn.Parameter(_fake(tensor, fake_mode, device), requires_grad=False)
    result = copy.deepcopy(model, memo)
    seen: set[int] = set()
    for module in result.modules():
        weight = module._parameters.get("weight") if isinstance(module, nn.Linear) else None
        if weight is None:
            continue
        if id(weight) in seen:
            module.weight = nn.Parameter(_fake(weight, fake_mode, device), requires_grad=False)
        seen.add(id(module.weight))
    return result


def _needs_fake(tensor: torch.Tensor, device: torch.device) -> bool:
    # Plain tensor attributes keep their values, which a model may read, unless they are unusable as they are.
    return tensor.device != device or not tensor.is_leaf or isinstance(tensor, FakeTensor)


def _tensors_in(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors_in(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _tensors_in(getattr(value, field.name))


def _flatten(program: ExportedProgram, root: nn.Module) -> Capture:
    linears = [
        (name, module)
        for name, module in root.model.named_modules(remove_duplicate=False)
        if isinstance(module, nn.Linear)
    ]
    owners: dict[int, list[str]] = {}  # several names where one module object sits in several places
    for name, module in linears:
        for key, parameter in module.named_parameters():
            if "weight" in key:
                owners.setdefault(id(parameter), []).append(name)
    graph, placeholders = _inlined(program.graph_module)
    signature = program.graph_signature
    weights = {
        placeholders[name]: owners[id(root.get_parameter(key))]
        for name, key in signature.inputs_to_parameters.items()
        if id(root.get_parameter(key)) in owners
    }
    calls: dict[str, list[Node]] = {name: [] for name, _ in linears}
    for node in graph.nodes:
        if node.op == "call_function" and node.target is torch.ops.aten.linear.default:
            for name in _layers_of(node.args[1], weights):
                calls[name].append(node)
    user = {spec.arg.name for spec in signature.input_specs if spec.kind is InputKind.USER_INPUT}
    return Capture(graph, calls, frozenset(node for name, node in placeholders.items() if name in user))


def _layers_of(weight: Node, weights: Mapping[Node, list[str]]) -> list[str]:
    """All names of the linear layer whose parameter a weight is made from, through casts, weight norm, …"""
    pending, seen = [weight], {weight}
    found: list[list[str]] = []
    while pending:
        node = pending.pop()
        if node in weights and weights[node] not in found:
            found.append(weights[node])
        if node.target is not torch.ops.aten.linear.default:
            pending += [source for source in node.all_input_nodes if source not in seen]
            seen.update(node.all_input_nodes)
    return found[0] if len(found) == 1 else []


def _inlined(module: GraphModule) -> tuple[Graph, dict[str, Node]]:
    """One graph without subgraphs, and its placeholders by their name in `module`."""
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
    """The graph that a wrapper operator runs, and its position among the arguments (operands follow it)."""
    if node.op != "call_function" or getattr(node.target, "_name", None) not in _WRAPPERS:
        return None
    for position, argument in enumerate(node.args):
        if isinstance(argument, Node) and argument.op == "get_attr":
            inner = owner.get_submodule(str(argument.target))
            if isinstance(inner, GraphModule):
                return inner, position
    return None
