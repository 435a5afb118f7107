"""QuantLinear and QuantConv2d: buffers and forward, nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from segquant.arguments import GivenMethod, method_of
from segquant.checks import checked, require
from segquant.graph.segments import Segments
from segquant.kernels.backend import Backend
from segquant.kernels.reference import REFERENCE
from segquant.method.targets import layer_method
from segquant.modules.layers import as_linear, taps_of, window_of
from segquant.modules.state import outside_inference
from segquant.modules.window import Window
from segquant.numerics.fake_quant import dequantize_weight
from segquant.numerics.layout import Layout
from segquant.observers.stats import InputStats
from segquant.solve.layer import solve_layer
from segquant.transforms.chain import undo_all


class QuantLinear(nn.Module):
    """A linear whose weight is stored as codes and whose input is fake quantized on the fly.

    The state dict holds codes (int4 two per byte), float32 scales, transforms and bias; `.to(dtype)` casts the bias.
    """

    keep_packed = True
    """Keep what the backend packed between calls: faster, at the cost of (for "reference") a float32 weight."""
    backend: Backend = REFERENCE
    """How the layer runs; see `segquant.set_backend_`."""
    codes: Tensor
    weight_scale: Tensor
    bias: Tensor | None

    def __init__(
        self,
        layout: Layout,
        *,
        bias_dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        require(layout, Layout, "QuantLinear", "layout", "a Layout; from_float makes a layer of an nn.Linear")
        self.layout = layout
        for name, (shape, dtype) in layout.buffers().items():
            self.register_buffer(name, torch.zeros(shape, dtype=dtype, device=device))
        bias = torch.zeros(layout.out_features, dtype=bias_dtype, device=device) if layout.bias else None
        self.register_buffer("bias", bias)
        self._packed: Any = None
        self.register_load_state_dict_post_hook(_forget)  # type: ignore[no-untyped-call]

    @staticmethod
    def empty(layout: Layout, window: Window | None = None, **kwargs: Any) -> QuantLinear:
        """A layer without numbers: a QuantConv2d where there is a window."""
        return QuantLinear(layout, **kwargs) if window is None else QuantConv2d(layout, window, **kwargs)

    @staticmethod
    def from_tensors(layout: Layout, tensors: Mapping[str, Tensor], window: Window | None = None) -> QuantLinear:
        """A layer around `Layout.buffers()`, and "bias" where there is one."""
        bias = tensors.get("bias")
        module = QuantLinear.empty(
            layout, window, bias_dtype=torch.float32 if bias is None else bias.dtype, device="meta"
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
    ) -> QuantLinear:
        """Quantize one nn.Linear, or an ungrouped nn.Conv2d to a QuantConv2d; the float layer is not modified.

        Args:
            stats: of its input, from `observe`, unless the method needs weights alone.
            segments: where it is cut.
            name: for error messages.

        Raises:
            QuantizationError: the group size does not divide in_features, stats are missing or not finite, ….
        """
        layout, tensors, _ = solve_layer(
            as_linear(linear), layer_method(method_of(method), linear), stats, segments, name=name, taps=taps_of(linear)
        )
        return QuantLinear.from_tensors(layout, tensors, window_of(linear))

    @property
    def in_features(self) -> int:
        """Size of the input's last dimension."""
        return self.layout.in_features

    @property
    def out_features(self) -> int:
        """Size of the output's last dimension."""
        return self.layout.out_features

    @property
    def weight(self) -> Tensor:
        """The float weight, transforms undone: float32 [out, in]."""
        tensors = self.tensors()
        return torch.cat(undo_all(self.layout, tensors, dequantize_weight(self.layout, tensors)))

    def weight_bytes(self) -> int:
        """Bytes of codes, scales, the transforms' tensors and bias."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers())

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] -> [..., out], in the input's dtype."""
        packed = self._packed
        if packed is None:
            with outside_inference():
                packed = self.backend.pack(self.layout, self.tensors())
            if self.keep_packed:
                self._packed = packed
        return self.backend.linear(input, self.layout, packed)

    def forget_packed(self) -> None:
        """Drop what the backend packed; the next call packs anew."""
        self._packed = None

    def tensors(self) -> dict[str, Tensor]:
        """`layout.buffers()` by name, and "bias" where there is one."""
        return {name: buffer for name, buffer in self._buffers.items() if buffer is not None}

    def extra_repr(self) -> str:
        """One line for print(model)."""
        layout = self.layout
        parts = [f"{layout.in_features}, {layout.out_features}", f"weight={layout.weight_spec.dtype}"]
        if len(layout.rows) > 1:
            parts.append(f"rows={layout.rows}")
        if len(layout.columns) > 1:
            parts.append(f"columns={layout.columns}")
        return ", ".join(parts)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantLinear:
        # Everything but the bias keeps its dtype under .to(bfloat16): a rounded scale is another layer.
        bias = self._buffers.pop("bias")
        fixed = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        self._buffers["bias"] = bias
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in fixed.items():
            moved = self._buffers[name]
            if moved is not None and moved.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)
        self._packed = None
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__.get("_buffers", ()):
            self._packed = None
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": None}


class QuantConv2d(QuantLinear):
    """A convolution as a `QuantLinear` on the patches of its input (see `segquant.modules.window`)."""

    def __init__(
        self,
        layout: Layout,
        window: Window,
        *,
        bias_dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(layout, bias_dtype=bias_dtype, device=device)
        self.window = window

    @property
    def weight(self) -> Tensor:
        """The float weight, transforms undone: float32 [out, in, kh, kw]."""
        folded: Tensor = super().weight.unflatten(1, (-1, *self.window.kernel))
        return folded

    def forward(self, input: Tensor) -> Tensor:
        """[batch, in, h, w] -> [batch, out, h', w'], or without the batch, in the input's dtype."""
        return self.window.apply(super().forward, input)

    def extra_repr(self) -> str:
        """One line for print(model)."""
        return f"{super().extra_repr()}, kernel={self.window.kernel}, stride={self.window.stride}"


def _forget(module: nn.Module, _: Any) -> None:
    if isinstance(module, QuantLinear):
        module.forget_packed()
