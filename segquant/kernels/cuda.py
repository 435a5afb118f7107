"""The `cuda` backend: torch's integer and fp8 products between plain torch operations, which compilers fuse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from segquant.kernels.backend import Backend
from segquant.kernels.integers import kernel_codes, row_scales, unpack_codes, why_no_integers
from segquant.kernels.products import columns, product
from segquant.kernels.runs import Run, code_sums, layout_runs
from segquant.modules.state import exact_products
from segquant.modules.window import Window
from segquant.numerics import functional as F
from segquant.numerics.input_grid import InputGrid, Scales
from segquant.numerics.layout import Layout
from segquant.registry import register
from segquant.transforms.low_rank import LowRank

NEEDS = {"int8": (8, 0), "fp8": (8, 9)}
"""Compute capability whose tensor cores multiply such codes."""
LEAST = 128
"""Columns that a product must have on average. Each reads and writes [rows, outputs] again, 16 bytes an output; in that
time a GPU multiplies some hundred columns in float32."""


@dataclass(frozen=True)
class Packed:
    """The layer's own tensors, its weight's codes (fp8, or as `kernel_codes`), scales by row [out, groups], and sums of
    codes over runs [runs, out]."""

    tensors: Mapping[str, Tensor]
    codes: Tensor
    weight_scale: Tensor
    sums: Tensor | None


@register
@dataclass(frozen=True)
class Cuda(Backend):
    """Codes times codes by `torch._int_mm` and, for fp8, `torch._scaled_mm`; made to be compiled.

    Scales are applied to float32 results, in the same way for all formats: fp8's kernels with scales by row write
    bfloat16 alone. Weights of 8 and 4 bits stay as they are stored, others are spread to these once; 4 bits are spread
    at each call.
    """

    name: ClassVar[str] = "cuda"

    def why_not(self, layout: Layout, device: torch.device, window: Window | None = None) -> str | None:
        inputs = layout.scheme.input
        if inputs is None:
            return "multiplies codes, and the layer's input stays in float"
        kinds = layout.weight_spec.dtype, inputs.dtype
        if "fp8" in kinds and kinds != ("fp8", "fp8"):
            return f"multiplies codes of one kind, and these are {kinds[0]} and {kinds[1]}"
        if "fp8" not in kinds and (reason := why_no_integers(layout.scheme)) is not None:
            return reason
        count = len(layout_runs(layout))
        if count > 1 and layout.in_features < LEAST * count:
            return (
                f"multiplies one group or piece of columns at a time, which pays from {LEAST} columns on, and these "
                f"have {layout.in_features // count}; 'triton' multiplies them at once"
            )
        return why_not_on(device, "fp8" if inputs.dtype == "fp8" else "int8")

    def pack(self, layout: Layout, tensors: Mapping[str, Tensor]) -> Packed:
        if layout.weight_spec.dtype == "fp8":
            return Packed(tensors, tensors["codes"].view(torch.float8_e4m3fn), row_scales(layout, tensors), None)
        codes = kernel_codes(layout, tensors)
        return Packed(tensors, codes, row_scales(layout, tensors), code_sums(layout, codes))

    def linear(self, x: Tensor, layout: Layout, packed: Any) -> Tensor:
        with exact_products(x.device):
            rows = x.reshape(-1, layout.in_features)
            parts = [_branch(rows, layout, packed, branch) for branch in range(len(layout.branches))]
            out = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
            if layout.bias:
                out = out + packed.tensors["bias"].float()
            return out.to(x.dtype).reshape(*x.shape[:-1], layout.out_features)


def why_not_on(device: torch.device, kind: str) -> str | None:
    """Why a device does not multiply codes of a kind, "int8" or "fp8", as the end of a sentence; None if it does."""
    if device.type != "cuda":
        return f"needs an NVIDIA GPU, and the layer is on {device.type}: 'cpu' and 'reference' run there"
    if torch.version.hip is not None:
        return "needs an NVIDIA GPU, and this is a ROCm build of torch: 'reference' runs there"
    needs, has = NEEDS[kind], torch.cuda.get_device_capability(device)
    if has < needs:
        return f"multiplies {kind} from compute capability {needs[0]}.{needs[1]} on, and this GPU has {has[0]}.{has[1]}"
    return None


def _branch(x: Tensor, layout: Layout, packed: Packed, branch: int) -> Tensor:
    """[rows, outputs of the branch], float32, without the bias."""
    grid, cut, tensors = layout.input_grid, layout.branch_slices[branch], packed.tensors
    assert grid is not None
    values, beside = _transformed(x, layout, tensors, branch)
    scales = _scales(values, layout, grid, tensors, branch)
    codes, bad = _codes(values, grid, scales)
    weight = packed.codes[cut]
    if weight.dtype != torch.float8_e4m3fn:
        weight = unpack_codes(weight, layout)
    total: Tensor | None = None
    for index, run in enumerate(layout_runs(layout)):
        sums = None if packed.sums is None else packed.sums[index, cut]
        found = _scaled(codes, weight, run, grid, scales, sums) * packed.weight_scale[cut, run.group]
        total = found if total is None else total + found
    assert total is not None
    if bad is not None:
        total = total.masked_fill(bad, float("nan"))
    for extra in beside:
        total = total + extra
    return total


def _transformed(x: Tensor, layout: Layout, tensors: Mapping[str, Tensor], branch: int) -> tuple[Tensor, list[Tensor]]:
    """As `Chain.run`; a low-rank branch of bfloat16 inputs in bfloat16 (float16 could overflow)."""
    values, place, beside = x.float(), layout.place(tensors, branch), []
    for transform in layout.transforms:
        if isinstance(transform, LowRank) and transform.ranks[branch] and x.dtype == torch.bfloat16:
            down, up = (factor.to(x.dtype) for factor in transform.factors(place))
            extra: Tensor | None = values.to(x.dtype) @ down.T @ up.T
        else:
            extra = transform.beside(values, place)
        if extra is not None:
            beside.append(extra)
        values = transform.rows(values, place)
    return values, beside


def _scales(values: Tensor, layout: Layout, grid: InputGrid, tensors: Mapping[str, Tensor], branch: int) -> Scales:
    """[1 or rows, pieces] both."""
    if grid.spec.dynamic:
        return grid.dynamic(values)
    first = tensors["input_scale"][branch : branch + 1]
    return first, first if layout.second_scale is None else tensors[layout.second_scale][branch : branch + 1]


def _codes(values: Tensor, grid: InputGrid, scales: Scales) -> tuple[Tensor, Tensor | None]:
    """Codes [rows, in], with a zero point less what `code_sums` makes good; and rows [rows, 1] that hold no number."""
    scale = F.expand_pieces(scales[0], grid.pieces)
    other = F.expand_pieces(scales[1], grid.pieces) if any(grid.dual) else scale
    two_scales = any(grid.dual) and not grid.zero_point
    ratio = values / (torch.where(values >= 0, scale, other) if two_scales else scale)
    if grid.spec.dtype == "fp8":  # which can hold what is no number
        return ratio.clamp(F.code_min("fp8"), F.code_max("fp8")).to(torch.float8_e4m3fn), None
    low, high = int(F.code_min(grid.spec.dtype)), int(F.code_max(grid.spec.dtype))
    whole = ratio.round()
    if not grid.zero_point:
        whole = whole.clamp(low, high)
    else:
        whole = torch.clamp(whole, -other, high - low - other)
        if grid.spec.bits == 8:
            whole = whole + (other + low)
    return whole.to(torch.int8), ratio.isnan().any(-1, keepdim=True)


def _scaled(codes: Tensor, weight: Tensor, run: Run, grid: InputGrid, scales: Scales, sums: Tensor | None) -> Tensor:
    """A run's product [rows, outputs] times the input's scales, float32."""
    left, right = (columns(each, run.start, run.stop) for each in (codes, weight))
    first, second = (scale[..., run.piece : run.piece + 1] for scale in scales)
    if run.dual and not grid.zero_point:  # the weights are read once for both signs
        found = product(torch.cat(_signs(left)), right).float()
        above, below = found.tensor_split(2)
        return above * first + below * second
    found = product(left, right)
    if sums is not None:
        found = found + (-F.code_min(grid.spec.dtype) - second).int() * sums
    return found.float() * first


def _signs(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Codes at least 0 and codes below, 0 elsewhere."""
    if codes.dtype == torch.int8:
        return codes.clamp_min(0), codes.clamp_max(0)
    values = codes.float()
    return values.clamp_min(0).to(codes.dtype), values.clamp_max(0).to(codes.dtype)
