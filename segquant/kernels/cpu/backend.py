"""The `cpu` backend: exact products of codes, integers or fp8, by a kernel of our own, as the layer stores them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as nnf

from segquant.errors import QuantizationError
from segquant.kernels.cpu import operators
from segquant.kernels.fused import FusedBackend, Packed, first_factor, is_inside
from segquant.kernels.integers import why_no_codes, why_not_scales
from segquant.modules.state import exact_products
from segquant.modules.window import Window
from segquant.numerics.layout import Layout
from segquant.registry import register


@register
@dataclass(frozen=True)
class Cpu(FusedBackend):
    """Codes of the input times codes of the weight in integers, scaled afterwards; needs AVX2 and a C++ compiler.

    fp8 (e4m3) is multiplied as bfloat16 and added up in float32 where the processor has AVX-512's products of bfloat16,
    else multiplied in float32. Layers whose input stays in float take float products with weights that are dequantized
    panel by panel.
    """

    name: ClassVar[str] = "cpu"
    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.float32, torch.bfloat16)
    half_scales: ClassVar[bool] = True

    def why_not(self, layout: Layout, device: torch.device, window: Window | None = None) -> str | None:
        if device.type != "cpu":
            return f"runs on the CPU, and the layer is on {device}"
        return why_no_codes(layout.scheme) or why_not_scales(layout.scheme) or operators.why_not_exact()

    def pack(self, layout: Layout, tensors: Mapping[str, Tensor]) -> Packed:
        if not torch.compiler.is_compiling() and (reason := operators.why_not_exact()) is not None:
            raise QuantizationError(f"backend {self.name!r} {reason}")  # of a layer copied from another process
        packed = super().pack(layout, tensors)
        if not packed.ranks:
            return packed
        up = tensors["low_rank_up"]  # as it is kept: the operator reads 16 bits
        return replace(packed, extra=(up.contiguous(), list(packed.ranks)))

    def added(self, beside: Tensor | None, inner: Tensor | None, layout: Layout, packed: Packed) -> tuple[Any, ...]:
        """The operator multiplies branches itself: what they add would be as large as the output."""
        if inner is None:
            return beside, None, None, []
        return beside, inner.contiguous(), *packed.extra

    def product(self, rows: Tensor, arguments: tuple[Any, ...], extra: Any) -> Tensor:
        return operators.linear(rows, *arguments)

    def with_gelu(self, layout: Layout) -> bool:
        return type(self) is Cpu and is_inside(layout)  # a class of somebody's own has a product of its own

    def linear_gelu(self, x: Tensor, layout: Layout, packed: Any) -> Tensor:
        # GELU is of outputs as their dtype rounds them
        if type(self) is not Cpu or packed.form is None or x.dtype not in self.dtypes:
            return super().linear_gelu(x, layout, packed)
        return self.at_once(x, layout, packed, lambda rows, arguments, _: operators.linear_gelu(rows, *arguments))

    def convolution(self, x: Tensor, layout: Layout, window: Window, packed: Any) -> Tensor:
        if packed.form is None:
            return super().convolution(x, layout, window, packed)
        with exact_products(x.device):
            alone, inner, padding = x.dim() == 3, None, window.padding
            if packed.ranks or window.mode != "zeros":
                x, padding = window.padded(x), (0, 0, 0, 0)
            images = self.known(x if x.dim() == 4 else x.unsqueeze(0)).contiguous()
            if packed.first is not None:
                kernels = first_factor(packed.first).unflatten(1, (-1, *window.kernel))
                inner = nnf.conv2d(images.float(), kernels, None, window.stride, 0, window.dilation)
                inner = inner.permute(0, 2, 3, 1).flatten(0, 2)
            place = padding, window.kernel, window.stride, window.dilation
            out = operators.convolution(images, *packed.arguments(self.added(None, inner, layout, packed)), *place)
            return (out.squeeze(0) if alone else out).to(x.dtype)
