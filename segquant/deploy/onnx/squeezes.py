"""Squeezes of dimensions that are not 1: nothing in torch, an error in engines."""

from __future__ import annotations

from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

ATEN = torch.ops.aten
IN_PLACE = (ATEN.squeeze_.default, ATEN.squeeze_.dim, ATEN.squeeze_.dims)
SQUEEZES = (ATEN.squeeze.default, ATEN.squeeze.dim, ATEN.squeeze.dims, *IN_PLACE)


def explicit_squeezes(program: ExportedProgram) -> None:
    """Each squeeze names the dimensions that it drops, in place; one that drops none is left out.

    ONNX's Squeeze refuses a dimension that is not 1, and without axes drops every 1 that it meets at run time, a batch
    of one too. A free dimension is none of 1: torch.export decides so when it traces.
    """
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.target not in SQUEEZES:
            continue
        given = node.args[0]
        dropped = _dropped(node, given.meta["val"].shape)
        if dropped:
            packet = ATEN.squeeze_ if node.target in IN_PLACE else ATEN.squeeze
            node.target, node.args = packet.dims, (given, dropped)
        elif any(user.op == "output" for user in node.users):
            node.target, node.args = ATEN.clone.default, (given,)  # an output keeps a name of its own
        else:
            node.replace_all_uses_with(given)
            graph.erase_node(node)
    program.graph_module.recompile()


def _dropped(node: Node, shape: Any) -> list[int]:
    asked = node.args[1] if len(node.args) > 1 else list(range(len(shape)))
    each: Any = [asked] if isinstance(asked, int) else asked
    places = sorted({int(dim) % len(shape) for dim in each}) if len(shape) else []
    return [dim for dim in places if isinstance(shape[dim], int) and shape[dim] == 1]
