"""Number formats as pure tensor functions.

code = round(x / scale), to the nearest of the grid `dtype` (see `grids`), in float32 (float64 stays).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from segquant.numerics.grids import GRIDS
from segquant.numerics.packing import pack, unpack
from segquant.numerics.scales import FP8_LEAST, FP8_MAX, exponent_of, power_of_two, round_scale, second_scale


def code_max(dtype: str) -> float:
    """The largest value, in units of the scale."""
    return GRIDS[dtype].high


def code_min(dtype: str) -> float:
    """The least, likewise."""
    return GRIDS[dtype].low


def computed(x: Tensor) -> Tensor:
    """x in float32, or float64 if it is that."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def choose_scale(amax: Tensor, dtype: str, scale_dtype: str = "float32") -> Tensor:
    """amax / code_max of any shape, rounded to the scale's dtype; 1 where amax is zero.

    Neighbours in the last dimension share what "e4m3" is multiplied with. "k4" … "k8" are not rounded here.
    """
    amax = computed(amax)
    if scale_dtype == "e8m0":
        scale = _power_scale(amax, GRIDS[dtype].exponent)
    else:
        scale = round_scales(_not_denormal(amax / code_max(dtype)), amax > 0, scale_dtype)
    return torch.where(amax > 0, scale, torch.ones_like(amax))


def _power_scale(amax: Tensor, exponent: int) -> Tensor:
    """2^(⌊log2 amax⌋ − exponent), within the powers that float32 has; NaN where amax is infinite or NaN."""
    power = power_of_two((exponent_of(amax) - exponent).clamp_(-126, 127)).to(amax.dtype)
    return torch.where(amax.isfinite(), power, torch.full_like(power, torch.nan))


def round_scales(scale: Tensor, used: Tensor, scale_dtype: str) -> Tensor:
    """Scales [..., n] in their dtype; where not `used`, they do not count for what others share."""
    if scale_dtype != "e4m3":
        return scale if scale_dtype == "float32" else round_scale(scale, scale_dtype)
    whole = second_scale(torch.where(used, scale, torch.zeros_like(scale)).amax(-1, keepdim=True))
    return GRIDS["fp8"].round_((scale / whole).clamp_(FP8_LEAST, FP8_MAX)) * whole


def choose_dual_scale(
    positive: Tensor, negative: Tensor, dtype: str, scale_dtype: str = "float32"
) -> tuple[Tensor, Tensor]:
    """s₊ = max(x)/q_max, s₋ = |min(x)|/|q_min| (SegQuant, section on DualScale); a zero side takes the other's."""
    positive, negative = computed(positive), computed(negative)
    if scale_dtype == "e8m0":
        above, below = choose_scale(positive, dtype, scale_dtype), choose_scale(negative, dtype, scale_dtype)
    else:
        above = round_scales(_not_denormal(positive / code_max(dtype)), positive > 0, scale_dtype)
        below = round_scales(_not_denormal(negative / -code_min(dtype)), negative > 0, scale_dtype)
    fallback = torch.ones_like(above)
    pos = torch.where(positive > 0, above, torch.where(negative > 0, below, fallback))
    neg = torch.where(negative > 0, below, torch.where(positive > 0, above, fallback))
    return pos, neg


def choose_zero_point(
    positive: Tensor, negative: Tensor, dtype: str, scale_dtype: str = "float32"
) -> tuple[Tensor, Tensor]:
    """Scale and zero point (a whole number ≥ 0) of one grid over [−negative, positive], of any shape.

    Zero is on the grid; scale 1 where both sides are zero.
    """
    positive, negative = computed(positive), computed(negative)
    levels = code_max(dtype) - code_min(dtype)
    width = (positive + negative).clamp_max_(torch.finfo(positive.dtype).max)
    width = torch.maximum(width, torch.maximum(positive, negative))  # an infinite input stays one
    if scale_dtype == "e8m0":  # as for numbers that reach up to `levels`
        scale = _power_scale(width, math.floor(math.log2(levels)))
    else:
        scale = round_scales(_not_denormal(width / levels), width > 0, scale_dtype)
    scale = torch.where(width > 0, scale, torch.ones_like(width))
    return scale, (negative / scale).round_().clamp_(0, levels)


