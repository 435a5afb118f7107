"""QuantLinear and QuantConv2d: in the place of nn.Linear and nn.Conv2d."""

from __future__ import annotations

from abc import ABCMeta
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from segquant.arguments import GivenMethod, method_of
from segquant.checks import checked
from segquant.errors import QuantizationError
from segquant.graph.segments import Segments
from segquant.layers.layer import QuantLayer
from segquant.method.targets import layer_method
from segquant.modules.layers import as_linear, taps_of, window_of
from segquant.modules.window import Window
from segquant.numerics.layout import Layout
from segquant.observers.stats import InputStats
from segquant.solve.folding import LayerFold, with_divided_rows, with_rows_noted
from segquant.solve.layer import solve_layer


class QuantLinear(QuantLayer, nn.Linear, metaclass=ABCMeta):
    """A linear whose weight is stored as codes and whose input is fake quantized on the fly; see `QuantLayer`.

    It is an nn.Linear to code that asks. `QuantConv2d` counts as a subclass: isinstance(layer, QuantLinear) is true of
    every quantized layer.
    """

    float_kind = nn.Linear

    def linear_gelu(self, input: Tensor) -> Tensor:
        """GELU, by its tanh form, of what `forward` gives; for callers who saw that nobody hooks it or learns."""
        self._refuse_width(input)
        return self.backend.linear_gelu(input.detach(), self.layout, self._ready())

    @staticmethod
    def empty(layout: Layout, window: Window | None = None, **kwargs: Any) -> QuantLayer:
        """A layer without numbers: a QuantConv2d where there is a window."""
        return QuantLinear(layout, **kwargs) if window is None else QuantConv2d(layout, window, **kwargs)

    @staticmethod
    def from_tensors(
        layout: Layout,
        tensors: Mapping[str, Tensor],
        window: Window | None = None,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> QuantLayer:
        """A layer around `Layout.buffers()`, and "bias" where there is one.

        Args:
            dtype: of the float layer.
        """
        bias = tensors.get("bias")
        module = QuantLinear.empty(
            layout, window, dtype=dtype, bias_dtype=None if bias is None else bias.dtype, device="meta"
        )
        module.load_state_dict(dict(tensors), assign=True)
        return module

    @staticmethod
    @checked(method="", stats="what observe returned for the layer")
    def from_float(
        linear: nn.Module,
        method: GivenMethod,
        stats: InputStats | None = None,
        segments: Segments | None = None,
        *,
        name: str = "linear",
        fold: LayerFold | None = None,
    ) -> QuantLayer:
        """Quantize one nn.Linear, or an ungrouped nn.Conv2d to a QuantConv2d; the float layer is not modified.

        Args:
            stats: of its input, from `observe`, unless the method needs weights alone.
            segments: where it is cut.
            name: for error messages.
            fold: of `quantize_`: smoothing that other parts of a model take in.

        Raises:
            QuantizationError: the group size does not divide in_features, stats are missing or not finite, ….
        """
        rows, fold = as_linear(linear), fold or LayerFold()
        layout, tensors, _ = solve_layer(
            with_divided_rows(rows, fold.rows), layer_method(method_of(method), linear), stats, segments,
            name=name, taps=taps_of(linear), shared=fold.shared,
        )  # fmt: skip
        layout, tensors = with_rows_noted(layout, tensors, fold.rows)
        return QuantLinear.from_tensors(layout, tensors, window_of(linear), dtype=rows.weight.dtype)


@QuantLinear.register
class QuantConv2d(QuantLayer, nn.Conv2d):
    """A convolution as a quantized linear on the patches of its input (see `segquant.modules.window`)."""

    float_kind = nn.Conv2d

    def __init__(self, layout: Layout, window: Window, **kwargs: Any) -> None:
        super().__init__(layout, **kwargs)
        self.window = window
        left, right, top, bottom = window.padding
        # what nn.Conv2d has; only padding="same" is uneven
        self.in_channels, self.out_channels = layout.in_features // window.taps, layout.out_features
        self.kernel_size, self.stride, self.dilation = window.kernel, window.stride, window.dilation
        self.padding = (top, left) if (left, top) == (right, bottom) else "same"
        self.padding_mode, self.groups = cast(Any, window.mode), 1
        self.transposed, self.output_padding = False, (0, 0)

    def _weight_shape(self) -> tuple[int, ...]:
        return self.out_channels, self.in_channels, *self.window.kernel

    def forward(self, input: Tensor) -> Tensor:
        """[batch, in, h, w] -> [batch, out, h', w'], or without the batch, in the input's dtype.

        Raises:
            QuantizationError: an input of other channels, or without pixels.
        """
        if input.dim() not in (3, 4) or input.shape[-3] != self.in_channels or 0 in input.shape[-2:]:
            raise QuantizationError(
                f"the input has the shape {list(input.shape)}, and this quantized convolution takes "
                f"[batch, {self.in_channels}, height, width]"
            )
        if input.requires_grad and torch.is_grad_enabled():  # gradients pass through patches
            return self.window.apply(super().forward, input)
        return self.backend.convolution(input.detach(), self.layout, self.window, self._ready())

    def _along_channels(self, vector: Tensor, like: Tensor) -> Tensor:
        return vector.to(like.dtype)[:, None, None]

    def _rows_of(self, output: Tensor, start: int, stop: int) -> Tensor:
        return output[..., start:stop, :, :]

    def extra_repr(self) -> str:
        """One line for print(model)."""
        return f"{super().extra_repr()}, kernel={self.window.kernel}, stride={self.window.stride}"
