"""What stands in the place of quantized layers while a model is traced.

Transforms are traced as the float operators that they are; each branch's quantized product becomes one node of DOMAIN,
which `products` and `convolutions` write out later.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

from segquant.deploy.onnx.forms import as_image
from segquant.errors import QuantizationError
from segquant.layers.layer import QuantLayer
from segquant.layers.linear import QuantConv2d
from segquant.modules.layers import Replaced
from segquant.modules.window import Window
from segquant.numerics.layout import Layout
from segquant.transforms.chain import chain_of
from segquant.transforms.low_rank import LowRank
from segquant.transforms.shift import Shift
from segquant.transforms.smoothing import Smoothing

DOMAIN = "segquant"
LINEAR, CONVOLUTION = "Linear", "Convolution"


class TracedLinear(Replaced, nn.Module):
    """Of the quantized layer `number`; the transforms' buffers alone are kept."""

    def __init__(self, layer: QuantLayer, number: int, form: str) -> None:
        nn.Module.__init__(self)
        vars(self).update({key: value for key, value in vars(layer).items() if not key.startswith("_")})
        self.layout, self.number, self.like = layer.layout, number, layer.float_like
        self.window: Window | None = layer.window if isinstance(layer, QuantConv2d) else None
        self.image = as_image(layer, form)
        names = {name for transform in layer.layout.transforms for name in transform.buffers(layer.layout.place())}
        for name in sorted(names):
            self.register_buffer(name, layer.tensors()[name], persistent=False)

    @property
    def weight(self) -> Tensor:
        """Values are not there; code asks for dtype and device."""
        return self.like

    def forward(self, input: Tensor) -> Tensor:
        """As the quantized layer's."""
        window = self.window
        if window is None:
            return self._rows(input)
        if self.image and input.dim() == 4:
            return self._convolution(input, window)
        return window.apply(self._rows, input)

    def _rows(self, x: Tensor) -> Tensor:
        layout = self.layout
        if x.shape[-1] != layout.in_features:  # which also tells the tracer that this dimension is fixed
            raise QuantizationError(f"an input of {x.shape[-1]} features meets a layer of {layout.in_features}")
        tensors = cast(Mapping[str, Tensor], self._buffers)
        parts = []
        for branch, size in enumerate(layout.branches):
            given, beside = chain_of(layout, tensors, branch).run(x)
            out = self._product(LINEAR, given, branch, [*x.shape[:-1], size])
            parts.append(sum(beside, out))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def _convolution(self, x: Tensor, window: Window) -> Tensor:
        layout, padding = self.layout, window.padding
        if x.shape[1] * window.taps != layout.in_features:
            raise QuantizationError(f"{x.shape[1]} channels meet a convolution of {layout.in_features // window.taps}")
        rows, columns = window.size(x.shape[-2], x.shape[-1])
        # a shift meets what is padded too
        if any(padding) and (window.mode != "zeros" or layout.transform(Shift.name) is not None):
            x, padding = _padded(x, padding, window.mode), (0, 0, 0, 0)
        parts = []
        for branch, size in enumerate(layout.branches):
            given, beside = _image(layout, cast(Mapping[str, Tensor], self._buffers), branch, x, window, padding)
            out = self._product(CONVOLUTION, given, branch, [x.shape[0], size, rows, columns], padding)
            parts.append(sum(beside, out))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _product(
        self, kind: str, x: Tensor, branch: int, shape: list[Any], padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    ) -> Tensor:
        left, right, top, bottom = padding
        attributes: dict[str, Any] = {"layer": self.number, "branch": branch, "pads": [top, left, bottom, right]}
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{kind}", [x], attributes, dtype=torch.float32, shape=shape, version=1
        )


def _padded(x: Tensor, padding: tuple[int, int, int, int], mode: str) -> Tensor:
    if mode != "circular":
        return nnf.pad(x, padding, "constant" if mode == "zeros" else mode)
    left, right, top, bottom = padding  # engines do not have it as a mode of padding
    x = torch.cat([x[..., x.shape[-1] - left :], x, x[..., :right]], dim=-1)
    return torch.cat([x[..., x.shape[-2] - top :, :], x, x[..., :bottom, :]], dim=-2)


def _image(
    layout: Layout, tensors: Mapping[str, Tensor], branch: int, x: Tensor, window: Window, padding: tuple[int, ...]
) -> tuple[Tensor, list[Tensor]]:
    """`Chain.run` on pictures instead of patches."""
    place, beside = layout.place(tensors, branch), []
    for transform in layout.transforms:
        if isinstance(transform, Smoothing):
            x = x / tensors["smooth"][branch][:: window.taps].view(1, -1, 1, 1)
        elif isinstance(transform, Shift):
            beside.append(transform.beside(x, place).view(1, -1, 1, 1))
            x = x - tensors["shift"][branch][:: window.taps].view(1, -1, 1, 1)
        elif isinstance(transform, LowRank) and transform.ranks[branch]:
            down, up = transform.factors(place)
            kernel = down.view(len(down), -1, *window.kernel)
            padded = nnf.pad(x, padding) if any(padding) else x
            inner = nnf.conv2d(padded, kernel, stride=window.stride, dilation=window.dilation)
            beside.append(nnf.conv2d(inner, up[:, :, None, None]))
    return x, beside
