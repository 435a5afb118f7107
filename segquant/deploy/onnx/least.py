"""The sizes that a traced model takes: the least, and what they are multiples of.

torch.export makes constants of sizes of 1, and so states 2 as the least of every size that varies, whatever the model
does. Whether the graph is right below that is found out by running both. So is whether a size must be even, or a
multiple of 4 …, as in UNets, which torch.export knows and does not state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.nn import functional as nnf

from segquant.deploy.onnx.dimensions import Sizes, bounds, plain_symbol, values_of
from segquant.deploy.onnx.inputs import Arguments, Wrapped
from segquant.deploy.onnx.traced import CONVOLUTION, TracedLinear
from segquant.layers.layer import QuantLayer
from segquant.modules.state import own_state
from segquant.modules.swap import evaluating, swapped

LARGEST = 8
"""Greater bounds are of the model, and not tried."""
TOLERANCE = 1e-4
"""Of the same float32 operators in another order."""
Unit = tuple[str, ...]
"""Symbols of one size."""


@own_state()
def right_sizes(
    program: ExportedProgram,
    model: nn.Module,
    layers: Mapping[str, QuantLayer],
    forms: Mapping[str, str],
    arguments: Arguments,
) -> dict[str, Sizes]:
    """Sizes by symbol at which the graph's output is the model's.

    Each is right alone, with all others as in the example; least sizes also together with those found before. First
    dimensions that vary only together, as batches do, have one name.
    """
    stand_ins = [_Picked(layer, number, forms[name]) for number, (name, layer) in enumerate(layers.items())]
    places = {id(layer): stand_in for layer, stand_in in zip(layers.values(), stand_ins, strict=True)}
    found: dict[str, Sizes] = {}
    least: dict[str, int] = {}
    with swapped(model, places) as inner, evaluating(inner), torch.no_grad():
        both = Wrapped(inner, arguments), _Graph(program, stand_ins)

        def is_right(sizes: Mapping[str, int]) -> bool:
            return _agree(*both, _cut(arguments, program, sizes))

        for unit, size in _units(_examples(arguments, program), _batches(arguments, program), is_right):
            _lower(unit, _low(unit, program), least, is_right)
            step = step_of(size, partial(_all_of, unit, is_right))
            found.update({each: Sizes(unit[0], least.get(each), step) for each in unit})
    return found


def step_of(size: int, is_right: Callable[[int], bool]) -> int:
    """The least power of two that divides the example's size and whose next multiple is right too, else the size."""
    step = 1
    while step < size and size % step == 0:
        if is_right(size + step) or is_right(size - step):
            return step
        step *= 2
    return size


def _all_of(unit: Unit, is_right: Callable[[Mapping[str, int]], bool], size: int) -> bool:
    return is_right(dict.fromkeys(unit, size))


def _units(
    examples: Mapping[str, int], batches: Sequence[Unit], is_right: Callable[[Mapping[str, int]], bool]
) -> Iterator[tuple[Unit, int]]:
    """Symbols with the example's size, those together that are right together alone."""
    together: set[str] = set()
    for batch in batches:
        size = examples[batch[0]] + 1
        alone = all(is_right({each: size}) for each in batch)
        if not alone and _all_of(batch, is_right, size):
            together.update(batch)
            yield batch, examples[batch[0]]
    yield from (((each,), size) for each, size in examples.items() if each not in together)


def _lower(unit: Unit, low: int, least: dict[str, int], is_right: Callable[[Mapping[str, int]], bool]) -> None:
    """Write sizes below the program's bound that are right."""
    for size in range(min(low - 1, LARGEST - 1), 0, -1) if low <= LARGEST else ():
        alone = dict.fromkeys(unit, size)
        together = {**least, **alone}
        if not all(map(is_right, [alone] if alone == together else [alone, together])):
            return
        least.update(alone)


class _Picked(TracedLinear):
    """Some features of the input in the place of each product.

    Products treat every row by itself, so that no size of an input matters to them; all between them is computed.
    """

    def _product(
        self, kind: str, x: Tensor, branch: int, shape: list[Any], padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    ) -> Tensor:
        return self.picked(kind, x, branch, padding)

    def picked(self, kind: str, x: Tensor, branch: int, padding: Sequence[int]) -> Tensor:
        count, dim = self.layout.branches[branch], -1
        if kind == CONVOLUTION:
            window, dim = self.window, 1
            assert window is not None
            x = nnf.max_pool2d(nnf.pad(x, list(padding)), window.kernel, window.stride, 0, window.dilation)
        return x.index_select(dim, torch.arange(count, dtype=torch.int64, device=x.device) * 7 % x.shape[dim])


