"""Reference arithmetic: float32 on the formats' exact grids, any device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from segquant.kernels.backend import Backend
from segquant.modules.state import exact_products
from segquant.modules.window import Window
from segquant.numerics.fake_quant import dequantize_weight
from segquant.numerics.layout import Layout
from segquant.registry import register
from segquant.transforms.chain import chain_of


@dataclass(frozen=True)
class Packed:
    """The layer's tensors, and its dequantized weight, float32 [out, in], in the space of the codes."""

    tensors: Mapping[str, Tensor]
    weight: Tensor


@register
@dataclass(frozen=True)
class Reference(Backend):
    """Runs every layer on any device; other backends are measured against it.

    Branch b, rows B: Y[..., B] = Q(X_b) Ŵ_Bᵀ, plus what transforms add, plus bias.
    """

    name: ClassVar[str] = "reference"

    def why_not(self, layout: Layout, device: torch.device, window: Window | None = None) -> str | None:
        return None

    def pack(self, layout: Layout, tensors: Mapping[str, Tensor]) -> Packed:
        return Packed(tensors, dequantize_weight(layout, tensors))

    def float_bytes(self, layout: Layout) -> int:
        return layout.in_features * layout.out_features * torch.float32.itemsize

    def linear(self, x: Tensor, layout: Layout, packed: Any) -> Tensor:
        with exact_products(x.device):
            return self._linear(x, layout, packed)

    def _linear(self, x: Tensor, layout: Layout, packed: Any) -> Tensor:
        values = x.float()
        parts = [_branch(values, layout, packed, branch) for branch in range(len(layout.branches))]
        out = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        if layout.bias:
            out = out + packed.tensors["bias"].float()
        return out.to(x.dtype)


REFERENCE = Reference()


def _branch(x: Tensor, layout: Layout, packed: Packed, branch: int) -> Tensor:
    tensors, grid = packed.tensors, layout.input_grid
    x, beside = chain_of(layout, tensors, branch).run(x)
    if grid is not None:
        static = None
        if not grid.spec.dynamic:
            first = tensors["input_scale"][branch]
            static = first, first if layout.second_scale is None else tensors[layout.second_scale][branch]
        x = grid.quantize(x, static)
    out = x @ packed.weight[layout.branch_slices[branch]].T
    for extra in beside:
        out = out + extra
    return out
