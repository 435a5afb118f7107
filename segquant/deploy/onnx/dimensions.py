"""Which sizes a traced model takes."""

from __future__ import annotations

from typing import Any

import sympy
import torch
from torch.export import ExportedProgram
from torch.utils._sympy.numbers import IntInfinity

from segquant.deploy.onnx.manifest import Dimension, Input


def inputs_of(program: ExportedProgram, names: list[str]) -> list[Input]:
    """Every input with its dimensions."""
    nodes = {node.name: node for node in program.graph.nodes}
    values = [nodes[name].meta["val"] for name in program.graph_signature.user_inputs]
    return [
        Input(name, str(value.dtype).removeprefix("torch."), tuple(_dimension(size, program) for size in value.shape))
        for name, value in zip(names, values, strict=True)
    ]


def _dimension(size: int | torch.SymInt, program: ExportedProgram) -> Dimension:
    if isinstance(size, int):
        return Dimension(None, size)
    expression: Any = size.node.expr
    symbols = sorted(expression.free_symbols, key=str)
    if not symbols:
        return Dimension(None, int(expression))
    multiple = int(expression.as_coeff_Mul()[0]) if len(symbols) == 1 and expression.is_Mul else 1
    low, high = _bounds(symbols[0], program) if expression in (symbols[0], multiple * symbols[0]) else (1, None)
    return Dimension(str(symbols[0]), max(1, low) * multiple, None if high is None else high * multiple, multiple)


def _bounds(symbol: sympy.Symbol, program: ExportedProgram) -> tuple[int, int | None]:
    found = program.range_constraints.get(symbol)
    if found is None:
        return 1, None
    upper: Any = found.upper
    endless = isinstance(upper, IntInfinity) or not upper.is_finite or int(upper) >= 2**31
    return int(found.lower), None if endless else int(upper)


def unwillingly_fixed(inputs: list[Input]) -> list[str]:
    """Batches, heights and widths, and lengths that only the example's size fits."""
    found = []
    for each in inputs:
        rank = len(each.dimensions)
        wanted = {0} | ({2, 3} if rank == 4 else {1} if rank == 3 else set())
        for position in sorted(wanted & set(range(rank))):
            if each.dimensions[position].name is None:
                found.append(f"dimension {position} of {each.name} ({each.dimensions[position].low})")
    return found