def _not_denormal(scale: Tensor) -> Tensor:
    return scale.clamp_min(torch.finfo(scale.dtype).tiny)


def quantize(x: Tensor, scale: Tensor, dtype: str) -> Tensor:
    """Codes of x: int8 of "int…", float8 of "fp8…", else uint8; `scale` broadcasts."""
    grid, ratio = GRIDS[dtype], computed(x) / scale
    if grid.kind == "fp":  # which rounds a small negative number to a zero without its sign
        return grid.encode(torch.copysign(grid.round_(ratio.clone()), ratio))
    return grid.encode(grid.round_(ratio))


def dequantize(codes: Tensor, scale: Tensor, dtype: str | None = None) -> Tensor:
    """Values of the codes · scale, in the scale's dtype; without `dtype`, codes are integers or float8."""
    values = codes if dtype is None else GRIDS[dtype].decode(codes)
    return values.to(scale.dtype) * scale


def fake_quantize(x: Tensor, scale: Tensor, dtype: str) -> Tensor:
    """dequantize(quantize(x)) in float32 (or float64); `scale` broadcasts."""
    return GRIDS[dtype].round_(computed(x) / scale).mul_(scale)


def zero_fake_quantize(x: Tensor, scale: Tensor, zero: Tensor, dtype: str) -> Tensor:
    """clamp(round(x/scale), −zero, levels − zero)·scale, where levels + 1 is the number of codes."""
    ratio = computed(x) / scale
    levels = code_max(dtype) - code_min(dtype)
    return torch.clamp(ratio.round_(), -zero, levels - zero).mul_(scale)


def dual_fake_quantize(x: Tensor, positive: Tensor, negative: Tensor, dtype: str) -> Tensor:
    """round(x/s₊)·s₊ where x ≥ 0, round(x/s₋)·s₋ below."""
    x = computed(x)
    # sums with an exact zero: faster than a choice between two scales
    ratio = (x.clamp_min(0) / positive).add_(x.clamp_max(0) / negative)
    whole = GRIDS[dtype].round_(ratio)
    return (whole.clamp_min(0) * positive).add_(whole.clamp_max(0) * negative)


def pack_int4(codes: Tensor) -> Tensor:
    """int8 codes [..., n] to uint8 [..., ceil(n / 2)], even columns in the low nibble; odd n is padded with a zero."""
    return pack(codes, 4)


def unpack_int4(packed: Tensor, columns: int) -> Tensor:
    """Inverse of `pack_int4`: int8 [..., columns]."""
    return unpack(packed, columns, 4, signed=True)


def uniform(sizes: tuple[int, ...]) -> bool:
    return len(set(sizes)) == 1


def piece_max(x: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Maximum per piece: [..., sum(sizes)] -> [..., len(sizes)]."""
    if len(sizes) == 1:
        return x.amax(-1, keepdim=True)
    if uniform(sizes):
        folded: Tensor = x.unflatten(-1, (len(sizes), sizes[0]))
        return folded.amax(-1)
    return torch.stack([piece.amax(-1) for piece in x.split(sizes, -1)], dim=-1)


def expand_pieces(values: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Repeat values over pieces: [..., len(sizes)] -> [..., sum(sizes)]; one piece stays [..., 1]."""
    if len(sizes) == 1:
        return values
    if uniform(sizes):
        return values.unsqueeze(-1).expand(*values.shape, sizes[0]).flatten(-2)
    counts = torch.tensor(sizes, dtype=torch.int64, device=values.device)
    return values.repeat_interleave(counts, dim=-1, output_size=sum(sizes))
