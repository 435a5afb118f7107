"""The `triton` backend: quantize, multiply integers, scale and add in two kernels of our own on an NVIDIA GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from segquant.errors import QuantizationError
from segquant.kernels.fused import FusedBackend, Packed
from segquant.kernels.integers import kernel_bits, why_no_integers, why_not_scales
from segquant.kernels.runs import code_sums, layout_runs
from segquant.kernels.triton import operators
from segquant.modules.window import Window
from segquant.numerics.layout import Layout
from segquant.registry import register


@dataclass(frozen=True)
class Extra:
    """Tables of the columns' runs, and sums of the weight's codes over each run [runs, out], with zero points."""

    cuts: Tensor
    table: Tensor
    sums: Tensor | None


@register
@dataclass(frozen=True)
class Triton(FusedBackend):
    """Codes of the input times codes of the weight in integers, scaled afterwards; needs a GPU from Ampere on.

    One kernel makes codes and scales of the input, a second multiplies and does all the rest: in one kernel, every tile
    of outputs would quantize the rows again. Weights of 4 bits are spread in the second kernel. DualScale's two
    products take one load of the weights.
    """

    name: ClassVar[str] = "triton"
    dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.float32, torch.bfloat16, torch.float16)
    half_scales: ClassVar[bool] = True
    half_branch: ClassVar[bool] = True

    def why_not(self, layout: Layout, device: torch.device, window: Window | None = None) -> str | None:
        inputs = layout.scheme.input
        if inputs is None:
            return "multiplies integers, and the layer's input stays in float"
        reason = why_no_integers(layout.scheme) or why_not_scales(layout.scheme)
        if reason is not None:
            return reason
        if kernel_bits(layout.weight_spec) == 4 and any(run.start % 2 for run in layout_runs(layout)):
            return "reads 4-bit codes by whole bytes, and a group or input piece starts within one"
        return operators.why_not_exact(device)

    def pack(self, layout: Layout, tensors: Mapping[str, Tensor]) -> Packed:
        device = tensors["codes"].device
        if not torch.compiler.is_compiling() and (reason := operators.why_not_exact(device)) is not None:
            raise QuantizationError(f"backend {self.name!r} {reason}")  # of a layer copied from another process
        return super().pack(layout, tensors)

    def extra_of(self, layout: Layout, codes: Tensor) -> Extra:
        grid = layout.input_grid
        assert grid is not None
        dual = tuple(int(flag) for flag in grid.dual)
        cuts, table = operators.tables(grid.pieces, dual, layout.weight_columns, codes.device)
        return Extra(cuts, table, code_sums(layout, codes))

    def extra_part(self, extra: Extra, cut: slice) -> Extra:
        return Extra(extra.cuts, extra.table, None if extra.sums is None else extra.sums[:, cut])

    def product(self, rows: Tensor, arguments: tuple[Any, ...], extra: Extra) -> Tensor:
        return operators.linear(rows, *arguments, extra.sums, extra.cuts, extra.table)
