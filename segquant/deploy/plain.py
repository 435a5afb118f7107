"""Quantized layers in the terms of other tools: one integer product, or float."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from segquant.kernels.integers import signed_codes, why_no_integers
from segquant.layers.layer import QuantLayer
from segquant.layers.linear import QuantConv2d
from segquant.numerics.fake_quant import expand_weight_scale, weight_scales
from segquant.numerics.formats import QuantScheme

TOLD = {
    "smoothing": "its input is smoothed",
    "rotation": "its input is rotated",
    "regular_rotation": "its input is rotated in groups",
    "low_rank": "it has a low-rank branch",
    "shift": "its input is shifted",
}


def why_not_plain(layer: QuantLayer, transforms: tuple[str, ...] = ()) -> str | None:
    """Why a layer is not one int8 product with a scale per output and one input grid; None if it is.

    Weights of fewer bits are written as int8, and those with zero points less these.

    Args:
        transforms: names of those that the tool can do.
    """
    layout, weight = layer.layout, layer.layout.weight_spec
    if isinstance(layer, QuantConv2d):
        return "a convolution"
    if why_no_integers(QuantScheme(weight, None)) is not None:
        return f"its weights are {weight.dtype}; int{weight.bits} is the nearest"
    given = layout.scheme.input
    if given is None:
        return "its input stays in float"
    if given.dtype not in ("int8", "uint8"):
        return f"its input is {given.dtype}; int8 is the nearest"
    if given.dynamic and given.scale_dtype != "float32":
        return f"its input's scales are {given.scale_dtype}; float32 is the nearest"
    if len(layout.branches) > 1:
        return f"{len(layout.branches)} segments of its output have inputs of their own"
    if len(layout.columns) > 1:
        return f"{len(layout.columns)} pieces of its input have scales of their own"
    if weight.group_size or given.group_size:
        return "it has scales by groups"
    if any(layout.two_products):
        return "DualScale takes two products"
    other = next((each.name for each in layout.transforms if each.name not in transforms), None)
    return None if other is None else TOLD.get(other, f"it has the transform {other!r}")


def has_zero_point(layer: QuantLayer) -> bool:
    """Whether its input has one grid over the range of both signs."""
    grid = layer.layout.input_grid
    return grid is not None and grid.zero_point


def byte_codes(layer: QuantLayer) -> Tensor:
    """int8 [out, in] of a layer that is plain."""
    return signed_codes(layer.layout, layer.tensors()).contiguous()


def row_scales(layer: QuantLayer) -> Tensor:
    """Float32 [out, 1] of a layer with one piece."""
    layout = layer.layout
    scale = expand_weight_scale(weight_scales(layout, layer.tensors()).scale, layout.weight_rows, (1,))
    return scale.expand(layout.out_features, 1).contiguous()


def widened(layer: QuantLayer) -> str:
    """What a report notes of codes that have fewer bits in the model; "" if they have not."""
    dtype = layer.layout.weight_spec.dtype
    return "" if dtype == "int8" else f"weights of {dtype} as int8"


def float_layer(layer: QuantLayer) -> nn.Linear | nn.Conv2d:
    """The float layer whose weight this one's codes mean."""
    made: nn.Linear | nn.Conv2d
    bias = layer.bias is not None
    if isinstance(layer, QuantConv2d):
        kind: Any = nn.Conv2d
        channels, window = (layer.in_channels, layer.out_channels), (layer.kernel_size, layer.stride)
        rest = (layer.padding, layer.dilation, 1, bias, layer.padding_mode)
        made = kind(*channels, *window, *rest, device="meta")
    else:
        made = nn.Linear(layer.in_features, layer.out_features, bias, device="meta")
    made.weight = nn.Parameter(layer._float_weight(), requires_grad=False)
    if bias:
        made.bias = nn.Parameter(layer.bias.to(made.weight.dtype), requires_grad=False)
    return made.train(layer.training)


def bias_of(layer: QuantLayer, dtype: torch.dtype) -> nn.Parameter | None:
    return None if layer.bias is None else nn.Parameter(layer.bias.to(dtype), requires_grad=False)
