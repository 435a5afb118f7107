"""The least sizes that a traced model takes.

torch.export makes constants of sizes of 1, and so states 2 as the least of every size that varies, whatever the model
does. Whether the graph is right below that is found out by running both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.nn import functional as nnf

from segquant.deploy.onnx.dimensions import bounds, plain_symbol, values_of
from segquant.deploy.onnx.inputs import Arguments, Wrapped
from segquant.deploy.onnx.traced import CONVOLUTION, TracedLinear
from segquant.layers.layer import QuantLayer
from segquant.modules.state import own_state
from segquant.modules.swap import evaluating, swapped

LARGEST = 8
"""Greater bounds are of the model, and not tried."""
TOLERANCE = 1e-4
"""Of the same float32 operators in another order."""


@own_state()
def least_sizes(
    program: ExportedProgram,
    model: nn.Module,
    layers: Mapping[str, QuantLayer],
    forms: Mapping[str, str],
    arguments: Arguments,
) -> dict[str, int]:
    """Least sizes by symbol, where they are less than the program's: the graph's output is the model's there.

    Each is right alone, with all others as in the example, and together with those found before.
    """
    stand_ins = [_Picked(layer, number, forms[name]) for number, (name, layer) in enumerate(layers.items())]
    places = {id(layer): stand_in for layer, stand_in in zip(layers.values(), stand_ins, strict=True)}
    found: dict[str, int] = {}
    with swapped(model, places) as inner, evaluating(inner), torch.no_grad():
        both = Wrapped(inner, arguments), _Graph(program, stand_ins)
        for symbol, low in _candidates(program).items():
            for size in range(low - 1, 0, -1):
                alone, together = ({symbol: size}, {**found, symbol: size})
                trials = [alone] if alone == together else [alone, together]
                if not all(_agree(*both, _cut(arguments, program, sizes)) for sizes in trials):
                    break
                found[symbol] = size
    return found


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


def _candidates(program: ExportedProgram) -> dict[str, int]:
    """Symbols in the order of inputs, with the program's bound: those that are whole dimensions."""
    shapes = [size.node.expr for value in values_of(program) for size in value.shape if isinstance(size, torch.SymInt)]
    mixed = {str(each) for size in shapes if plain_symbol(size)[0] is None for each in size.free_symbols}
    found = {}
    for symbol in (plain_symbol(size)[0] for size in shapes):
        if symbol is not None and str(symbol) not in mixed and 1 < bounds(symbol, program)[0] <= LARGEST:
            found[str(symbol)] = bounds(symbol, program)[0]
    return found


def _cut(arguments: Arguments, program: ExportedProgram, sizes: Mapping[str, int]) -> list[Tensor]:
    """The example with other sizes."""
    found = []
    for tensor, value in zip(arguments.tensors, values_of(program), strict=True):
        for dim, size in enumerate(value.shape):
            symbol, multiple = plain_symbol(size.node.expr) if isinstance(size, torch.SymInt) else (None, 1)
            if symbol is not None and str(symbol) in sizes:
                tensor = tensor.narrow(dim, 0, sizes[str(symbol)] * multiple)
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