class _Graph(fx.Interpreter):
    """A program's graph, without its checks of sizes."""

    def __init__(self, program: ExportedProgram, stand_ins: Sequence[_Picked]) -> None:
        super().__init__(program.graph_module)
        self._program, self._stand_ins = program, stand_ins

    def outputs(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        following, held = iter(tensors), {**self._program.constants, **self._program.state_dict}
        signature = self._program.graph_signature
        given = [
            next(following) if each.kind is InputKind.USER_INPUT else held[str(each.target)]
            for each in signature.input_specs
        ]
        found = zip(signature.output_specs, self.run(*given), strict=True)
        return [value for each, value in found if each.kind is OutputKind.USER_OUTPUT]

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target is not torch.ops.onnx_symbolic._symbolic.default:
            return super().call_function(target, args, kwargs)
        (x,), kind, *_ = args
        number, branch, top, left, bottom, right = kwargs["attr_ints"]
        return self._stand_ins[number].picked(kind, x, branch, (left, right, top, bottom))


def _examples(arguments: Arguments, program: ExportedProgram) -> dict[str, int]:
    """The example's sizes by symbol, in the order of inputs, but for symbols that are parts of other expressions."""
    found: dict[str, int] = {}
    for tensor, value in zip(arguments.tensors, values_of(program), strict=True):
        for count, size in zip(tensor.shape, value.shape, strict=True):
            symbol, multiple = plain_symbol(size.node.expr) if isinstance(size, torch.SymInt) else (None, 1)
            if symbol is not None:
                found[str(symbol)] = count // multiple
    return {symbol: count for symbol, count in found.items() if symbol not in _mixed(program)}


def _batches(arguments: Arguments, program: ExportedProgram) -> list[Unit]:
    """Symbols of first dimensions that have one size in the example, where they are several."""
    examples = _examples(arguments, program)
    found: dict[int, list[str]] = {}
    for value in values_of(program):
        first = value.shape[0] if value.dim() else None
        symbol = str(plain_symbol(first.node.expr)[0]) if isinstance(first, torch.SymInt) else ""
        if symbol in examples and symbol not in found.setdefault(examples[symbol], []):
            found[examples[symbol]].append(symbol)
    return [tuple(each) for each in found.values() if len(each) > 1]


def _low(unit: Unit, program: ExportedProgram) -> int:
    found = [bounds(each, program)[0] for each in program.range_constraints if str(each) in unit]
    return max(found, default=1)


def _mixed(program: ExportedProgram) -> set[str]:
    """Symbols of sizes that are no multiple of one symbol."""
    shapes = [size.node.expr for value in values_of(program) for size in value.shape if isinstance(size, torch.SymInt)]
    return {str(each) for size in shapes if plain_symbol(size)[0] is None for each in size.free_symbols}


def _cut(arguments: Arguments, program: ExportedProgram, sizes: Mapping[str, int]) -> list[Tensor]:
    """The example with other sizes: less of it, or repeated."""
    found = []
    for tensor, value in zip(arguments.tensors, values_of(program), strict=True):
        for dim, size in enumerate(value.shape):
            symbol, multiple = plain_symbol(size.node.expr) if isinstance(size, torch.SymInt) else (None, 1)
            if symbol is not None and str(symbol) in sizes:
                wanted = sizes[str(symbol)] * multiple
                tensor = torch.cat([tensor] * -(-wanted // tensor.shape[dim]), dim).narrow(dim, 0, wanted)
        found.append(tensor.contiguous())
    return found


def _agree(model: Wrapped, graph: _Graph, tensors: Sequence[Tensor]) -> bool:
    try:
        wanted, found = model(*tensors), graph.outputs(tensors)
    except Exception:  # anything may come out of another one's forward: this size is none of its own
        return False
    return all(map(_equal, found, wanted))


def _equal(found: Tensor, wanted: Tensor) -> bool:
    if found.shape != wanted.shape or not wanted.numel() or not bool(wanted.isfinite().all()):
        return False
    return bool((found - wanted).abs().max() <= TOLERANCE * wanted.abs().max())
