"""A captured graph, and the nodes that call each layer."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from math import prod

from torch import Tensor, nn
from torch.fx import Graph, Node

from segquant.graph.rules import ops
from segquant.modules.layers import is_float_layer

logger = logging.getLogger(__name__)
# What may be done to a weight whose rows stay the layer's outputs, and its columns the inputs.
_KEEPS_PLACES = ops.IDENTITY | ops.UNARY | ops.BINARY | ops.RESHAPE | ops.NORM | {"_weight_norm"}


@dataclass(frozen=True)
class Capture:
    """A flat graph of a model.

    Attributes:
        graph: in execution order; `node.meta["val"]` is the fake result.
        calls: by layer name, the nodes that call it.
        inputs: placeholders of the model's input tensors.
        parameters: name of the parameter that a node stands for, where it has one name only.
    """

    graph: Graph
    calls: dict[str, list[Node]]
    inputs: frozenset[Node]
    parameters: Mapping[Node, str] = field(default_factory=dict)


def cuttable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every float nn.Linear and nn.Conv2d under all its names, in `named_modules` order."""
    return {name: module for name, module in model.named_modules(remove_duplicate=False) if is_float_layer(module)}


def parameter_names(model: nn.Module, parameters: Mapping[Node, Tensor]) -> dict[Node, str]:
    """`Capture.parameters`."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    found = {node: names.get(id(tensor), []) for node, tensor in parameters.items()}
    return {node: own[0] for node, own in found.items() if len(own) == 1}


def note_called(model: nn.Module) -> set[str]:
    """Names of the layers called from now on; filled while the model runs."""
    ran: set[str] = set()
    for name, layer in cuttable_layers(model).items():
        layer.register_forward_pre_hook(lambda *_, name=name: ran.add(name))
    return ran


def find_calls(
    graph: Graph, model: nn.Module, parameters: Mapping[Node, Tensor], ran: Set[str] = frozenset()
) -> dict[str, list[Node]]:
    """The nodes that call each layer, recognised by its weight; layers share no weights.

    A layer has none, with a warning, where a node takes a part, a transpose or a function of its weight.
    """
    layers = cuttable_layers(model)
    owners: dict[int, list[str]] = {}  # several names where one module object sits in several places
    for name, module in layers.items():
        for key, parameter in module.named_parameters():
            if "weight" in key:
                owners.setdefault(id(parameter), []).append(name)
    weights = {node: owners[id(tensor)] for node, tensor in parameters.items() if id(tensor) in owners}
    calls: dict[str, list[Node]] = {name: [] for name in layers}
    apart: set[str] = set()
    for node in graph.nodes:
        if ops.name(node) in ops.LAYER:
            is_linear = ops.name(node) == "linear"
            whole = [n for n in _layers_of(node.args[1], weights) if isinstance(layers[n], nn.Linear) == is_linear]
            for name in whole:
                calls[name].append(node)
            apart |= _made_from(node.args[1], weights).difference(whole)
    for name in apart:
        calls[name] = []
    _report([name for name, nodes in calls.items() if not nodes], apart, ran)
    return calls


def _report(uncalled: list[str], apart: Set[str], ran: Set[str]) -> None:
    silent = [name for name in uncalled if name in ran and name not in apart]
    never = [name for name in uncalled if name not in ran and name not in apart]
    if apart:
        logger.warning("not cut, since a part or a function of the weight is used on its own: %s", _list(apart))
    if silent:
        logger.warning("not cut, since they run but no linear or conv2d takes their weight: %s", _list(silent))
    if never:
        logger.info("never called: %s", ", ".join(never))


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _layers_of(weight: Node, weights: Mapping[Node, list[str]]) -> list[str]:
    """Names of the layer with this weight, if only cast, scaled or normalized."""
    shape = ops.shape(weight)
    if shape is None:
        return []
    pending, seen = [weight], {weight}
    found: list[list[str]] = []
    while pending:
        node = pending.pop()
        if node in weights:
            if ops.shape(node) == shape and weights[node] not in found:
                found.append(weights[node])
        elif ops.name(node) in _KEEPS_PLACES:
            # As many entries before as after: each is where it was, as reshapes are row-major.
            sources = [s for s in node.all_input_nodes if prod(ops.shape(s) or ()) == prod(shape)]
            pending += [source for source in sources if source not in seen]
            seen.update(sources)
    return found[0] if len(found) == 1 else []


def _made_from(weight: Node, weights: Mapping[Node, list[str]]) -> set[str]:
    pending, seen = [weight], {weight}
    found: set[str] = set()
    while pending:
        node = pending.pop()
        found.update(weights.get(node, ()))
        if ops.name(node) not in ops.LAYER:
            pending += [source for source in node.all_input_nodes if source not in seen]
            seen.update(node.all_input_nodes)
    return found
