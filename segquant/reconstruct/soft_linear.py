"""A QuantLinear whose rounding is being learnt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from segquant.calibrators.adaround import Rounding
from segquant.kernels.reference import REFERENCE, Packed
from segquant.layers.layer import QuantLayer
from segquant.modules.layers import as_linear, window_of
from segquant.numerics import functional as F
from segquant.numerics.fake_quant import dequantize_weight, expand_weight_scale, store_codes, weight_scales
from segquant.numerics.layout import Layout
from segquant.transforms.chain import apply_all


def unrounded_weight(weight: Tensor, layout: Layout, tensors: Mapping[str, Tensor]) -> Tensor:
    """A weight [out, in] before its codes are rounded, comparable with `dequantize_weight`."""
    return torch.cat(apply_all(layout, tensors, weight.float()))


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        ctx.weight = weight
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        return gradient, gradient @ ctx.weight, None


class SoftLinear(nn.Module):
    """A QuantLinear or QuantConv2d while its rounding is learnt.

    Attributes:
        rounding: V of every weight.
        current: weight [out, in] of the forward, in the space of the codes; set from outside.
    """

    def __init__(self, layer: nn.Module, quantized: QuantLayer) -> None:
        super().__init__()
        linear, self.window = as_linear(layer), window_of(layer)
        self.layout, self.bias = quantized.layout, quantized.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = linear.weight.detach()
        self._tensors = quantized.tensors()
        layout = self.layout
        scales = weight_scales(layout, self._tensors)
        self._scale = expand_weight_scale(scales.scale, layout.weight_rows, layout.weight_columns)
        self._offset = None
        if scales.offset is not None:
            self._offset = expand_weight_scale(scales.offset, layout.weight_rows, layout.weight_columns)
        unrounded = unrounded_weight(self.weight, layout, self._tensors)
        self.rounding = Rounding(unrounded, self._scale, layout.weight_spec.dtype, self._offset)
        self.current = self.nearest()

    def nearest(self) -> Tensor:
        """The weight as the QuantLinear has it."""
        return dequantize_weight(self.layout, self._tensors)

    def forward(self, input: Tensor) -> Tensor:
        """As the layer; gradients flow to `current` and straight to the input."""
        return self._product(input) if self.window is None else self.window.apply(self._product, input)

    def _product(self, input: Tensor) -> Tensor:
        packed = Packed(self._tensors, self.current)
        output = REFERENCE.linear(input.detach(), self.layout, packed)
        if not input.requires_grad:
            return output
        passed: Tensor = _StraightThrough.apply(output, input, self.weight.to(input.dtype))
        return passed

    def codes(self) -> Tensor:
        """The learnt codes, packed as the QuantLinear stores them."""
        spec, weight = self.layout.weight_spec, self.rounding.hard()
        if self._offset is not None:
            weight = weight - self._offset
        return store_codes(F.quantize(weight, self._scale, spec.dtype), spec)
