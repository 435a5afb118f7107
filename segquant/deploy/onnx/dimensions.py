"""Which sizes a traced model takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sympy
import torch
from torch.export import ExportedProgram
from torch.utils._sympy.numbers import IntInfinity

from segquant.deploy.onnx.inputs import Arguments
from segquant.deploy.onnx.manifest import Dimension, Input
from segquant.deploy.onnx.trials import Sizes


def inputs_of(program: ExportedProgram, arguments: Arguments, sizes: Mapping[str, Sizes] | None = None) -> list[Input]:
    """Every input with its dimensions."""
    found = []
    for name, tensor, value in zip(arguments.names, arguments.tensors, values_of(program), strict=True):
        both = zip(value.shape, tensor.shape, strict=True)
        dimensions = tuple(_dimension(size, count, program, sizes or {}) for size, count in both)
        found.append(Input(name, str(value.dtype).removeprefix("torch."), dimensions))
    return found


def values_of(program: ExportedProgram) -> list[Any]:
    """Every input as it was traced, with symbols for sizes that vary."""
    nodes = {node.name: node for node in program.graph.nodes}
    return [nodes[name].meta["val"] for name in program.graph_signature.user_inputs]


def plain_symbol(size: Any) -> tuple[sympy.Symbol | None, int]:
    """The symbol of a size that is one, or a multiple of one, and the factor; None of any other size."""
    symbols = sorted(size.free_symbols, key=str)
    if len(symbols) != 1:
        return None, 1
    multiple = int(size.as_coeff_Mul()[0]) if size.is_Mul else 1
    return (symbols[0], multiple) if size == multiple * symbols[0] else (None, 1)


def _dimension(
    size: int | torch.SymInt, example: int, program: ExportedProgram, sizes: Mapping[str, Sizes]
) -> Dimension:
    if isinstance(size, int):
        return Dimension(None, size)
    expression: Any = size.node.expr
    symbols = sorted(expression.free_symbols, key=str)
    if not symbols:
        return Dimension(None, int(expression))
    symbol, multiple = plain_symbol(expression)
    low, high = (1, None) if symbol is None else bounds(symbol, program)
    known = sizes.get(str(symbol), Sizes(str(symbols[0])))
    if known.fixed:
        return Dimension(None, example)
    low, multiple = low if known.least is None else known.least, multiple * known.step
    low, high = -(-max(1, low) // known.step), None if high is None else high // known.step
    return Dimension(known.name, low * multiple, None if high is None else high * multiple, multiple)


def bounds(symbol: sympy.Symbol, program: ExportedProgram) -> tuple[int, int | None]:
    """The least and the greatest size by which torch.export traced; None: without end."""
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
