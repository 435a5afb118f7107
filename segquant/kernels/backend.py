"""Backend: how a quantized linear runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from segquant.numerics.layout import Layout


class Backend(Protocol):
    """A way to run a quantized linear; chosen explicitly, by `segquant.set_backend_`.

    To add one: derive a class from this one, decorate it with `segquant.register`, give it a `name` and the three
    methods. It must be made without arguments.

        @segquant.register
        class Mine(segquant.Backend):
            name: ClassVar[str] = "mine"
            def why_not(self, layout, device): return None if device.type == "cuda" else "needs a GPU"
            def pack(self, layout, tensors): return my_kernel_layout(tensors["codes"], tensors["weight_scale"])
            def linear(self, x, layout, packed): return my_kernel(x, packed)

    `layout.transforms` is part of what a layer computes: a backend runs them (`chain_of(layout, tensors, branch).run`
    does) or refuses layers that have them. Convolutions come as linears on patches.
    """

    slot: ClassVar[str] = "backend"
    name: ClassVar[str]

    def why_not(self, layout: Layout, device: torch.device) -> str | None:
        """Why this backend cannot run such a layer, as the end of a sentence; None if it can."""

    def pack(self, layout: Layout, tensors: Mapping[str, Tensor]) -> Any:
        """What `linear` needs; made once, dropped when the layer's tensors change or move.

        Args:
            tensors: those of `layout.buffers()`, and "bias" if any; read-only. The bias is kept as it is, not copied:
                what is written to it must hold at the next call.
        """

    def linear(self, x: Tensor, layout: Layout, packed: Any) -> Tensor:
        """[..., in] -> [..., out], in x's dtype; x is not modified."""
        ...
