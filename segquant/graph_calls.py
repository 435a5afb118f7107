"""A captured graph, and which of its nodes call which layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.fx import Graph, Node

from segquant import graph_ops
from segquant.graph_copy import PLANNED


@dataclass(frozen=True)
class Capture:
    """A flat graph of a model.

    Attributes:
        graph: operators in the order of execution; `node.meta["val"]` holds the fake result.
        calls: the nodes that call each linear layer and each 2-D convolution, by module name; every such
            layer has an entry, and one that forward never calls has an empty one.
        inputs: the placeholders of the tensors that the caller passed to the model.
    """

    graph: Graph
    calls: dict[str, list[Node]]
    inputs: frozenset[Node]


def planned_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every nn.Linear and nn.Conv2d under each of its names, in the order of `named_modules`."""
    return {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, PLANNED)
    }


def find_calls(graph: Graph, model: nn.Module, parameters: Mapping[Node, Tensor]) -> dict[str, list[Node]]:
    """The nodes of `graph` that call each layer of `model`, told by the weight they take.

    Args:
        graph: flat.
        model: the one that was captured; no two layers of it share a weight.
        parameters: the parameter that each node of the graph which stands for one holds.
    """
    layers = planned_layers(model)
    owners: dict[int, list[str]] = {}  # several names where one module object sits in several places
    for name, module in layers.items():
        for key, parameter in module.named_parameters():
            if "weight" in key:
                owners.setdefault(id(parameter), []).append(name)
    weights = {node: owners[id(tensor)] for node, tensor in parameters.items() if id(tensor) in owners}
    calls: dict[str, list[Node]] = {name: [] for name in layers}
    for node in graph.nodes:
        if graph_ops.name(node) in graph_ops.LAYER:
            for name in _layers_of(node.args[1], weights):
                if isinstance(layers[name], nn.Linear) == (graph_ops.name(node) == "linear"):
                    calls[name].append(node)
    return calls


def _layers_of(weight: Node, weights: Mapping[Node, list[str]]) -> list[str]:
    """All names of the layer whose parameter a weight is made from, through casts, weight norm, …"""
    pending, seen = [weight], {weight}
    found: list[list[str]] = []
    while pending:
        node = pending.pop()
        if node in weights and weights[node] not in found:
            found.append(weights[node])
        if graph_ops.name(node) not in graph_ops.LAYER:
            pending += [source for source in node.all_input_nodes if source not in seen]
            seen.update(node.all_input_nodes)
    return found[0] if len(found) == 1 else []
