"""A traced model and its graph, run at other sizes than the example's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.nn import functional as nnf

from segquant.deploy.onnx.attention import SCORES
from segquant.deploy.onnx.dimensions import bounds, plain_symbol, values_of
from segquant.deploy.onnx.inputs import Arguments, Wrapped
from segquant.deploy.onnx.traced import CONVOLUTION, TracedLinear
from segquant.deploy.onnx.trials import Free, Sizes, Verdict, sizes_of
from segquant.layers.layer import QuantLayer
from segquant.modules.state import own_state
from segquant.modules.swap import evaluating, swapped

TOLERANCE = 1e-4
"""Of the same float32 operators in another order."""


@own_state()
def right_sizes(
    program: ExportedProgram,
    model: nn.Module,
    layers: Mapping[str, QuantLayer],
    forms: Mapping[str, str],
    arguments: Arguments,
) -> dict[str, Sizes]:
    """Sizes by symbol at which the graph's output is the model's (`trials`)."""
    stand_ins = [_Picked(layer, number, forms[name]) for number, (name, layer) in enumerate(layers.items())]
    places = {id(layer): stand_in for layer, stand_in in zip(layers.values(), stand_ins, strict=True)}
    with swapped(model, places) as inner, evaluating(inner), torch.no_grad():
        wrapped, graph = Wrapped(inner, arguments), _Graph(program, stand_ins)

        def trial(sizes: Mapping[str, int]) -> Verdict:
            return _verdict(wrapped, graph, _resized(arguments, program, sizes))

        return sizes_of(_symbols(arguments, program), trial)


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
        inputs, kind, *_ = args
        if kind == SCORES:
            query, key = inputs
            return query @ key.mT * kwargs["attr_floats"][0]
        (x,) = inputs
        number, branch, top, left, bottom, right = kwargs["attr_ints"]
        return self._stand_ins[number].picked(kind, x, branch, (left, right, top, bottom))


def _symbols(arguments: Arguments, program: ExportedProgram) -> list[Free]:
    """In the order of inputs; not those that are parts of other expressions."""
    sizes: dict[sympy.Symbol, int] = {}
    places: dict[sympy.Symbol, list[tuple[int, int]]] = {}
    mixed: set[sympy.Symbol] = set()
    for tensor, value in zip(arguments.tensors, values_of(program), strict=True):
        for dim, size in enumerate(value.shape):
            if not isinstance(size, torch.SymInt):
                continue
            symbol, multiple = plain_symbol(size.node.expr)
            if symbol is None:
                mixed |= size.node.expr.free_symbols
                continue
            sizes[symbol] = tensor.shape[dim] // multiple
            places.setdefault(symbol, []).append((tensor.dim(), dim))
    return [
        Free(str(symbol), size, *bounds(symbol, program), tuple(places[symbol]))
        for symbol, size in sizes.items()
        if symbol not in mixed
    ]


def _resized(arguments: Arguments, program: ExportedProgram, sizes: Mapping[str, int]) -> list[Tensor]:
    """The example with other sizes: less of it, or followed by its mirror image."""
    found = []
    for tensor, value in zip(arguments.tensors, values_of(program), strict=True):
        for dim, size in enumerate(value.shape):
            symbol, multiple = plain_symbol(size.node.expr) if isinstance(size, torch.SymInt) else (None, 1)
            if symbol is not None and str(symbol) in sizes:
                wanted = sizes[str(symbol)] * multiple
                pair = torch.cat([tensor, tensor.flip(dim)], dim)
                tensor = torch.cat([pair] * -(-wanted // pair.shape[dim]), dim).narrow(dim, 0, wanted)
        found.append(tensor.contiguous())
    return found


def _verdict(model: Wrapped, graph: _Graph, tensors: Sequence[Tensor]) -> Verdict:
    try:
        wanted = model(*tensors)
    except Exception:  # anything may come out of another one's forward: this size is none of its own
        return Verdict.SILENT
    if not all(each.numel() and bool(each.isfinite().all()) for each in wanted):
        return Verdict.SILENT
    try:
        found = graph.outputs(tensors)
    except Exception:  # likewise of a graph
        return Verdict.WRONG
    return Verdict.RIGHT if all(map(_equal, found, wanted)) else Verdict.WRONG


def _equal(found: Tensor, wanted: Tensor) -> bool:
    return found.shape == wanted.shape and bool((found - wanted).abs().max() <= TOLERANCE * wanted.abs().max())
