"""What a method costs each layer, or why it leaves it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from segquant import Method, QuantizationError, Segments, presets
from segquant.auto.budget import buffer_bytes, layer_bytes, layer_operations
from segquant.graph.producers import Producer
from segquant.method.targets import control_cuts, layer_method, layer_methods, refuse_nothing, refuse_unmatched, targets
from segquant.modules.layers import as_linear, taps_of
from segquant.numerics.layout import Layout
from segquant.solve.lay_out import lay_out_layer
from segquant.solve.which_fold import lay_out_folded, plan_folds
from segquant_bench.pipelines.plan.counts import Layer


@dataclass(frozen=True)
class LayerCost:
    """Bytes, bytes rounded to nearest, operations per row, those of DualScale."""

    bytes: int
    plain: int
    operations: float
    dual: int


@dataclass(frozen=True)
class Costs:
    """The layers of a module under a method.

    Args:
        found: cost of quantized layers, by name.
        left: why the others are not quantized.
        unfit: those of `left` that `quantize_` refuses until they are skipped.
        folded: layers whose smoothing goes into what comes before them, if the method asks for that.
    """

    found: Mapping[str, LayerCost]
    left: Mapping[str, str]
    unfit: tuple[str, ...]
    folded: int | None = None


def costs_of(
    module: nn.Module,
    layers: Mapping[str, Layer],
    segments: Mapping[str, Segments],
    method: Method,
    precision: str,
    item: int,
    producers: Sequence[Producer] = (),
) -> Costs:
    """Costs by layer; convolutions only if the method takes them.

    Args:
        precision: of the plain rounding.
        item: bytes of an unquantized value.
        producers: what the graph shows of inputs.

    Raises:
        QuantizationError: as `quantize_`; a rank larger than a layer; no layer fits.
    """
    _refuse(module, method)
    meant = {
        name: layer for name, layer in layers.items() if method.targets.convolutions or isinstance(layer, nn.Linear)
    }
    methods = layer_methods({name: layer for name, layer in meant.items() if _groups(layer) == 1}, method)
    cuts, plain = control_cuts(segments, methods), presets.rtn(precision)
    folds = _folds(producers, methods, meant, cuts)
    found, left, unfit = {}, {}, []
    for name, layer in meant.items():
        if name not in methods:
            left[name] = "left out by the quantizer" if _groups(layer) == 1 else "a grouped convolution"
            continue
        try:
            layout = lay_out_folded(meant, methods, cuts, folds, name)
        except QuantizationError as error:
            left[name] = str(error)
            unfit.append(name)
            continue
        found[name] = _cost(layer, layout, methods[name], plain, name, item)
    if unfit and not found:
        raise QuantizationError(left[unfit[0]])
    asked = any(entry.folds for entry in methods.values())
    return Costs(found, left, tuple(unfit), sum(len(each.readers) for each in folds) if asked else None)


def _folds(
    producers: Sequence[Producer],
    methods: Mapping[str, Method],
    layers: Mapping[str, Layer],
    cuts: Mapping[str, Segments],
) -> list[Producer]:
    try:
        return plan_folds(producers, methods, layers, cuts)
    except QuantizationError:  # a layer that does not fit, which is told by itself
        return []


def _refuse(module: nn.Module, method: Method) -> None:
    refuse_unmatched(module, method)
    refuse_nothing(module, targets(module, method), method)


def _groups(layer: nn.Module) -> int:
    return getattr(layer, "groups", 1)


def _cost(layer: Layer, layout: Layout, method: Method, plain: Method, name: str, item: int) -> LayerCost:
    bias = 0 if layer.bias is None else layer.bias.numel() * item
    whole = replace(layout, branches=(layout.out_features,))
    place, added = whole.place(), method.optimizer.added(whole, name)
    buffers = [entry for transform in added for entry in transform.buffers(place).values()]
    signed = sum(size for size, dual in zip(layout.columns, layout.two_products, strict=True) if dual)
    return LayerCost(
        bytes=layer_bytes(layout, bias) + buffer_bytes(buffers),
        plain=_rounded(layer, plain, name, bias, item),
        operations=layer_operations(layout) + sum(transform.operations(place) for transform in added),
        dual=signed * layout.out_features,
    )


def _rounded(layer: Layer, plain: Method, name: str, bias: int, item: int) -> int:
    # In floating point where only an override fits.
    try:
        simple = lay_out_layer(as_linear(layer), layer_method(plain, layer), None, name, taps_of(layer))
    except QuantizationError:
        return layer.weight.numel() * item + bias
    return layer_bytes(simple, bias)


def stored_bytes(module: nn.Module, item: int, without: Iterable[nn.Module] = ()) -> int:
    """Bytes of parameters and buffers, shared ones once.

    Args:
        item: bytes of a floating-point value.
        without: submodules left out, but for what they share.
    """
    tensors = {id(tensor): tensor for tensor in _staying(module, {id(each) for each in without})}
    return sum(
        tensor.numel() * (item if tensor.is_floating_point() else tensor.element_size()) for tensor in tensors.values()
    )


def _staying(module: nn.Module, seen: set[int]) -> Iterator[Tensor]:
    if id(module) in seen:
        return
    seen.add(id(module))
    yield from module.parameters(recurse=False)
    yield from module.buffers(recurse=False)
    for child in module.children():
        yield from _staying(child, seen)
