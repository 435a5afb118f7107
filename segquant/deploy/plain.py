"""Quantized layers in the terms of other tools: one integer product, or float."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from segquant.layers.layer import QuantLayer
from segquant.layers.linear import QuantConv2d
from segquant.numerics.fake_quant import expand_weight_scale

TOLD = {
    "smoothing": "its input is smoothed",
    "rotation": "its input is rotated",
    "low_rank": "it has a low-rank branch",
    "shift": "its input is shifted",
}


def why_not_plain(layer: QuantLayer, transforms: tuple[str, ...] = ()) -> str | None:
    """Why a layer is not one int8 product with a scale per output and one input grid; None if it is.

    Args:
        transforms: names of those that the tool can do.
    """
    layout, weight = layer.layout, layer.layout.weight_spec
    if isinstance(layer, QuantConv2d):
        return "a convolution"
    if weight.dtype != "int8":
        return f"its weights are {weight.dtype}"
    if layout.scheme.input is None:
        return "its input stays in float"
    if layout.scheme.input.dtype != "int8":
        return f"its input is {layout.scheme.input.dtype}"
    if len(layout.branches) > 1:
        return f"{len(layout.branches)} segments of its output have inputs of their own"
    if len(layout.columns) > 1:
        return f"{len(layout.columns)} pieces of its input have scales of their own"
    if weight.group_size or layout.scheme.input.group_size:
        return "it has scales by groups"
    if any(layout.two_products):
        return "DualScale takes two products"
    other = next((each.name for each in layout.transforms if each.name not in transforms), None)
    return None if other is None else TOLD.get(other, f"it has the transform {other!r}")


def has_zero_point(layer: QuantLayer) -> bool:
    """Whether its input has one grid over the range of both signs."""
    grid = layer.layout.input_grid
    return grid is not None and grid.zero_point


def row_scales(layer: QuantLayer) -> Tensor:
    """Float32 [out, 1] of a layer with one piece."""
    layout = layer.layout
    scale = expand_weight_scale(layer.weight_scale, layout.weight_rows, (1,))
    return scale.expand(layout.out_features, 1).contiguous()


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
