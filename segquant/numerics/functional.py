"""Number formats as pure tensor functions.

code = round(x / scale), ties to even, in float32 (float64 stays). Integers: -128 … 127 and -8 … 7; fp8: e4m3fn,
saturating at ±448.
"""

from __future__ import annotations

import torch
from torch import Tensor

INT_RANGES: dict[str, tuple[int, int]] = {"int8": (-128, 127), "int4": (-8, 7)}
FP8_MAX = 448.0


def code_max(dtype: str) -> float:
    return FP8_MAX if dtype == "fp8" else float(INT_RANGES[dtype][1])


def code_min(dtype: str) -> float:
    return -FP8_MAX if dtype == "fp8" else float(INT_RANGES[dtype][0])


def computed(x: Tensor) -> Tensor:
    """x in float32, or float64 if it is that."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def choose_scale(amax: Tensor, dtype: str) -> Tensor:
    """amax / code_max of any shape; 1 where amax is zero."""
    amax = computed(amax)
    return torch.where(amax > 0, _not_denormal(amax / code_max(dtype)), torch.ones_like(amax))


def choose_dual_scale(positive: Tensor, negative: Tensor, dtype: str) -> tuple[Tensor, Tensor]:
    """s₊ = max(x)/q_max, s₋ = |min(x)|/|q_min| (SegQuant, section on DualScale); a zero side takes the other's."""
    positive, negative = computed(positive), computed(negative)
    above = _not_denormal(positive / code_max(dtype))
    below = _not_denormal(negative / -code_min(dtype))
    fallback = torch.ones_like(above)
    pos = torch.where(positive > 0, above, torch.where(negative > 0, below, fallback))
    neg = torch.where(negative > 0, below, torch.where(positive > 0, above, fallback))
    return pos, neg


def choose_zero_point(positive: Tensor, negative: Tensor, dtype: str) -> tuple[Tensor, Tensor]:
    """Scale and zero point (a whole number ≥ 0) of one grid over [−negative, positive], of any shape.

    Zero is on the grid; scale 1 where both sides are zero.
    """
    positive, negative = computed(positive), computed(negative)
    levels = code_max(dtype) - code_min(dtype)
    width = positive + negative
    scale = torch.where(width > 0, _not_denormal(width / levels), torch.ones_like(width))
    return scale, (negative / scale).round_().clamp_(0, levels)


def _not_denormal(scale: Tensor) -> Tensor:
    return scale.clamp_min(torch.finfo(scale.dtype).tiny)


def quantize(x: Tensor, scale: Tensor, dtype: str) -> Tensor:
    """Codes of x: int8 for "int8" and "int4", float8_e4m3fn for "fp8"; `scale` broadcasts."""
    ratio = computed(x) / scale
    if dtype == "fp8":
        return ratio.clamp_(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
    low, high = INT_RANGES[dtype]
    return ratio.round_().clamp_(low, high).to(torch.int8)


def dequantize(codes: Tensor, scale: Tensor) -> Tensor:
    """codes · scale, in the scale's dtype."""
    return codes.to(scale.dtype) * scale


def fake_quantize(x: Tensor, scale: Tensor, dtype: str) -> Tensor:
    """dequantize(quantize(x)) in float32 (or float64); `scale` broadcasts."""
    ratio = computed(x) / scale
    if dtype == "fp8":
        rounded = ratio.clamp_(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn).to(ratio.dtype)
        return rounded.mul_(scale)
    low, high = INT_RANGES[dtype]
    return ratio.round_().clamp_(low, high).mul_(scale)


def zero_fake_quantize(x: Tensor, scale: Tensor, zero: Tensor, dtype: str) -> Tensor:
    """clamp(round(x/scale), −zero, levels − zero)·scale, where levels + 1 is the number of codes."""
    ratio = computed(x) / scale
    levels = code_max(dtype) - code_min(dtype)
    return torch.clamp(ratio.round_(), -zero, levels - zero).mul_(scale)


def dual_fake_quantize(x: Tensor, positive: Tensor, negative: Tensor, dtype: str) -> Tensor:
    """round(x/s₊)·s₊ where x ≥ 0, round(x/s₋)·s₋ below."""
    x = computed(x)
    return fake_quantize(x, torch.where(x >= 0, positive, negative), dtype)


def pack_int4(codes: Tensor) -> Tensor:
    """int8 codes [..., n] to uint8 [..., ceil(n / 2)], even columns in the low nibble; odd n is padded with a zero."""
    if codes.shape[-1] % 2:
        codes = torch.nn.functional.pad(codes, (0, 1))
    nibbles = codes.view(torch.uint8) & 0x0F if codes.is_contiguous() else codes.contiguous().view(torch.uint8) & 0x0F
    return nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)


def unpack_int4(packed: Tensor, columns: int) -> Tensor:
    """Inverse of `pack_int4`: int8 [..., columns]."""
    low, high = packed & 0x0F, packed >> 4
    nibbles = torch.stack((low, high), dim=-1).flatten(-2)[..., :columns]
    # sign extension of a nibble: 8 … 15 stand for -8 … -1
    return (nibbles.to(torch.int8) ^ 8) - 8


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
