"""Backend: how a quantized linear runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import functional as nnf

from segquant.modules.window import Window
from segquant.numerics.layout import Layout


class Backend(Protocol):
    """A way to run a quantized linear; chosen explicitly, by `segquant.set_backend_`.

    To add one: derive a class from this one, decorate it with `segquant.register`, give it a `name` and the methods
    `why_not`, `pack` and `linear`. It must be made without arguments.

        @segquant.register
        class Mine(segquant.Backend):
            name: ClassVar[str] = "mine"
            def why_not(self, layout, device): return None if device.type == "cuda" else "needs a GPU"
            def pack(self, layout, tensors): return my_kernel_layout(tensors["codes"], weight_scales(layout, tensors))
            def linear(self, x, layout, packed): return my_kernel(x, packed)

    Scales are kept in many ways: `segquant.numerics.fake_quant.weight_scales` reads them all. `layout.transforms` is
    part of what a layer computes: a backend runs them (`chain_of(layout, tensors, branch).run` does) or refuses layers
    that have them. Convolutions come as linears on patches, unless `convolution` is given as well;
    `why_not(self, layout, device, window=None)` is told the window of one.
    """

    slot: ClassVar[str] = "backend"
    name: ClassVar[str]

    def why_not(self, layout: Layout, device: torch.device, window: Window | None = None) -> str | None:
        """Why this backend cannot run such a layer, as the end of a sentence; None if it can.

        Args:
            window: a convolution's. A backend may leave the argument out.
        """

    def pack(self, layout: Layout, tensors: Mapping[str, Tensor]) -> Any:
        """What `linear` needs; made once, dropped when the layer's tensors change or move.

        Args:
            tensors: those of `layout.buffers()`, and "bias" if any; read-only. The bias is kept as it is, not copied:
                what is written to it must hold at the next call.
        """

    def float_bytes(self, layout: Layout) -> int:
        """Of what `pack` makes, those of a float copy of the weight: where memory is short, it is made at each call."""
        return 0

    def linear(self, x: Tensor, layout: Layout, packed: Any) -> Tensor:
        """[..., in] -> [..., out], in x's dtype; x is not modified."""
        ...

    def with_gelu(self, layout: Layout) -> bool:
        """Whether `linear_gelu` is one pass for such a layer."""
        return False

    def linear_gelu(self, x: Tensor, layout: Layout, packed: Any) -> Tensor:
        """GELU, by its tanh form, of what `linear` gives."""
        return nnf.gelu(self.linear(x, layout, packed), approximate="tanh")

    def convolution(self, x: Tensor, layout: Layout, window: Window, packed: Any) -> Tensor:
        """[batch, in, h, w] -> [batch, out, h', w'], or without the batch; here the linear on patches."""
        return window.apply(lambda rows: self.linear(rows, layout, packed), x)
